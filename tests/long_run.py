"""Run for long and see that memory, file descriptors, threads and speed stay as they were.

    python -m tests.long_run [--part training|infer_onnx|cpp] [--steps 20000] [--classifications 200000]

Training is of a narrow B0 on images of 32 pixels: two ranks, an average of the weights, an evaluation and a checkpoint
after each epoch. Classifying is of small JPEGs by a network of one convolution. Each part prints a line for each of its
processes: its memory and the slope of that, the fewest descriptors and threads in the first and in the last fifth. Exit
code 1 if one of them grows, or training's last quarter is more than 3% slower than its first.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from src.common.cli import ArgumentParser, RunError, choice, positive_int, run_cli
from src.launch.rank_table import write_rank_table
from src.preparation.digits import write_digits
from tests.support import cpp_program as cpp
from tests.support.hard_images import draw, encode
from tests.support.launcher import launcher_command
from tests.support.training_runs import copy_images

ROOT = Path(__file__).parent.parent
BATCH, RANKS = 2, 2
IMAGES, HELD_OUT = 100, 4
"""To train and to evaluate on, of each of the ten digits: 250 steps an epoch."""
FLAT = 0.5
"""MiB in a thousand steps, or in ten thousand images."""
SLOWER = 0.03
FEWEST_SAMPLES = 50
"""With fewer, two fifths of them tell nothing."""


@dataclasses.dataclass
class Watched:
    """Samples of a process: how far the work was, MiB of its own memory, descriptors, threads."""

    name: str
    number: int
    samples: list[tuple[float, float, int, int]] = dataclasses.field(default_factory=list)

    def sample(self, done: float) -> None:
        """Add a sample, unless the process has ended."""
        try:
            status = Path(f"/proc/{self.number}/status").read_text()
            descriptors = len(os.listdir(f"/proc/{self.number}/fd"))
        except OSError:
            return
        memory, threads = (re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE) for name in ("RssAnon", "Threads"))
        if memory:
            self.samples.append((done, int(memory[1]) / 1024, descriptors, int(threads[1])))

    def judge(self, unit: int, what: str) -> bool:
        """Print a line on the samples from a tenth of the work to just before its end; whether nothing grew.

        The slope is that of the second half: libraries take their time to have all the memory that they keep.
        """
        rows = np.array(self.samples, np.float64).reshape(-1, 4)
        most = rows[:, 0].max(initial=0)
        rows = rows[(rows[:, 0] > 0.1 * most) & (rows[:, 0] < most)]
        if len(rows) < FEWEST_SAMPLES:
            print(f"{self.name}: {len(rows)} samples, too few to judge")
            return True
        half = rows[rows[:, 0] > 0.5 * most]
        slope = np.polyfit(half[:, 0] / unit, half[:, 1], 1)[0]
        fifth = len(rows) // 5
        first, last = rows[:fifth].min(axis=0), rows[-fifth:].min(axis=0)
        flat = slope < FLAT and bool((last[2:] <= first[2:]).all())
        memory = f"{rows[0, 1]:.1f} MiB after a tenth, {half[0, 1]:.1f} after a half, {rows[-1, 1]:.1f} at the end"
        counts = f"descriptors {first[2]:.0f} and {last[2]:.0f}, threads {first[3]:.0f} and {last[3]:.0f}"
        verdict = "" if flat else ": IT GROWS"
        print(
            f"{self.name}: {memory}, {slope:+.3f} MiB per {unit} {what} since the half; {counts}{verdict}", flush=True
        )
        return flat


def main(argv=None) -> int:
    """Run the parts one after the other."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=choice(*PARTS), action="append", help="only this one; may be repeated")
    parser.add_argument("--steps", type=positive_int, default=20_000, help="of training")
    parser.add_argument("--classifications", type=positive_int, default=200_000, help="by each of the other two")
    arguments = parser.parse_args(argv)
    good = True
    for name in arguments.part or PARTS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            good &= PARTS[name](Path(folder), arguments)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return int(not good)


