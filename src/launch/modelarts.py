"""Huawei Cloud's ModelArts: copy the images in before a run and the checkpoints out after it, through `moxing`."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterator

from src.common.cli import RunError, UsageError
from src.common.files import locked
from src.config import Config

FAST_DISK = "/cache"
DONE = ".copied-from"
# Seconds between two times that new checkpoints are sent: so much is lost when the machine is taken away.
SEND_INTERVAL = 300


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
    in `train_url` is fetched first. Rank 0 sends its checkpoints there every few minutes and at the end.

    Yields:
        Config, with paths of this machine; the same one without --run_modelarts.

    Raises:
        UsageError: as `check_urls` and `load_moxing`.
        RunError: if a copy fails.
    """
    check_urls(config)
    # msrun runs the script in its scheduler too, which ends where the ranks are joined.
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
    """The folder of this machine that stands for a folder of the object store."""
    disk = FAST_DISK if os.path.isdir(FAST_DISK) else tempfile.gettempdir()
    return os.path.join(disk, f"efficientnet_{kind}_{zlib.crc32(url.encode()):08x}")


def fetch_once(moxing, url: str, folder: str, optional: bool = False) -> bool:
    """Copy a folder of the object store to this machine, unless another rank of the same job has done so.

    Args:
        optional: a folder that does not exist, or is empty, is none to copy.

    Returns:
        bool, whether this process has copied.

    Raises:
        RunError: if the copy fails.
    """
    os.makedirs(folder, exist_ok=True)
    marker = os.path.join(folder, DONE)
    wanted = f"{url} for {os.environ.get('MA_CURRENT_JOB_ID', '')}"
    # The other ranks wait here until the first has copied.
    with locked(f"{folder}.lock", wait=True):
        if os.path.exists(marker):
            with open(marker, encoding="utf-8") as file:
                if file.read() == wanted:
                    return False
        print(f"copying {url} to {folder}", flush=True)
        with as_sentence(f"copying {url} to {folder}"):
            copied = not optional or bool(moxing.file.exists(url) and moxing.file.list_directory(url))
            if copied:
                moxing.file.copy_parallel(url, folder)
        with open(marker, "w", encoding="utf-8") as file:
            file.write(wanted)
    return copied


class Sender:
    """Keeps a folder of the object store like one of this machine, as far as it is this run's.

    Args:
        moxing: the library.
        folder: on this machine; hidden files, unfinished ones among them, are left out.
        url: of the object store. What others have put there stays.
    """

    def __init__(self, moxing, folder: str, url: str):
        self.moxing = moxing
        self.folder = folder
        self.url = url
        self.sent: dict[str, tuple[int, int]] = {}

    def send(self) -> None:
        """Send what is new or has changed, remove what was sent and is gone.

        Raises:
            RunError: if that fails.
        """
        here = self.list_files()
        changed = [path for path, stamp in here.items() if self.sent.get(path) != stamp]
        if changed:
            print(f"sending {len(changed)} files to {self.url}", flush=True)
        for path in changed:
            source = os.path.join(self.folder, path)
            with as_sentence(f"copying {source} to {self.url}"):
                try:
                    self.moxing.file.copy(source, f"{self.url.rstrip('/')}/{path}")
                except Exception:
                    if os.path.exists(source):  # else training has removed an old checkpoint meanwhile
                        raise
                    continue
            self.sent[path] = here[path]
        for path in set(self.sent) - set(here):
            with as_sentence(f"removing {path} from {self.url}"):
                self.moxing.file.remove(f"{self.url.rstrip('/')}/{path}")
            del self.sent[path]

    def list_files(self) -> dict[str, tuple[int, int]]:
        """Path below the folder to size and time of change."""
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
        RunError: if it fails at the end; before, it is tried again.
    """
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(SEND_INTERVAL):
            try:
                sender.send()
            except RunError as error:
                print(f"warning: {error}; it is tried again later", file=sys.stderr, flush=True)

    thread = threading.Thread(target=work, name="sender", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sender.send()


@contextlib.contextmanager
def as_sentence(doing: str) -> Iterator[None]:
    """Turn whatever moxing raises into one sentence.

    Raises:
        RunError: "`doing` failed: why".
    """
    try:
        yield
    except Exception as error:  # moxing has classes of its own, which cannot be named where it is not installed
        raise RunError(f"{doing} failed: {error}") from error
