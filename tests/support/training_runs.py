"""Runs of train.py as real processes: small and short, but with everything that a run may have."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
# 4 steps of 4 images an epoch, of which 2 make an update; 3 epochs; every augmentation, averaged weights, dropout.
FLAGS = {
    "image_size": 32,
    "batch_size": 4,
    "epoch_size": 3,
    "lr_max": 0.003,
    "warmup_epochs": 1,
    "norm_momentum": 0.9,
    "save_checkpoint_steps": 1,
    "keep_checkpoint_max": 20,
    "use_ema": True,
    "mixup": 0.2,
    "cutmix": 1,
    "random_erasing": 0.3,
    "auto_augment": "randaugment",
    "clip_norm": 5,
    "accumulate_steps": 2,
    "log_interval": 1,
    "seed": 3,
}
EPOCHS, STEPS = 3, 4


def train_command(dataset_path, program="tests/support/shallow_train.py", **flags):
    """The command line of a run; a flag of None is left out."""
    flags = {"dataset_path": dataset_path, **FLAGS, **flags}
    given = [part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))]
    return [sys.executable, "-u", str(ROOT / program), *given]


def start(folder, dataset_path, environment=None, **flags):
    """Start a run in `folder`, its output in log.txt and errors.txt there."""
    command, env = train_command(dataset_path, **flags), {**os.environ, **(environment or {})}
    with open(folder / "log.txt", "w") as log, open(folder / "errors.txt", "w") as errors:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=errors)


def run(folder, dataset_path, **flags):
    """Run to the end; returns (exit code, standard output, standard error)."""
    return finish(start(folder, dataset_path, **flags), folder)


def finish(process, folder):
    """Wait for the end of a run; returns (exit code, standard output, standard error)."""
    code = process.wait(timeout=600)
    return code, (folder / "log.txt").read_text(), (folder / "errors.txt").read_text()


def train_b0(dataset_path, path):
    """Write a checkpoint of a whole B0 after an epoch."""
    flags = {"use_ema": None, "epoch_size": 1, "warmup_epochs": 0, "save_checkpoint_steps": None}
    code, _, err = run(path.parent, dataset_path, program="train.py", **flags)
    assert code == 0, err
    os.replace(checkpoint_path(path.parent, 1, STEPS), path)


def wait_for(condition, process, seconds=300):
    """Wait until `condition()` while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the run ended with exit code {process.returncode}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def checkpoint_path(folder, epoch, step):
    """A run's checkpoint."""
    return folder / "checkpoint" / "model_0" / f"Efficientnet_b0-rank0-{epoch}_{step}.ckpt"


def saved(folder):
    """(epoch, step) of a run's checkpoints, in order."""
    paths = (folder / "checkpoint" / "model_0").glob("Efficientnet_b0-rank0-*.ckpt")
    return sorted(tuple(map(int, path.stem.rpartition("-")[2].split("_"))) for path in paths)


def state_of(path):
    """(arrays by name, description, training state) of a checkpoint; timings are left out."""
    from src.weights.checkpoint import INFO_ENTRY, STATE_ENTRY, read_entries

    entries = read_entries(str(path))
    info, state = (json.loads(entries.pop(name)) for name in (INFO_ENTRY, STATE_ENTRY))
    del state["progress"]["epoch_seconds"]
    for row in state["progress"]["rows"]:
        del row["images_per_second"]
    for name in ("resume", "save_checkpoint_path"):
        del state["config"][name]
    return entries, info, state


def assert_same_state(first, second):
    """Two checkpoints hold bit-identical weights, averages and training state, and stand at the same point."""
    (one, *texts), (other, *other_texts) = state_of(first), state_of(second)
    assert one.keys() == other.keys()
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not different, f"{len(different)} of {len(one)} differ, {different[0]} among them"
    assert texts == other_texts


def copy_images(digits, root, classes, train, val):
    """Copy the first images of some classes of the digits to root/train and root/val."""
    for split, count in (("train", train), ("val", val)):
        for label in classes:
            (root / split / label).mkdir(parents=True)
            for path in sorted((digits / split / label).iterdir())[:count]:
                shutil.copy(path, root / split / label)
    return root


@pytest.fixture(scope="session")
def few_images(digits, tmp_path_factory):
    """18 images of 2 classes to train on, 14 to evaluate on."""
    return copy_images(digits, tmp_path_factory.mktemp("few_images"), "01", 9, 7)


@pytest.fixture(scope="session")
def training_run(few_images, tmp_path_factory):
    """(folder, standard output) of a whole run with evaluation."""
    folder = tmp_path_factory.mktemp("training_run")
    code, out, err = run(folder, few_images / "train", eval_dataset_path=few_images / "val")
    assert (code, err) == (0, "")
    return folder, out


def flip_bit(path, share=0.5):
    """Alter one bit of a file."""
    data = np.fromfile(path, np.uint8)
    data[int(len(data) * share)] ^= 1
    data.tofile(path)
