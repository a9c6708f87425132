"""The machine that a benchmark ran on, in one line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re


def describe_machine(*packages: str) -> str:
    """Processor, cores that this process may use, Python, and the versions of these packages."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
        name = found[1] if found else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return f"{name}, {cores} cores; Python {platform.python_version()}, {versions}"
