"""Images/s of training with 1 and with 2 processes of one CPU core each, through scripts/run_distribute_train.sh."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.machine import describe_machine
from src.common.cli import ArgumentParser, RunError, UsageError, positive_int, run_cli
from src.common.machine import usable_cores
from src.launch.rank_table import write_rank_table
from src.preparation.digits import write_digits

EPOCHS = 3


def main(argv=None) -> None:
    """Alternate runs of one and of two processes, and compare their medians."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--image_size", type=positive_int, default=64, help="pixels")
    parser.add_argument("--batch_size", type=positive_int, default=32, help="images a step and process")
    parser.add_argument("--repeats", type=positive_int, default=2, help="runs of each kind, alternating")
    arguments = parser.parse_args(argv)
    cores = usable_cores()[:2]
    if len(cores) < 2:
        raise UsageError("two processes with one core each need two cores")
    print(f"machine: {describe_machine('mindspore')}; one core for each process", flush=True)
    rates = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_digits(os.path.join(folder, "digits"))
        for _ in range(arguments.repeats):
            for processes, measured in rates.items():
                measured += measure(folder, cores[:processes], arguments)
                print(f"{processes} processes: {measured[1 - EPOCHS :]} images/s an epoch", flush=True)
    one, two = (statistics.median(rates[processes]) for processes in (1, 2))
    result = {"images_per_s_1": round(one, 1), "images_per_s_2": round(two, 1), "efficiency": round(two / (2 * one), 3)}
    print(json.dumps(result))


def measure(folder: str, cores: list[int], arguments) -> list[float]:
    """Train on the digits with one process on each of these cores.

    Returns:
        list of float, images/s of all processes together in each epoch but the first, which includes compilation.
    """
    run_folder = tempfile.mkdtemp(dir=folder)
    write_rank_table(os.path.join(run_folder, "table.json"), "127.0.0.1", list(range(len(cores))), {})
    flags = {
        "image_size": arguments.image_size,
        "batch_size": arguments.batch_size,
        "epoch_size": EPOCHS,
        "lr_max": 0.003,
        "save_checkpoint": False,
    }
    command = ["sh", f"{ROOT}/scripts/run_distribute_train.sh", "table.json", f"{folder}/digits/train"]
    done = subprocess.run(
        [*command, *(part for name, value in flags.items() for part in (f"--{name}", str(value)))],
        cwd=run_folder,
        env={**os.environ, "DEVICE_TARGET": "CPU", "WAIT": "1", "PYTHON": sys.executable},
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    if done.returncode:
        raise RunError(f"the training with {len(cores)} processes failed with exit code {done.returncode}")
    with open(os.path.join(run_folder, "checkpoint", "model_0", "metrics.csv"), newline="") as file:
        return [float(row["images_per_second"]) for row in csv.DictReader(file)][1:]


if __name__ == "__main__":
    sys.exit(run_cli(main))
