"""Huawei Cloud's ModelArts: copy images in before a run and checkpoints out during and after it, through `moxing`."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import zlib
from collections.abc import Iterator

from src.common.cli import RunError, UsageError, printable
from src.common.files import locked
from src.common.native import is_private_folder, temporary_folder
from src.config import Config

FAST_DISK = "/cache"
DONE = ".copied-from"
# Seconds between two sendings of new checkpoints; a machine that is taken away loses at most so much of its training.
SEND_INTERVAL = 300


def check_urls(config: Config) -> None:
    """Refuse --run_modelarts without both URLs, and a URL without --run_modelarts.

    Raises:
        UsageError: naming both flags.
    """
    for name in ("data_url", "train_url"):
        if config.run_modelarts and not getattr(config, name):
            raise UsageError(f"--run_modelarts needs --{name} too")
        if not config.run_modelarts and getattr(config, name):
            raise UsageError(f"--{name} needs --run_modelarts True: only there it is copied")


def load_moxing():
    """Import ModelArts' library that copies files.

    Raises:
        RunError: if it is not installed.
    """
    try:
        import moxing
    except ImportError:
        raise RunError(
            "--run_modelarts needs the package moxing, which ModelArts' own images carry and this Python does not"
        ) from None
    return moxing


@contextlib.contextmanager
def copied_folders(config: Config) -> Iterator[Config]:
    """With --run_modelarts, give a run folders on this machine, and send its checkpoints back however it ends.

    The folder at `data_url` is copied once for all ranks of this machine. --dataset_path and --eval_dataset_path are
    then paths below it; without --dataset_path the whole folder is the data set. With --resume auto the checkpoints
    that an earlier job left at `train_url` are fetched first. Rank 0 sends its checkpoints there every few minutes and
    at the end.

    Yields:
        Config, with paths on this machine; without --run_modelarts the same object.

    Raises:
        UsageError: from `check_urls`.
        RunError: if moxing is not installed or a copy fails. A last copy that fails after the run itself has failed is
            only a warning.
    """
    check_urls(config)
    # msrun runs the script in its scheduler as well, which goes no further than the call that joins the ranks.
    if not config.run_modelarts or os.environ.get("MS_ROLE") == "MS_SCHED":
        yield config
        return
    moxing = load_moxing()
    data, output = local_folder("data", config.data_url), local_folder("output", config.train_url)
    sender = Sender(moxing, output, config.train_url)
    fetch_once(moxing, config.data_url, data)
    if config.resume == "auto" and fetch_once(moxing, config.train_url, output, optional=True):
        sender.sent = sender.list_files()
    paths = {"dataset_path": os.path.join(data, config.dataset_path or ""), "save_checkpoint_path": output}
    if config.eval_dataset_path:
        paths["eval_dataset_path"] = os.path.join(data, config.eval_dataset_path)
    with contextlib.ExitStack() as sending:
        if os.environ.get("RANK_ID", "0") == "0":
            sending.enter_context(sent_regularly(sender))
        yield config.replace(**paths)


def local_folder(kind: str, url: str) -> str:
    """The folder on this machine for a folder of the object store; `kind` is "data" or "output".

    Raises:
        RunError: if there is no fast disk, and another user may write to this user's folder of temporary files.
    """
    disk = FAST_DISK if os.path.isdir(FAST_DISK) else temporary_folder()
    if disk != FAST_DISK and not is_private_folder(disk):
        raise RunError(f"{disk}: it is a link, or a folder that others may write to; remove it")
    return os.path.join(disk, f"efficientnet_{kind}_{zlib.crc32(url.encode()):08x}")


def fetch_once(moxing, url: str, folder: str, optional: bool = False) -> bool:
    """Copy a folder of the object store to this machine, unless another rank of the same job has done so.

    Args:
        moxing: the library.
        url: the folder in the object store.
        folder: the folder on this machine, created where missing.
        optional: copy nothing if `url` does not exist or is empty; otherwise that is an error.

    Returns:
        bool, whether this process has copied.

    Raises:
        RunError: if the copy fails.
    """
    os.makedirs(folder, exist_ok=True)
    marker = os.path.join(folder, DONE)
    wanted = f"{url} for {os.environ.get('MA_CURRENT_JOB_ID', '')}"
    # One rank copies; the others wait here, then find its marker.
    with locked(f"{folder}.lock", wait=True):
        if os.path.exists(marker):
            with open(marker, encoding="utf-8") as file:
                if file.read() == wanted:
                    return False
        print(f"copying {url} to {folder}", flush=True)
        with as_run_error(f"copying {url} to {folder}"):
            copied = not optional or bool(moxing.file.exists(url) and moxing.file.list_directory(url))
            if copied:
                moxing.file.copy_parallel(url, folder)
        with open(marker, "w", encoding="utf-8") as file:
            file.write(wanted)
    return copied


class Sender:
    """Keeps a copy of a folder in the object store up to date.

    Args:
        moxing: the library.
        folder: the folder on this machine. Hidden files are not sent; unfinished files are hidden.
        url: the folder in the object store. Files there that this object has not sent stay as they are.

    Attributes:
        sent: path below the folder to the size and time of change that it had when it was sent.
    """

    def __init__(self, moxing, folder: str, url: str):
        self.moxing = moxing
        self.folder = folder
        self.url = url
        self.sent: dict[str, tuple[int, int]] = {}

    def send(self) -> None:
        """Send files that are new or have changed, and remove sent ones that no longer exist here.

        Raises:
            RunError: if a file cannot be copied or removed.
        """
        here = self.list_files()
        changed = [path for path, stamp in here.items() if self.sent.get(path) != stamp]
        if changed:
            print(f"sending {len(changed)} files to {self.url}", flush=True)
        for path in changed:
            source = os.path.join(self.folder, path)
            with as_run_error(f"copying {source} to {self.url}"):
                try:
                    self.moxing.file.copy(source, f"{self.url.rstrip('/')}/{path}")
                except Exception:
                    if os.path.exists(source):  # otherwise training has just removed an old checkpoint
                        raise
                    continue
            self.sent[path] = here[path]
        for path in set(self.sent) - set(here):
            with as_run_error(f"removing {path} from {self.url}"):
                self.moxing.file.remove(f"{self.url.rstrip('/')}/{path}")
            del self.sent[path]

    def list_files(self) -> dict[str, tuple[int, int]]:
        """Path below the folder to size in bytes and time of change in nanoseconds, for all files to be sent."""
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(path)
                    if not name.startswith("."):
                        found[os.path.relpath(path, self.folder)] = (status.st_size, status.st_mtime_ns)
        return found


@contextlib.contextmanager
def sent_regularly(sender: Sender) -> Iterator[None]:
    """Send every few minutes, in a thread, and at the end.

    Raises:
        RunError: if the last sending fails, unless the block has raised an error itself; that one is raised then. A
            failure before the end is a warning, and sending is tried again.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(SEND_INTERVAL):
            warn_if_sending_fails(sender, "; it is tried again later")

    thread = threading.Thread(target=work, name="sender", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        thread.join()
        warn_if_sending_fails(sender)
        raise
    ended.set()
    thread.join()
    sender.send()


def warn_if_sending_fails(sender: Sender, consequence: str = "") -> None:
    """Send; print a warning if that fails."""
    try:
        sender.send()
    except RunError as error:
        print(f"warning: {printable(' '.join(str(error).split()))}{consequence}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def as_run_error(doing: str) -> Iterator[None]:
    """Turn any exception of moxing into an error of one sentence.

    Raises:
        RunError: "`doing` failed: " and the reason.
    """
    try:
        yield
    except Exception as error:  # moxing's own classes cannot be named: it is installed on ModelArts only
        raise RunError(f"{doing} failed: {error}") from error
