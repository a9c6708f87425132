"""C and C++ sources, compiled on first use into a cache with the machine's compiler.

A compiler is optional: whatever is written in C or C++ here has a slower substitute that needs none.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence

from src.common.files import atomic_path, locked
from src.common.interrupt import run_child
from src.common.machine import cpu_flags

COMPILERS = {"CC": ("C", "cc", "gcc", "clang"), "CXX": ("C++", "g++", "c++", "clang++")}
"""The environment variable that names a compiler: its language, and what is tried after it."""
SECONDS = 300
KEPT = 8
"""Libraries of one name that the cache holds: a home folder may be shared by machines that differ."""


class CompileError(Exception):
    """A source that cannot be compiled here; the sentence says what is missing."""


def find_compiler(variable: str) -> list[str]:
    """The compiler's command, as a list of words.

    Args:
        variable: one of COMPILERS.

    Raises:
        CompileError: if there is none.
    """
    language, *names = COMPILERS[variable]
    for command in (os.environ.get(variable, ""), *names):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise CompileError(f"there is no {language} compiler")


def compile_library(name: str, compiler: Sequence[str], flags: Sequence[Sequence[str]], sources: Sequence[str]) -> str:
    """Compile a shared library, unless that has been done on this machine.

    Args:
        name: the beginning of the library's file name.
        compiler: words of the compiler's command.
        flags: lists of arguments for the compiler: everything but the output. Each list is tried where those before it
            failed.
        sources: paths of all files that the library depends on.

    Returns:
        str, its path. It appears whole or not at all.

    Raises:
        CompileError: if it cannot be compiled, or the file cannot be kept.
    """
    path = os.path.join(cache_folder(), f"{name}-{library_digest(compiler, flags, sources)}.so")
    if loads(path):
        with contextlib.suppress(OSError):
            os.utime(path)  # it is in use: `remove_old` keeps it
        return path
    try:
        with locked(f"{path}.lock", wait=True, needed=False):
            # Another process may have made it while this one waited.
            if not loads(path):
                compile_first(compiler, flags, path)
                remove_old(os.path.dirname(path), name)
    except OSError as error:
        raise CompileError(f"{path} cannot be made ({error})") from None
    return path


def cache_folder() -> str:
    """A folder that only this user can write to: in $XDG_CACHE_HOME or ~/.cache, else among the temporary files.

    Raises:
        CompileError: if there is none.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    for folder in (os.path.join(home, "efficientnet-mindspore"), temporary_folder()):
        if is_private_folder(folder):
            return folder
    raise CompileError(f"this user can keep compiled files neither in {home} nor in {tempfile.gettempdir()}")


def temporary_folder() -> str:
    """The path of this user's folder among the temporary files, where somebody else may have put something."""
    return os.path.join(tempfile.gettempdir(), f"efficientnet-mindspore-{os.getuid()}")


def is_private_folder(folder: str) -> bool:
    """Whether a folder is there, made where missing, and only this user can write to it: others' code is not loaded.

    A link is none: whoever made it chose where it leads to.
    """
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError:
        return False
    if not stat.S_ISDIR(status.st_mode):
        return False
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others and os.access(folder, os.W_OK)


def library_digest(compiler: Sequence[str], flags: Sequence[Sequence[str]], sources: Sequence[str]) -> str:
    """What changes with the sources, the compiler, the flags and the processor: 32 hexadecimal digits."""
    version = run_child([*compiler, "--version"], capture_output=True, timeout=SECONDS).stdout
    parts = [version, processor().encode(), repr((list(compiler), [list(words) for words in flags])).encode()]
    for source in sources:
        with open(source, "rb") as file:
            parts += [os.path.basename(source).encode(), file.read()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def processor() -> str:
    """What the processor can do: a home folder may be shared by machines that differ."""
    return " ".join([platform.machine(), *sorted(cpu_flags())])


def loads(path: str) -> bool:
    """Whether a library is there and whole: a full disk may have cut it short."""
    if os.path.isfile(path):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path)
            return True
    return False


def remove_old(folder: str, name: str) -> None:
    """Remove the libraries of a name that were used longest ago, of earlier sources or compilers, and what was cut off.

    A process that has loaded one keeps it.
    """
    library, unfinished = (re.compile(p + re.escape(name) + r"-[0-9a-f]{32}\.so") for p in ("", r"\..*\.tmp-"))
    with contextlib.suppress(OSError):
        times = {entry.name: entry.stat().st_mtime for entry in os.scandir(folder)}
        by_use = sorted(filter(library.fullmatch, times), key=times.get, reverse=True)
        killed = [other for other in filter(unfinished.fullmatch, times) if times[other] < time.time() - 10 * SECONDS]
        for old in [*by_use[KEPT:], *(f"{other}.lock" for other in by_use[KEPT:]), *killed]:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, old))


def compile_first(compiler: Sequence[str], flags: Sequence[Sequence[str]], path: str) -> None:
    """Compile with the first flags that work.

    Raises:
        CompileError: with the last ones' first complaint.
    """
    *others, last = flags
    for words in others:
        with contextlib.suppress(CompileError):
            return run_compiler(compiler, words, path)
    run_compiler(compiler, last, path)


def run_compiler(compiler: Sequence[str], flags: Sequence[str], path: str) -> None:
    """Run the compiler.

    Raises:
        CompileError: with its first complaint.
    """
    with atomic_path(path) as unfinished:
        command = [*compiler, *flags, "-o", unfinished]
        try:
            done = run_child(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise CompileError(f"{compiler[0]} took more than {SECONDS} seconds") from None
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
            raise CompileError(f"{compiler[0]} failed: {lines[0] if lines else f'exit code {done.returncode}'}")
