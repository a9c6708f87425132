"""The machine that a benchmark ran on, in one line."""

from __future__ import annotations

import importlib.metadata
import platform

from src.common.machine import count_cores, cpu_name


def describe_machine(*packages: str) -> str:
    """Processor, cores that this process may use, Python, and the versions of these packages."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return f"{cpu_name()}, {count_cores()} cores; Python {platform.python_version()}, {versions}"
