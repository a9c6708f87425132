"""Change the code a little, many times, and see that a test fails each time.

    python -m tests.mutation [--room NAME] [--changes N] [--seed N] [--by_hand]

Changes are drawn from all that this program knows (a comparison, an operation, a number, a condition turned round) over
the rooms that compute without a compiled graph; over the others, and the C code, those of tests/mutations.tsv are made,
which `--by_hand` asks for. Each is made in a copy of the repository, where the tests of its room run until one fails.
What no test notices is printed; exit code 1 if that is more than a tenth.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# As tests/conftest.py sets it before MindSpore loads.
os.environ.setdefault("GLOG_v", "3")

import mindspore  # noqa: F401  imported once for all forks
import pytest
import torch  # noqa: F401

from src.common.cli import ArgumentParser, RunError, choice, non_negative_int, positive_int, run_cli

ROOT = Path(__file__).parent.parent
BY_HAND = ROOT / "tests" / "mutations.tsv"
SECONDS = 900
"""For the tests of one change; one that makes them run longer counts as noticed."""

ROOMS = {
    "common": ("tests/common",),
    "data": ("tests/data/test_image_folder.py", "tests/data/test_label_list.py", "tests/data"),
    "evaluation": ("tests/evaluation/test_metrics.py", "tests/mistakes/test_report.py", "tests/evaluation"),
    "images": tuple(f"tests/images/test_{name}.py" for name in ("preprocess", "engine", "mix", "same_bytes")),
    "inference": ("tests/inference/test_postprocess.py", "tests/inference/test_infer_onnx.py"),
    "launch": tuple(f"tests/launch/test_{name}.py" for name in ("launch_plan", "rank_table", "modelarts", "command")),
    "mistakes": tuple(f"tests/mistakes/test_{name}.py" for name in ("measures", "report", "page", "duplicates")),
    "models": ("tests/models/test_effnet.py",),
    "preparation": ("tests/preparation",),
    "published": ("tests/published",),
    "recipes": ("tests/recipes",),
    "weights": tuple(f"tests/weights/test_{name}.py" for name in ("model_info", "names", "torch_pickle", "published")),
    ".": ("tests/test_config.py", "tests/test_lr_generator.py"),
}
"""Room, and the tests that must notice; `.` are the files of src itself."""
FILES = {
    "evaluation": ("class_report", "grad_cam", "metrics", "chance"),
    "models": ("family", "table"),
    ".": ("config", "parameters", "lr_generator"),
}
"""Those files of a room that need no compiled graph, where that is not all of them."""
TESTS = {
    "src/images/bad_images.py": ("tests/images/test_bad_images.py",),
    "src/inference/head.py": ("tests/evaluation/test_grad_cam.py",),
    "src/published/table.py": ("tests/weights/test_published.py", "tests/published"),
    "src/weights/folding.py": ("tests/weights/test_conversion.py",),
}
"""Files whose tests are others than their room's."""
WITH_GRAPH = ("mindrecord_writer", "checkpoint", "network", "conversion")

SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult},
}
"""What takes an operator's place."""


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of one place.

    Attributes:
        path: of the file, below the repository.
        start, end: the place, in characters.
        new: what stands there then.
        tests: what must notice.
    """

    path: str
    start: int
    end: int
    new: str
    tests: tuple[str, ...]

    def describe(self, text: str) -> str:
        """A line for the report."""
        line = text.count("\n", 0, self.start) + 1
        old = " ".join(text[self.start : self.end].split())
        return f"{self.path}:{line}: {old} -> {' '.join(self.new.split())}"


def main(argv=None) -> int:
    """Draw the changes, make each, count."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--room", type=choice(*ROOMS), action="append", help="only this one; may be repeated")
    parser.add_argument("--changes", type=positive_int, default=10, help="for each room")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of the drawing")
    parser.add_argument("--by_hand", action="store_true", help="those of tests/mutations.tsv instead")
    arguments = parser.parse_args(argv)
    if arguments.by_hand:
        changes = list(read_by_hand())
    else:
        changes = draw(arguments.room or list(ROOMS), arguments.changes, arguments.seed)
    with tempfile.TemporaryDirectory() as copy:
        copy_repository(copy)
        unnoticed = [change for change in changes if not is_noticed(change, copy)]
    noticed = len(changes) - len(unnoticed)
    print(f"{noticed} of {len(changes)} changes were noticed")
    return int(10 * noticed < 9 * len(changes))


