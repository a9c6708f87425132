"""MD5 sums, computed in a thread beside the work on the file."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

from src.common.cli import RunError

HASHED_AT_ONCE = 1 << 22
"""Bytes."""


class WrongSum(RunError):
    """A file that is not the published one."""


def file_md5(path: str, on_bytes: Callable = lambda count: None, stop: threading.Event | None = None) -> str:
    """The MD5 sum of a file in hexadecimal digits; of a part of it if `stop` is set meanwhile."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb", buffering=0) as file:
        while (block := file.read(HASHED_AT_ONCE)) and not (stop and stop.is_set()):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def compare_md5(path: str, found: str, expected: str) -> None:
    """Compare MD5 sums.

    Raises:
        WrongSum: if they differ.
    """
    if found != expected:
        raise WrongSum(f"{path}: its MD5 sum is {found}, not {expected} as published; download it again")


@contextlib.contextmanager
def checked_md5(path: str | None, expected: str, on_bytes: Callable) -> Iterator[Callable]:
    """Compute a file's MD5 sum in a thread while the block works; None stands for a file whose sum nobody published.

    Yields:
        function of `wait`, which raises `WrongSum` if the sum is known to be wrong; with `wait` it waits for the sum.
    """
    if path is None:
        yield lambda wait=False: None
        return
    stop = threading.Event()
    with ThreadPoolExecutor(1, "md5") as executor:
        future = executor.submit(file_md5, path, on_bytes, stop)

        def check(wait: bool = False) -> None:
            if wait or future.done():
                compare_md5(path, future.result(), expected)

        try:
            yield check
        finally:
            stop.set()
