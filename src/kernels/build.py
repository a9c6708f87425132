"""Compile the kernels on first use, into a cache, for the instruction set of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from typing import Dict, Iterator, List, Optional

from src.cli import RunError

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpu")
# Instruction sets from the widest to the one that every machine has, with what the compiler is told. The flags of
# /proc/cpuinfo that a set needs have the names of the compiler's.
LEVELS: Dict[str, List[str]] = {
    "avx512": ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"],
    "avx2": ["avx2", "fma"],
    "generic": [],
}
VECTOR_BYTES = {"avx512": 64, "avx2": 32, "generic": 16}
# nodelete: MindSpore closes a library with its last operator, while the pool's threads still wait inside.
FLAGS = (
    "-std=gnu++17 -O2 -fPIC -shared -pthread -fvisibility=hidden -fno-gnu-unique -Wl,-z,nodelete -static-libstdc++ "
    "-static-libgcc"
).split()
COMPILE_SECONDS = 300


def find_level(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The widest instruction set of this machine: "avx512", "avx2" or "generic" (SSE2, NEON, whatever there is)."""
    try:
        with open(cpuinfo) as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        lines = []
    flags = set(lines[0].split(":", 1)[1].split()) if lines else set()
    return next(level for level, needed in LEVELS.items() if set(needed) <= flags)


def compile_command(compiler: str, level: str, output: str) -> List[str]:
    """The command that makes the library of a level."""
    enable = [f"-m{name}" for name in LEVELS[level]]
    vectors = f"-DVECTOR_BYTES={VECTOR_BYTES[level]}"
    return [compiler, *FLAGS, *enable, vectors, os.path.join(SOURCES, "kernels.cpp"), "-o", output]


def library(level: Optional[str] = None) -> str:
    """The path of the compiled kernels; compiles them where the cache has none of these sources.

    Args:
        level: instruction set; None takes the machine's.

    Raises:
        RunError: where there is no compiler, or it fails.
    """
    level = level or find_level()
    compiler = find_compiler()
    name = f"kernels-{level}-{cache_key(compiler, level)}.so"
    folder = cache_folder()
    path = os.path.join(folder, name)
    if os.path.isfile(path):
        return path
    with lock(os.path.join(folder, "lock")):
        # Another process may have made it while this one waited.
        if not os.path.isfile(path):
            compile_library(compiler, level, path)
    return path


def find_compiler() -> str:
    """The C++ compiler: $CXX, g++, c++ or clang++.

    Raises:
        RunError: if there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        found = name and shutil.which(name)
        if found:
            return found
    raise RunError("there is no C++ compiler (g++)")


def cache_key(compiler: str, level: str) -> str:
    """A digest of all that the library depends on: sources, flags, compiler, machine."""
    digest = hashlib.sha256()
    digest.update(" ".join(compile_command(os.path.realpath(compiler), level, "")).encode())
    digest.update(platform.machine().encode())
    digest.update(str(os.stat(compiler).st_mtime_ns).encode())
    for name in sorted(os.listdir(SOURCES)):
        with open(os.path.join(SOURCES, name), "rb") as file:
            digest.update(name.encode() + b"\0" + file.read() + b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> str:
    """A folder that only this user can write to: in $XDG_CACHE_HOME or ~/.cache, else among the temporary files."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = os.path.join(tempfile.gettempdir(), f"efficientnet-mindspore-{os.getuid()}")
    for folder in (os.path.join(base, "efficientnet-mindspore"), temporary):
        with contextlib.suppress(OSError):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            status = os.stat(folder)
            # A library from a folder that others can write to would be theirs to choose.
            private = status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if private and os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise RunError(f"neither {base} nor {tempfile.gettempdir()} lets this user keep files")


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
    """Hold a file's lock, which ends with the process."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_library(compiler: str, level: str, path: str) -> None:
    """Compile to a temporary name and move the result to `path`, so that it appears whole or not at all."""
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=os.path.dirname(path))
    os.close(handle)
    try:
        done = subprocess.run(
            compile_command(compiler, level, unfinished), capture_output=True, text=True, timeout=COMPILE_SECONDS
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
            raise RunError(f"{compiler} failed: {lines[0]}")
        os.replace(unfinished, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{compiler} failed: {error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
