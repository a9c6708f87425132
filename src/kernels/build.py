"""Compile the kernels on first use, into a cache, for the instruction set of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence

from src.common.machine import cpu_flags
from src.common.native import CompileError, compile_library, find_compiler

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpu")
# Instruction sets from the widest to the one that every machine has: the features that each needs, in the words of the
# kernel and the compiler alike, and the bytes of a vector. "generic" is SSE2, NEON or whatever the machine has.
LEVELS = {
    "avx512": (("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"), 64),
    "avx2": (("avx2", "fma"), 32),
    "generic": ((), 16),
}
SWITCH = "KERNELS"
"""The environment variable that names a narrower level than the processor's."""
# nodelete: MindSpore closes a library with its last operator, while the pool's threads still wait inside.
FLAGS = "-std=gnu++17 -O2 -fPIC -shared -pthread -fvisibility=hidden -fno-gnu-unique -Wl,-z,nodelete".split()
# A library that brings its own runtime loads beside any other; not every compiler comes with a static one.
RUNTIMES = (("-static-libstdc++", "-static-libgcc"), ())


def find_levels(flags: frozenset[str] | None = None) -> list[str]:
    """The instruction sets of a processor, of "avx512", "avx2" and "generic", the widest first.

    Args:
        flags: what the processor can do, see `machine.cpu_flags`; None takes this machine's.
    """
    flags = cpu_flags() if flags is None else flags
    return [level for level, (needed, _) in LEVELS.items() if flags.issuperset(needed)]


def compile_flags(level: str, flags: Sequence[str] = FLAGS) -> list[str]:
    """What the compiler needs for a level, the source among it, but for the output."""
    needed, vector_bytes = LEVELS[level]
    enable = [f"-m{name}" for name in needed]
    return [*flags, *enable, f"-DVECTOR_BYTES={vector_bytes}", os.path.join(SOURCES, "kernels.cpp")]


def library(level: str | None = None, more: Sequence[str] = ()) -> str:
    """The path of the compiled kernels, which are compiled where the cache does not have them.

    Args:
        level: instruction set; None takes the one that SWITCH names, else the machine's.
        more: further arguments for the compiler.

    Raises:
        CompileError: where they cannot be compiled or kept, or SWITCH names no level that the machine has.
    """
    levels = find_levels()
    level = level or os.environ.get(SWITCH) or levels[0]
    if level not in levels:
        raise CompileError(f"{SWITCH} is '{level}', but this processor has {' and '.join(levels)}")
    flags = [[*compile_flags(level), *more, *runtime] for runtime in RUNTIMES]
    sources = [os.path.join(SOURCES, name) for name in sorted(os.listdir(SOURCES))]
    return compile_library(f"kernels-{level}", find_compiler("CXX"), flags, sources)
