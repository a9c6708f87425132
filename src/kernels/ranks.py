"""The mean of gradients over ranks that are processes of one machine, through memory that they share."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence

from mindspore import nn

from src.kernels.operators import operator

NAME = "efficientnet-{}"


class SharedMean(nn.Cell):
    """The mean over all ranks that have joined, see `map_memory`; it waits for them.

    Args:
        library: path of the compiled kernels.
        shapes: of the float32 tensors.

    Inputs: tuple of tensors. Outputs: tuple of tensors of the same shapes, with the same bits on all ranks.
    """

    def __init__(self, library: str, shapes: Sequence[tuple[int, ...]]):
        super().__init__(auto_prefix=False)
        shapes = tuple(list(shape) for shape in shapes)
        self.operator = operator(f"{library}:mean_over_ranks", lambda *_: shapes, len(shapes))

    def construct(self, tensors):
        return self.operator(*tensors)


def create_memory(library: str, token: int, ranks: int, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Memory for tensors of these shapes on as many ranks, as a file that ends with the processes which have it open.

    Args:
        library: path of the compiled kernels.
        token: by which other processes know it.
        ranks, shapes: how large it is.

    Returns:
        int, its descriptor, or None where the system does not give it.
    """
    functions = functions_of(library)
    try:
        descriptor = os.memfd_create(NAME.format(token))
    except (AttributeError, OSError):
        return None
    try:
        # Reserved, because memory that is missing later would kill the process.
        os.posix_fallocate(descriptor, 0, functions.kernels_shared_bytes(ranks, count_numbers(shapes)))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def open_memory(token: int, process: int, descriptor: int) -> int | None:
    """What another process of this machine has created: a descriptor, or None where it cannot be reached."""
    path = f"/proc/{process}/fd/{descriptor}"
    try:
        # On another machine, or in another container, it may be any file.
        known = os.readlink(path) == f"/memfd:{NAME.format(token)} (deleted)"
        return os.open(path, os.O_RDWR | os.O_CLOEXEC) if known else None
    except OSError:
        return None


def map_memory(library: str, descriptor: int, rank: int, ranks: int, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Let this process's `SharedMean` use the memory; whether it could be mapped."""
    return bool(functions_of(library).kernels_join_ranks(descriptor, rank, ranks, count_numbers(shapes)))


def count_numbers(shapes: Sequence[tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes have."""
    return sum(math.prod(shape) for shape in shapes)


def functions_of(library: str) -> ctypes.CDLL:
    """The library's functions that are no operators."""
    functions = ctypes.CDLL(library)
    functions.kernels_shared_bytes.argtypes = [ctypes.c_int64] * 2
    functions.kernels_shared_bytes.restype = ctypes.c_int64
    functions.kernels_join_ranks.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3]
    return functions
