"""Work on many items in threads, in order, with a bound on how many are under way."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Callable


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
