"""All benchmarks that need no photos of the user's, and one table of their figures with the machine's name.

python benchmarks/run_all.py [--out benchmarks.md] [NAME ...]

Nothing else should run on the machine meanwhile. The table is written anew after each benchmark.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.machine import describe_machine
from src.common.cli import RunError, choice, create_parser, run_cli
from src.common.files import atomic_path

NAMES = ("train_step", "data_parallel", "input_pipeline", "inference", "cpp_inference", "digits_vs_timm")


def main(argv=None) -> None:
    """Run them one after the other.

    Raises:
        RunError: at the end, if one of them failed.
    """
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--out", default="benchmarks.md", help="the table (default: benchmarks.md)")
    parser.add_argument("names", nargs="*", metavar="NAME", type=choice(*NAMES), help=f"default: {' '.join(NAMES)}")
    arguments = parser.parse_args(argv)
    results: dict[str, dict] = {}
    for name in arguments.names or NAMES:
        print(f"== {name}", flush=True)
        results[name] = run_benchmark(os.path.join(ROOT, "benchmarks", f"{name}.py"))
        with atomic_path(arguments.out) as path, open(path, "w", encoding="utf-8") as file:
            file.write(as_table(results))
    print(f"table: {arguments.out}")
    failed = [name for name, figures in results.items() if not figures]
    if failed:
        raise RunError(f"no figures from: {', '.join(failed)}; see what each printed above")


def run_benchmark(program: str) -> dict:
    """Run a benchmark and show what it prints; the figures of its last line, none if it failed."""
    last = ""
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
    try:
        return json.loads(last) if process.returncode == 0 else {}
    except ValueError:
        return {}


def as_table(results: dict[str, dict]) -> str:
    """Markdown: the machine, the day, and a row for each figure."""
    machine = describe_machine("mindspore", "torch", "timm", "onnxruntime")
    rows = [
        f"| `{name}.py` | {figure} | {value} |"
        for name, figures in results.items()
        for figure, value in (figures or {"failed": ""}).items()
    ]
    head = [f"{machine}; {datetime.date.today()}", "", "| benchmark | figure | value |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, ""])


if __name__ == "__main__":
    sys.exit(run_cli(main))
