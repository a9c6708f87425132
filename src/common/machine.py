"""The machine: its processor, how many cores and how much memory a process may use, and work in threads."""

from __future__ import annotations

import concurrent.futures
import os
import platform
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Callable

CPUINFO = "/proc/cpuinfo"
MEMINFO = "/proc/meminfo"
CGROUP = "/sys/fs/cgroup"


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
    """The first value of a file like /proc/cpuinfo under one of these names; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip().lower() in names:
                    return value.strip()
    except OSError:
        pass
    return ""


def available_memory(meminfo: str = MEMINFO, cgroup: str = CGROUP) -> int:
    """Bytes that a process may still take: what the machine has free, and no more than a container's limit leaves."""
    kilobytes = read_field(("memavailable",), meminfo).split()
    free = int(kilobytes[0]) * 1024 if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            with open(os.path.join(cgroup, limit)) as most, open(os.path.join(cgroup, used)) as now:
                free = min(free, max(0, int(most.read()) - int(now.read())))
        except (OSError, ValueError):
            # No container, or one without a limit ("max").
            continue
    return free


def map_in_order(function: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """`map` in threads that work on at most `ahead` items before they are asked for."""
    with concurrent.futures.ThreadPoolExecutor(workers, "images") as executor:
        pending: deque[concurrent.futures.Future] = deque()
        try:
            for item in items:
                pending.append(executor.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