def draw(rooms: list[str], count: int, seed: int) -> list[Change]:
    """Changes of each room, as many of each file as it has lines, roughly."""
    drawn = []
    for room in rooms:
        found = [change for path in files_of(room) for change in changes_of(path, TESTS.get(path, ROOMS[room]))]
        drawn += random.Random(f"{room} {seed}").sample(found, min(count, len(found)))
    return drawn


def files_of(room: str) -> list[str]:
    """Paths of a room's modules below the repository."""
    paths = sorted((ROOT / "src" / room).glob("*.py"))
    names = FILES.get(room) or [path.stem for path in paths if path.stem not in WITH_GRAPH]
    return [str(path.relative_to(ROOT)) for path in paths if path.stem in names]


def changes_of(path: str, tests: tuple[str, ...]) -> Iterator[Change]:
    """All changes that this program knows of a Python file."""
    text = (ROOT / path).read_text()
    lines = text.splitlines(keepends=True)
    starts = list(itertools.accumulate(map(len, lines), initial=0))
    for node in walk(ast.parse(text)):
        new = alter(node)
        if new is not None:
            place = [
                starts[line - 1] + len(lines[line - 1].encode()[:column].decode())
                for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
            ]
            # What is unparsed without the parentheses that its surroundings may need gets some.
            yield Change(path, *place, new if isinstance(node, ast.Constant) else f"({new})", tests)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, without annotations, decorators, texts with fields, and what is raised."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Raise)):
                yield from walk(child)


def alter(node: ast.AST) -> str | None:
    """The changed text of an expression, or None where there is no change of it."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return ast.unparse(ast.Compare(node.left, [SWAPS[type(node.ops[0])]()], node.comparators))
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        parts = [part for part in ast.walk(node) if isinstance(part, texts)]
        strings = [p for p in ast.walk(node) if isinstance(p, ast.Constant) and isinstance(p.value, (str, bytes))]
        if not parts and not strings:
            return ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))
    if isinstance(node, ast.BoolOp):
        return ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ast.unparse(node.operand)
    if isinstance(node, ast.IfExp):
        return ast.unparse(ast.IfExp(node.test, node.orelse, node.body))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return str(not node.value)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return str(node.value + 1)
    return None


def read_by_hand() -> Iterator[Change]:
    """The changes of tests/mutations.tsv: file, what stands there once, what shall stand there, tests.

    Raises:
        RunError: if the old text is not there exactly once.
    """
    with open(BY_HAND, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            text = (ROOT / row["file"]).read_text()
            if text.count(row["old"]) != 1:
                raise RunError(f"{row['file']}: '{row['old']}' stands there {text.count(row['old'])} times, not once")
            start = text.index(row["old"])
            yield Change(row["file"], start, start + len(row["old"]), row["new"], tuple(row["tests"].split()))


def copy_repository(copy: str) -> None:
    """Copy the files that git knows, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            target = Path(copy, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def is_noticed(change: Change, copy: str) -> bool:
    """Make a change in the copy, run the tests, print what happened, and undo it."""
    path = Path(copy, change.path)
    text = path.read_text()
    path.write_text(text[: change.start] + change.new + text[change.end :])
    began = time.perf_counter()
    try:
        code = run_tests(change.tests, copy)
    finally:
        path.write_text(text)
    verdict = "noticed" if code else "NOT NOTICED"
    print(f"{verdict} in {time.perf_counter() - began:.0f} s: {change.describe(text)}", flush=True)
    return code != 0


def run_tests(tests: tuple[str, ...], copy: str) -> int:
    """The exit code of pytest in the copy; 1 if it takes too long.

    It runs in a fork of this process, which has imported MindSpore and PyTorch once and none of the code under test.
    """
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(copy)
        output = os.open("pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for name in [name for name in sys.modules if name.partition(".")[0] in ("src", "tests", "benchmarks")]:
            del sys.modules[name]
        sys.path[:] = [copy, *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
        sys.dont_write_bytecode = True
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *dict.fromkeys(tests)])))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


if __name__ == "__main__":
    sys.exit(run_cli(main))
