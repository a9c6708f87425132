"""What every script needs at its edges: errors as sentences, checked flags, files that appear whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Callable, NoReturn, Optional


class UsageError(Exception):
    """The command cannot mean what it says: unknown flag, bad value, contradiction. Exit code 2."""

    exit_code = 2


class RunError(Exception):
    """The command was right and failed: unreadable file, full disk, broken checkpoint. Exit code 1."""

    exit_code = 1


class ArgumentParser(argparse.ArgumentParser):
    """`argparse` that reports a wrong flag as one sentence and accepts no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {os.path.basename(sys.argv[0])} --help)")


def parse_bool(text: str) -> bool:
    """Read a flag's `True` or `False` as the model zoo's scripts write it."""
    value = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(str(text).lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected True or False, not '{text}'")
    return value


def parse_positive_int(text: str) -> int:
    """Read a flag's whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not '{text}'")
    return value


def run_cli(main: Callable[[Optional[Sequence[str]]], Optional[int]], argv: Optional[Sequence[str]] = None) -> int:
    """Run a script's `main(argv)` and turn what a user can do wrong into one sentence and an exit code.

    Returns:
        int, the exit code: what `main` returned (None counts as 0), 2 for a UsageError, 1 for a failed run.
    """
    try:
        return main(argv) or 0
    except (UsageError, RunError) as error:
        sentence, code = str(error), error.exit_code
    except KeyboardInterrupt:
        sentence, code = "stopped by the user", 130
    except BrokenPipeError:
        # The reader of our output (head, less) left: nothing to say, and nobody to say it to.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        sentence, code = describe_os_error(error), 1
    except MemoryError:
        sentence, code = "not enough memory; a smaller --batch_size needs less", 1
    sys.stdout.flush()
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)
    return code


def describe_os_error(error: OSError) -> str:
    """Say in words what the operating system refused, with the file it refused."""
    reason = {
        errno.ENOSPC: "there is no space left on the device",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "permission was denied",
        errno.EPERM: "the operation is not permitted",
        errno.EROFS: "the file system is read-only",
        errno.ENOENT: "there is no such file or directory",
        errno.EISDIR: "it is a directory",
        errno.ENOTDIR: "a part of the path is not a directory",
    }.get(error.errno, error.strerror or str(error))
    return f"{error.filename}: {reason}" if error.filename else reason


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
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, (stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IROTH) & ~umask)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
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
