"""The processor: what it is called, what it can do, and how many of its cores this process may use."""

from __future__ import annotations

import os
import platform

CPUINFO = "/proc/cpuinfo"


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may use, sorted."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_cores() -> int:
    """How many cores this process may use."""
    return len(usable_cores())


def cpu_flags(path: str = CPUINFO) -> frozenset[str]:
    """The processor's features in the kernel's words ("avx2", "asimd"); empty where the kernel does not say."""
    return frozenset(read_field(("flags", "features"), path).split())


def cpu_name() -> str:
    """The processor's name, or at least its architecture."""
    return read_field(("model name",)) or platform.processor() or platform.machine()


def read_field(names: tuple[str, ...], path: str = CPUINFO) -> str:
    """The first value of /proc/cpuinfo under one of these names; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip().lower() in names:
                    return value.strip()
    except OSError:
        pass
    return ""
