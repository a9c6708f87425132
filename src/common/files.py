"""Files that appear whole or not at all, locks, and digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from src.common.cli import RunError


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """Give the name of a temporary file beside `path` and rename it to `path` when the block succeeds.

    The file appears whole or not at all: the temporary file is synced before the rename, the folder after it, and an
    exception removes the temporary file and leaves an existing `path` as it was. Missing parent folders are created.

    Raises:
        OSError: if the folder cannot be written or has no space.
    """
    path = os.fspath(path)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp-" + os.path.basename(path)[-100:], dir=folder)
    os.close(handle)
    try:
        yield temporary
        # mkstemp and MindSpore's writers make files that only their owner may read.
        os.chmod(temporary, new_file_mode())
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        # A full disk's error does not say which file was being written.
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextlib.contextmanager
def atomic_write(path: str, mode: str = "wb"):
    """Open a file for writing that appears under its name only when the block succeeds; see `atomic_path`."""
    with atomic_path(path) as temporary:
        options = {} if "b" in mode else {"encoding": "utf-8"}
        with open(temporary, mode, **options) as file:
            yield file


def sync_folder(folder: str) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_space(folder: str, needed: int, what: str) -> None:
    """Check that the disk has space for something, before any of it is written.

    Args:
        folder: where it is to be written.
        needed: bytes.
        what: its name in the plural, for the sentence.

    Raises:
        RunError: with the space that is needed and the space that is free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(f"{folder}: {what} need {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")


def new_file_mode() -> int:
    """The mode that the umask gives to a new file; some libraries' files can be read by their owner only."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


@contextlib.contextmanager
def locked(path: str, wait: bool = False) -> Iterator[int]:
    """Lock a folder, or a file that is created where missing; the lock ends with the block, or with the process.

    Args:
        path: a folder that exists, or a file.
        wait: wait until another process lets go of it.

    Yields:
        int, the descriptor that holds the lock; a process that inherits it holds the lock as well.

    Raises:
        BlockingIOError: if another process holds the lock, unless `wait`.
        OSError: if the file cannot be opened. A file system without locks is no error: nothing is locked there.
    """
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def link_with_suffix(path: str, suffix: str) -> Iterator[str]:
    """Give a file another name for the length of a block, for libraries that insist on a suffix."""
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, f"link{suffix}")
        os.symlink(os.path.abspath(path), link)
        yield link


def file_sha256(path: str) -> str:
    """The SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
