"""Huawei Cloud's ModelArts: copy the images in before a run and the checkpoints out after it, through `moxing`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator

from src.cli import RunError, UsageError
from src.config import Config

FAST_DISK = "/cache"
DONE = ".copied-from"


def check_urls(config: Config) -> None:
    """Refuse a copy that nobody asked for, or one without both its ends.

    Raises:
        UsageError: one sentence.
    """
    for name in ("data_url", "train_url"):
        if config.run_modelarts and not getattr(config, name):
            raise UsageError(f"--run_modelarts needs --{name} too")
        if not config.run_modelarts and getattr(config, name):
            raise UsageError(f"--{name} needs --run_modelarts True: only there it is copied")


def load_moxing():
    """ModelArts' library of copying.

    Raises:
        UsageError: where it is not installed.
    """
    try:
        import moxing
    except ImportError:
        raise UsageError(
            "--run_modelarts needs the package moxing, which ModelArts' own images carry and this Python does not"
        ) from None
    return moxing


@contextlib.contextmanager
def copied_folders(config: Config) -> Iterator[Config]:
    """With --run_modelarts, give a run folders on this machine and send its checkpoints back, however it ends.

    `data_url` is copied once for all ranks of this machine; --dataset_path and --eval_dataset_path name folders below
    it then, and it is the data set itself where --dataset_path is left out. With --resume auto what an earlier job left
    in `train_url` is fetched first. Rank 0 copies its checkpoints there at the end.

    Yields:
        Config, with paths of this machine; the same one without --run_modelarts.

    Raises:
        UsageError: as `check_urls` and `load_moxing`.
        RunError: if a copy fails.
    """
    check_urls(config)
    if not config.run_modelarts:
        yield config
        return
    moxing = load_moxing()
    disk = FAST_DISK if os.path.isdir(FAST_DISK) else tempfile.gettempdir()
    data = os.path.join(disk, "efficientnet_data")
    output = os.path.join(disk, "efficientnet_output")
    fetch_once(moxing, config.data_url, data)
    if config.resume == "auto":
        fetch_once(moxing, config.train_url, output, optional=True)
    paths = {"dataset_path": os.path.join(data, config.dataset_path or ""), "save_checkpoint_path": output}
    if config.eval_dataset_path:
        paths["eval_dataset_path"] = os.path.join(data, config.eval_dataset_path)
    try:
        yield config.replace(**paths)
    finally:
        if os.environ.get("RANK_ID", "0") == "0" and os.path.isdir(output):
            copy(moxing, output, config.train_url)


def fetch_once(moxing, url: str, folder: str, optional: bool = False) -> None:
    """Copy a folder of the object store to this machine, unless another rank of the same job has done so.

    Args:
        optional: a folder that does not exist is none to copy.
    """
    os.makedirs(folder, exist_ok=True)
    marker = os.path.join(folder, DONE)
    wanted = f"{url} for {os.environ.get('MA_CURRENT_JOB_ID', '')}"
    # The other ranks wait here until the first has copied.
    with open(folder + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(marker):
            with open(marker, encoding="utf-8") as file:
                if file.read() == wanted:
                    return
        if not optional or moxing.file.exists(url):
            copy(moxing, url, folder)
        with open(marker, "w", encoding="utf-8") as file:
            file.write(wanted)


def copy(moxing, source: str, target: str) -> None:
    """Copy a folder to or from the object store.

    Raises:
        RunError: one sentence.
    """
    print(f"copying {source} to {target}", flush=True)
    try:
        moxing.file.copy_parallel(source, target)
    except Exception as error:  # moxing raises classes of its own, which cannot be named where it is not installed
        raise RunError(f"copying {source} to {target} failed: {error}") from error