def train(folder: Path, arguments) -> bool:
    """Two ranks of train.py; whether nothing grew and the end was as fast as the beginning."""
    write_digits(str(folder / "digits"))
    images = copy_images(folder / "digits", folder / "images", "0123456789", IMAGES, HELD_OUT)
    steps_per_epoch = 10 * IMAGES // (BATCH * RANKS)
    epochs = max(1, round(arguments.steps / steps_per_epoch))
    write_rank_table(str(folder / "table.json"), "127.0.0.1", list(range(RANKS)), {})
    flags = {
        "eval_dataset_path": images / "val",
        "image_size": 32,
        "batch_size": BATCH,
        "epoch_size": epochs,
        "lr_max": 0.002,
        "warmup_epochs": 0,
        "norm_momentum": 0.99,
        "use_ema": True,
        "keep_checkpoint_max": 3,
        "log_interval": 10,
    }
    command = launcher_command(ROOT / "tests/support/shallow_train.py")
    command += [str(folder / "table.json"), str(images / "train")]
    command += [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU", "WAIT": "1"}
    log = folder / "train_parallel0" / "log.txt"

    def count_steps() -> int:
        """Steps that rank 0 has told of."""
        told = re.findall(r"^epoch (\d+): (?:step (\d+)|epoch time)", read_text(log), re.MULTILINE)
        return (int(told[-1][0]) - bool(told[-1][1])) * steps_per_epoch + int(told[-1][1] or 0) if told else 0

    output = watch_process(command, folder, environment, count_steps, r"^(rank \d+): process (\d+)$")
    good = all([watched.judge(1000, "steps") for watched in output])
    with open(folder / "checkpoint" / "model_0" / "metrics.csv", newline="") as file:
        rates = [float(row["images_per_second"]) for row in csv.DictReader(file)]
    quarter = len(rates) // 4
    if quarter < 2:
        print(f"{len(rates)} epochs, too few to compare their speeds")
        return good
    before, after = float(np.median(rates[1 : quarter + 1])), float(np.median(rates[-quarter:]))
    fast = after > (1 - SLOWER) * before
    print(
        f"{len(rates) * steps_per_epoch} steps: {before:.1f} images/s in the first quarter, {after:.1f} in the last "
        f"({after / before - 1:+.1%}){'' if fast else ': IT SLOWS DOWN'}"
    )
    return good and fast


def write_small_images(folder: Path, count: int) -> None:
    """A hundred JPEGs in three classes, each under so many names that there are `count`."""
    originals = [encode(draw(48 + i % 9, 64, i), "JPEG") for i in range(100)]
    for label in ("cat", "dog", "owl"):
        (folder / label).mkdir(parents=True)
    for number in range(count):
        path = folder / ("cat", "dog", "owl")[number % 100 % 3] / f"{number:06}.jpg"
        if number < 100:
            path.write_bytes(originals[number])
        else:
            os.link(folder / path.parent.name / f"{number % 100:06}.jpg", path)


def classify_in_python(folder: Path, arguments) -> bool:
    """infer_onnx.py on a folder of many names."""
    count = arguments.classifications
    write_small_images(folder / "data", count)
    cpp.write_onnx_model(folder / "model.onnx", cpp.small_info(["cat", "dog", "owl"]))
    command = [sys.executable, ROOT / "infer_onnx.py", "--onnx_path", "model.onnx", "--dataset_path", "data"]
    return classify(command, folder, dict(os.environ), count, "infer_onnx.py")


def classify_in_cpp(folder: Path, arguments) -> bool:
    """The C++ program, with OpenVINO, on a hundred images again and again."""
    build, _ = cpp.build("tests")
    write_small_images(folder / "data", 100)
    cpp.write_onnx_model(folder / "model.onnx", cpp.small_info(["cat", "dog", "owl"]))
    rounds = -(-arguments.classifications // 100)
    command = [build / "main", "--model_path", "model.onnx", "--dataset_path", "data", "--repeat", rounds]
    return classify(command, folder, dict(os.environ), 100 * rounds, "the C++ program")


def classify(command: list, folder: Path, environment: dict, count: int, name: str) -> bool:
    """Run a program that works at an even pace; whether nothing grew."""
    began = time.monotonic()
    (watched,) = watch_process(list(map(str, command)), folder, environment, lambda: time.monotonic() - began, name)
    seconds = watched.samples[-1][0]
    print(f"{name}: {count} classifications, {count / seconds:.0f} a second")
    watched.samples = [(done / seconds * count, *others) for done, *others in watched.samples]
    return watched.judge(10_000, "images")


def watch_process(command: list[str], folder: Path, environment: dict, progress, names: str) -> list[Watched]:
    """Run a command in a folder and sample it, or the processes that it names, until its end.

    Args:
        progress: gives how far the work is.
        names: a pattern of the lines that name its processes and their numbers; or the name of the process itself.

    Raises:
        RunError: if it fails.
    """
    log, found = folder / "output.txt", {}
    with open(log, "w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            named = re.findall(names, read_text(log), re.MULTILINE) if "(" in names else [(names, process.pid)]
            for name, number in named:
                found.setdefault(name, Watched(name, int(number))).sample(progress())
            time.sleep(0.2)
    if process.returncode:
        raise RunError(f"{' '.join(command)}: exit code {process.returncode}: {read_text(log)[-2000:]}")
    return list(found.values())


def read_text(path: Path) -> str:
    """A text file that may not be there yet."""
    return path.read_text(errors="replace") if path.exists() else ""


PARTS = {"training": train, "infer_onnx": classify_in_python, "cpp": classify_in_cpp}

if __name__ == "__main__":
    sys.exit(run_cli(main))
