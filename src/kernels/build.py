"""Compile the kernels on first use, into a cache, for the instruction set of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from src.common.native import compile_library, find_compiler

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


def find_level(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The widest instruction set of this machine: "avx512", "avx2" or "generic"."""
    try:
        with open(cpuinfo) as file:
            lines = [line for line in file if line.startswith("flags")]
    except OSError:
        lines = []
    flags = set(lines[0].split(":", 1)[1].split()) if lines else set()
    return next(level for level, (needed, _) in LEVELS.items() if set(needed) <= flags)


def compile_flags(level: str, flags: Sequence[str] = FLAGS) -> list[str]:
    """What the compiler needs for a level, the source among it, but for the output."""
    needed, vector_bytes = LEVELS[level]
    enable = [f"-m{name}" for name in needed]
    return [*flags, *enable, f"-DVECTOR_BYTES={vector_bytes}", os.path.join(SOURCES, "kernels.cpp")]


def library(level: str | None = None) -> str:
    """The path of the compiled kernels, which are compiled where the cache does not have them.

    Args:
        level: instruction set; None takes the machine's.

    Raises:
        CompileError: where they cannot be compiled or kept.
    """
    level = level or find_level()
    flags = [[*compile_flags(level), *runtime] for runtime in RUNTIMES]
    sources = [os.path.join(SOURCES, name) for name in sorted(os.listdir(SOURCES))]
    return compile_library(f"kernels-{level}", find_compiler("CXX"), flags, sources)
