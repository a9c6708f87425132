"""The machine: its processor, how many cores and how much memory a process may use, and work in threads."""

from __future__ import annotations

import concurrent.futures
import math
import os
import platform
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Callable

CPUINFO = "/proc/cpuinfo"
MEMINFO = "/proc/meminfo"
CGROUP = "/sys/fs/cgroup"
OWN_CGROUP = "/proc/self/cgroup"
MOST_ON_HOST = 8
"""Ranks on one host, of which there may be several."""
X86 = ("x86_64", "amd64", "i386", "i686")


def usable_cores() -> list[int]:
    """Numbers of the cores that this process may run on, sorted."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def count_cores() -> int:
    """How many cores' time this process may use: those that it may run on, and no more than a container's limit."""
    return min(len(usable_cores()), cpu_limit() or sys.maxsize)


def count_own_cores(processes: int = 1) -> int:
    """How many cores one of so many processes, which train together, has for itself: the host's share them.

    A process that is bound to some of the cores, as our launcher binds each rank, need not share these.
    """
    cores = count_cores()
    if len(usable_cores()) == os.cpu_count():
        cores //= max(1, min(processes, MOST_ON_HOST))
    return max(1, cores)


def cpu_limit(cgroup: str = CGROUP, own: str = OWN_CGROUP) -> int | None:
    """Cores' worth of time that a container or a job scheduler gives this process, rounded up; None without a limit."""
    limits = []
    for folder in control_groups("cpu", cgroup, own):
        text = read_text(folder, "cpu.max") or " ".join(
            (read_text(folder, "cpu.cfs_quota_us"), read_text(folder, "cpu.cfs_period_us"))
        )
        quota, _, period = text.partition(" ")
        # "max" or -1 is no limit.
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(max(1, math.ceil(int(quota) / int(period))))
    return min(limits, default=None)


def control_groups(controller: str, cgroup: str = CGROUP, own: str = OWN_CGROUP) -> Iterator[str]:
    """Folders of the control groups whose limits hold for this process: its own, and those around it.

    Args:
        controller: "cpu" or "memory".
        cgroup: where the control groups are mounted.
        own: file in which the kernel says which groups this process is in. In a container its paths may be the host's;
            the container's own group is then the mount itself.
    """
    for line in read_lines(own) or ["0::/"]:
        _, names, path = line.strip().split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = os.path.join(cgroup, controller) if names else cgroup
        parts = path.strip("/").split("/")
        for count in range(len(parts), -1, -1):
            yield os.path.join(root, *parts[:count])


def cpu_flags(path: str = CPUINFO, machine: str | None = None) -> frozenset[str]:
    """The processor's features in the kernel's words ("avx2", "asimd"); empty where the kernel does not say.

    Args:
        path: the kernel's description of the processor. Under an emulator it is the host's.
        machine: the architecture; None takes this machine's. Only features in its own words count.
    """
    machine = machine or platform.machine()
    return frozenset(read_field(("flags",) if machine.lower() in X86 else ("features",), path).split())


def cpu_name() -> str:
    """The processor's name, or at least its architecture."""
    name = read_field(("model name",)) if platform.machine().lower() in X86 else ""
    return name or platform.processor() or platform.machine()


def read_field(names: tuple[str, ...], path: str = CPUINFO) -> str:
    """The first value of a file like /proc/cpuinfo under one of these names; empty where there is none."""
    for line in read_lines(path):
        name, _, value = line.partition(":")
        if name.strip().lower() in names:
            return value.strip()
    return ""


def read_lines(path: str) -> list[str]:
    """The lines of a file of the kernel's; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []


def read_text(folder: str, name: str) -> str:
    """The first line of a file of a control group; empty where there is no such file."""
    return "".join(read_lines(os.path.join(folder, name))[:1]).strip()


def available_memory(meminfo: str = MEMINFO, cgroup: str = CGROUP, own: str = OWN_CGROUP) -> int:
    """Bytes that a process may still take: what the machine has free, and no more than a container's limit leaves."""
    kilobytes = read_field(("memavailable",), meminfo).split()
    free = int(kilobytes[0]) * 1024 if kilobytes else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in control_groups("memory", cgroup, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = read_text(folder, limit), read_text(folder, used)
            # "max" is no limit.
            if most.isdigit() and now.isdigit():
                free = min(free, max(0, int(most) - int(now)))
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
