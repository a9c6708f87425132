"""Compile the kernels on first use, into a cache, for the instruction set of this machine."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from src.cli import RunError, atomic_path
from src.compile_c import is_private_folder

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpu")
# Instruction sets from the widest to the one that every machine has, each with what of /proc/cpuinfo it needs, which
# are also the compiler's names, and the bytes of its vectors. "generic" is SSE2, NEON or whatever the machine has.
LEVELS = {
    "avx512": (("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"), 64),
    "avx2": (("avx2", "fma"), 32),
    "generic": ((), 16),
}
# nodelete: MindSpore closes a library with its last operator, while the pool's threads still wait inside.
FLAGS = "-std=gnu++17 -O2 -fPIC -shared -pthread -fvisibility=hidden -fno-gnu-unique -Wl,-z,nodelete".split()
# A library that brings its own runtime loads beside any other; not every compiler comes with a static one.
RUNTIMES = (("-static-libstdc++", "-static-libgcc"), ())
SECONDS = 300


def find_level(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The widest instruction set of this machine: "avx512", "avx2" or "generic"."""
    try:
        with open(cpuinfo) as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        lines = []
    flags = set(lines[0].split(":", 1)[1].split()) if lines else set()
    return next(level for level, (needed, _) in LEVELS.items() if set(needed) <= flags)


def compile_command(compiler: Sequence[str], level: str, output: str, flags: Sequence[str] = FLAGS) -> list[str]:
    """The command that compiles the kernels for a level."""
    needed, vector_bytes = LEVELS[level]
    enable = [f"-m{name}" for name in needed]
    source = os.path.join(SOURCES, "kernels.cpp")
    return [*compiler, *flags, *enable, f"-DVECTOR_BYTES={vector_bytes}", source, "-o", output]


def library(level: str | None = None) -> str:
    """The path of the compiled kernels, which are compiled where the cache does not have them.

    Args:
        level: instruction set; None takes the machine's.

    Raises:
        RunError: where they cannot be compiled or kept.
    """
    level = level or find_level()
    compiler = find_compiler()
    path = os.path.join(cache_folder(), f"kernels-{level}-{identity(compiler, level)}.so")
    if loads(path):
        return path
    try:
        with lock(f"{path}.lock"):
            # Another process may have made it while this one waited.
            if not loads(path):
                compile_library(compiler, level, path)
    except OSError as error:
        raise RunError(f"{path} cannot be made ({error})") from None
    return path


def find_compiler() -> list[str]:
    """The words of the C++ compiler's command: $CXX, g++, c++ or clang++.

    Raises:
        RunError: if there is none.
    """
    for command in (os.environ.get("CXX", ""), "g++", "c++", "clang++"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise RunError("there is no C++ compiler")


def identity(compiler: Sequence[str], level: str) -> str:
    """A name for all that the library depends on: sources, flags, compiler, machine."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=SECONDS).stdout
    parts = [version, platform.machine().encode(), repr((compile_command(compiler, level, ""), RUNTIMES)).encode()]
    for name in sorted(os.listdir(SOURCES)):
        with open(os.path.join(SOURCES, name), "rb") as file:
            parts += [name.encode(), file.read()]
    return hashlib.sha256(b"\0".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:32]


def cache_folder() -> str:
    """A folder that only this user can write to: in $XDG_CACHE_HOME or ~/.cache, else among the temporary files.

    Raises:
        RunError: if there is none.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = os.path.join(tempfile.gettempdir(), f"efficientnet-mindspore-{os.getuid()}")
    for folder in (os.path.join(home, "efficientnet-mindspore"), temporary):
        if is_private_folder(folder):
            return folder
    raise RunError(f"this user can keep compiled files neither in {home} nor in {tempfile.gettempdir()}")


def loads(path: str) -> bool:
    """Whether a library is there and whole."""
    if os.path.isfile(path):
        with contextlib.suppress(OSError):
            ctypes.CDLL(path)
            return True
    return False


@contextlib.contextmanager
def lock(path: str) -> Iterator[None]:
    """Hold a file's lock, so that processes that start together compile once; it ends with the process."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compile_library(compiler: Sequence[str], level: str, path: str) -> None:
    """Compile; the library appears at `path` whole or not at all.

    Raises:
        RunError: with the compiler's first complaint.
    """
    failures = []
    for runtime in RUNTIMES:
        try:
            with atomic_path(path) as unfinished:
                run_compiler([*compile_command(compiler, level, unfinished), *runtime])
            return
        except RunError as error:
            failures.append(error)
    raise failures[-1]


def run_compiler(command: Sequence[str]) -> None:
    """Run the compiler.

    Raises:
        RunError: with its first complaint.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]} took more than {SECONDS} seconds") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if "error" in line or "cannot find" in line]
        raise RunError(f"{command[0]} failed: {lines[0] if lines else f'exit code {done.returncode}'}")
