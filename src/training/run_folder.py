"""The folder of a run: its lock, what earlier runs left there, its checkpoints, and the one to resume from."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator

from src.common.cli import RunError, UsageError
from src.common.files import atomic_path, locked
from src.weights.checkpoint import (
    BEST_NAME,
    Checkpoint,
    checkpoint_name,
    find_checkpoints,
    parse_name,
    read_checkpoint,
    write_checkpoint,
)
from src.weights.model_info import ModelInfo

RUN_NAME = "model_0"
"""The model zoo's name of rank 0's folder; no other rank writes."""
# What `atomic_path` and MindSpore's writer leave when they are killed.
LEFTOVER = re.compile(r"\..*\.tmp-.*")


def name_run_folder(parent: str) -> str:
    """The folder of a run below --save_checkpoint_path.

    Raises:
        RunError: if a part of the path is a file.
    """
    folder = os.path.join(parent, RUN_NAME)
    part = os.path.abspath(folder)
    while not os.path.lexists(part):
        part = os.path.dirname(part)
    if not os.path.isdir(part):
        raise RunError(f"--save_checkpoint_path {parent}: {part} is a file, and a folder is needed there")
    return folder


def remove_leftovers(folder: str) -> None:
    """Remove the unfinished files of a process that was killed while it wrote."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if LEFTOVER.fullmatch(name):
            os.remove(os.path.join(folder, name))


def set_aside(folder: str) -> str | None:
    """Give another run's folder a new name, so that its files are neither overwritten nor mixed with this run's.

    Returns:
        str, its new path; None where there is no checkpoint that could be lost.
    """
    if not find_checkpoints(folder) and not os.path.exists(os.path.join(folder, BEST_NAME)):
        return None
    number = 1
    while os.path.exists(f"{folder}.before-{number}"):
        number += 1
    os.rename(folder, f"{folder}.before-{number}")
    return f"{folder}.before-{number}"


@contextlib.contextmanager
def locked_run_folder(folder: str, resumed: Checkpoint | None, say: Callable[[str], None] = print) -> Iterator[None]:
    """Lock the folder of a run that is about to write there.

    Args:
        folder: such as ./checkpoint/model_0.
        resumed: what the run goes on from. Unless it lies in `folder`, what is there is another run's and is set aside.
        say: told of it.

    Raises:
        UsageError: if another process has locked it.
        OSError: if it cannot be written.
    """
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    try:
        with locked(parent):
            remove_leftovers(folder)
            if resumed is None or os.path.realpath(os.path.dirname(resumed.path)) != os.path.realpath(folder):
                aside = set_aside(folder)
                if aside:
                    say(f"the checkpoints of an earlier run were moved to {aside}; --resume auto goes on with a run")
            yield
    except BlockingIOError:
        raise UsageError(
            f"another training writes to {parent}; wait for its end, "
            "or give this one a --save_checkpoint_path of its own"
        ) from None


def find_resume(resume: str, folder: str, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The checkpoint to go on from.

    Args:
        resume: a path, or "auto" for the newest in `folder` that verifies.
        folder: the run's checkpoints.
        say: told of those passed over.

    Returns:
        Checkpoint, or None where "auto" finds nothing: the run begins.

    Raises:
        RunError: if the named file cannot be used.
    """
    if resume != "auto":
        return read_checkpoint(resume)
    for path in find_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except RunError as error:
            say(f"passed over: {error}")
    return None


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run: written whole, the oldest removed only after the newest stands.

    Args:
        folder: such as ./checkpoint/model_0.
        keep: how many checkpoints stay beside best.ckpt.
        info: what the weights expect.
        rank: part of the file names.
        run: what a resumed run compares with beside its progress: the parameters and the number of ranks.
    """

    folder: str
    keep: int
    info: ModelInfo
    rank: int
    run: dict

    def save(self, epoch: int, step: int, is_best: bool, weights, ema, training, progress: dict) -> str:
        """Write a checkpoint and then remove those beyond `keep`.

        Args:
            epoch, step: the number of the epoch, from 1, and of the step within it.
            is_best: write it as best.ckpt too.
            weights, ema, training: those of `Checkpoint`.
            progress: `Progress` as plain JSON types.

        Returns:
            str, its path.

        Raises:
            OSError, RunError: if it could not be written; earlier ones are intact.
        """
        path = os.path.join(self.folder, checkpoint_name(self.info.variant, self.rank, epoch, step))
        # best.ckpt first, so that a run killed between the two repeats the epoch and saves both.
        written = os.path.join(self.folder, BEST_NAME) if is_best else path
        write_checkpoint(written, weights, self.info, ema, training, {"progress": progress, **self.run})
        if is_best:
            with atomic_path(path) as temporary:
                shutil.copyfile(written, temporary)
        # A run that was sent back to an earlier checkpoint finds later ones, which `keep` does not count.
        reached = [old for old in find_checkpoints(self.folder) if parse_name(old) <= (epoch, step)]
        for old in reached[self.keep :]:
            os.remove(old)
        return path
