"""C sources compiled on first use with the machine's compiler into a cache, for loops that Python cannot make fast.

Nobody needs a compiler: what is written in C here also exists without it, slower, and with the same results.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from src.cli import atomic_path

# No fused multiply-add: results are to be the same on every processor. "native" where the compiler knows the word.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")
FASTER = ("-march=native",)
SECONDS = 120


class CompileError(Exception):
    """A source that cannot be compiled here; the sentence says what is missing."""


def load_compiled(source: str, libraries: Sequence[str] = ()) -> ctypes.CDLL:
    """Compile a C file, unless that has been done on this machine, and load it.

    Args:
        source: path of the C file.
        libraries: what it is linked with, as the linker calls them.

    Raises:
        CompileError: without a compiler, a header or a library.
    """
    compiler = find_compiler()
    with cache_folder() as folder:
        cached = os.path.join(folder, f"{identity(source, compiler, libraries)}.so")
        if os.path.isfile(cached):
            # One that was cut short by a full disk is made anew.
            with contextlib.suppress(OSError):
                return ctypes.CDLL(cached)
        try:
            with atomic_path(cached) as path:
                compile_source(source, compiler, libraries, path)
            return ctypes.CDLL(cached)
        except OSError as error:
            raise CompileError(f"{os.path.basename(source)} cannot be compiled to {cached} ({error})") from None


def find_compiler() -> list[str]:
    """The words of the C compiler's command.

    Raises:
        CompileError: if there is none.
    """
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise CompileError("there is no C compiler")


@contextlib.contextmanager
def cache_folder() -> Iterator[str]:
    """Where compiled files are kept: the user's cache, if it is the user's own; else a folder that goes again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(home, "efficientnet-mindspore")
    if is_private_folder(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="efficientnet-mindspore-") as folder:
        yield folder


def is_private_folder(folder: str) -> bool:
    """Whether a folder is there, made where missing, and only this user can write to it: others' code is not loaded."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.stat(folder)
    except OSError:
        return False
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return status.st_uid == os.getuid() and not others and os.access(folder, os.W_OK)


def identity(source: str, compiler: Sequence[str], libraries: Sequence[str]) -> str:
    """A name that changes with the source, the compiler, the flags and the processor."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=SECONDS).stdout
    with open(source, "rb") as file:
        parts = [file.read(), version, processor().encode(), repr((compiler, FLAGS, FASTER, libraries)).encode()]
    digest = hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return f"{os.path.splitext(os.path.basename(source))[0]}-{digest[:32]}"


def processor() -> str:
    """What the processor can do: a home folder may be shared by machines that differ."""
    text = platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            text += next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        pass
    return text


def compile_source(source: str, compiler: Sequence[str], libraries: Sequence[str], path: str) -> None:
    """Run the compiler.

    Raises:
        CompileError: with its first complaint.
    """
    complaint = ""
    for faster in (FASTER, ()):
        command = [*compiler, *FLAGS, *faster, source, "-o", path, *(f"-l{name}" for name in libraries), "-lm"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise CompileError(f"{compiler[0]} took more than {SECONDS} seconds") from None
        if result.returncode == 0:
            return
        lines = [line for line in result.stderr.splitlines() if "error" in line or "cannot find" in line]
        complaint = lines[0] if lines else f"exit code {result.returncode}"
    raise CompileError(f"{compiler[0]} failed: {complaint.strip()}")
