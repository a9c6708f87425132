"""Files that appear whole or not at all, locks, and digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator

from src.common.cli import RunError, UsageError
from src.common.interrupt import unfinished

MOST_LINKS = 40
"""As many symbolic links in a row as Linux follows."""


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """Give the name of a temporary file beside `path` and rename it to `path` when the block succeeds.

    The file appears whole or not at all: the temporary file is synced before the rename, the folder after it, and an
    exception removes the temporary file and leaves an existing `path` as it was. Missing parent folders are created.
    A symbolic link stays, and the file that it leads to is replaced. What is no regular file (`/dev/null`,
    `/dev/stdout`, a named pipe) stays as well, and the finished file is written into it.

    Raises:
        OSError: if the folder cannot be written or has no space.
    """
    named, path = os.fspath(path), os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a directory", named)
    with contextlib.ExitStack() as held:
        stream = held.enter_context(open_stream(named)) if is_stream(named) else None
        if stream:
            folder = held.enter_context(scratch_folder())
        else:
            folder = os.path.dirname(path)
            os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp-" + os.path.basename(named)[-100:], dir=folder)
        os.close(handle)
        unfinished.add(temporary)
        try:
            yield temporary
            if stream:
                pour(temporary, stream.fileno())
            else:
                put_in_place(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.remove(temporary)
            # A full disk's error does not say which file was being written.
            if isinstance(error, OSError) and error.filename is None:
                raise OSError(error.errno, error.strerror, named) from error
            raise
        finally:
            unfinished.discard(temporary)


def put_in_place(temporary: str, path: str) -> None:
    """Give a finished file its name, for good."""
    # mkstemp and MindSpore's writers make files that only their owner may read.
    os.chmod(temporary, new_file_mode())
    with open(temporary, "rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, path)
    sync_folder(os.path.dirname(path))


def pour(path: str, descriptor: int) -> None:
    """Write a file's bytes to a descriptor."""
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]


def is_stream(path: str) -> bool:
    """Whether a path leads to what is no regular file and no folder: a device, a named pipe, a descriptor."""
    if find_descriptor(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def open_stream(path: str) -> io.FileIO:
    """Open what `is_stream` for writing.

    Raises:
        OSError: if it cannot be written.
    """
    descriptor = find_descriptor(path)
    if descriptor is None:
        return open(path, "wb", buffering=0)
    # The descriptor itself: a file that it was opened on goes on from its position, and is not replaced.
    sys.stdout.flush()
    return os.fdopen(os.dup(descriptor), "wb", buffering=0)


def find_descriptor(path: str) -> int | None:
    """The number of the descriptor of this process that a path such as `/dev/stdout` is a name of, or None."""
    own = f"/proc/{os.getpid()}/fd"
    for _ in range(MOST_LINKS):
        folder, name = os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.basename(path)
        if folder == own and name.isdecimal():
            return int(name)
        path = os.path.join(folder, name)
        if not os.path.islink(path):
            break
        path = os.path.join(folder, os.readlink(path))
    return None


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
def locked(path: str, wait: bool = False, needed: bool = True) -> Iterator[int]:
    """Lock a folder, or a file that is created where missing; the lock ends with the block, or with the process.

    Args:
        path: a folder that exists, or a file.
        wait: wait until another process lets go of it.
        needed: whether a second process in the block would harm the first. If not, a file system without locks is
            named once in a warning, and the block runs without the lock.

    Yields:
        int, the descriptor that holds the lock; a process that inherits it holds the lock as well.

    Raises:
        BlockingIOError: if another process holds the lock, unless `wait`.
        RunError: if the file system has no locks, and the lock is `needed`.
        OSError: if the file cannot be opened.
    """
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            folder = path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))
            missing = f"{folder}: its file system has no locks ({error.strerror})"
            if needed:
                raise RunError(
                    f"{missing}, which keep a second process from writing there at the same time; name a folder on "
                    "another one, or mount this one with locks"
                ) from None
            warn_once(f"{missing}; processes that start together may do the same work twice")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_alone(folder: str) -> Iterator[None]:
    """Keep other programs that write to a folder out of it.

    Raises:
        UsageError: if there is one.
        RunError, OSError: as `locked` does.
    """
    try:
        with locked(folder):
            yield
    except BlockingIOError:
        raise UsageError(
            f"{folder}: another process is writing to it; wait for its end, or name another folder"
        ) from None


@contextlib.contextmanager
def unchanged(path: str) -> Iterator[None]:
    """Refuse what a block has read of a file if the file was replaced, or written to, meanwhile.

    Raises:
        RunError: if it was.
        OSError: if there is no such file.
    """

    def identity() -> tuple[int, ...]:
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    before = identity()
    try:
        yield
    except RunError:
        # Part of the one and part of the other file may look damaged.
        if identity() == before:
            raise
    if identity() != before:
        raise RunError(f"{path}: the file changed while it was read; start again once it is written")


@functools.cache
def warn_once(sentence: str) -> None:
    """Print a warning, the first time that it is given."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def scratch_folder(**options) -> Iterator[str]:
    """`tempfile.TemporaryDirectory`, which Ctrl-C removes as well."""
    with tempfile.TemporaryDirectory(**options) as folder:
        unfinished.add(folder)
        try:
            yield folder
        finally:
            unfinished.discard(folder)


@contextlib.contextmanager
def link_with_suffix(path: str, suffix: str) -> Iterator[str]:
    """Give a file another name for the length of a block, for libraries that insist on a suffix."""
    with scratch_folder() as folder:
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
