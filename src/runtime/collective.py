"""Numbers that all ranks know together."""

from __future__ import annotations

import functools
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from src.kernels import Kernels
from src.kernels.pieces import Pieces
from src.kernels.ranks import SharedMean, create_memory, map_memory, open_memory

BASE = 4096


class SumOverRanks(nn.Cell):
    """All ranks' vectors added up."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


class MeanInOneMessage(nn.Cell):
    """The mean over all ranks of several float32 tensors, sent as one message: each costs time of its own.

    Args:
        shapes: of the tensors.
        ranks: how many ranks there are.

    Inputs: tuple of tensors. Outputs: tuple of tensors of the same shapes.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], ranks: int):
        super().__init__()
        self.all_reduce = ops.AllReduce()
        self.pieces = Pieces(shapes)
        self.share = 1.0 / ranks

    def construct(self, tensors):
        return self.pieces.part(self.all_reduce(self.pieces.join(tensors)) * self.share, tensors)


def mean_over_ranks(shapes: Sequence[tuple[int, ...]], kernels: Kernels | None = None) -> nn.Cell:
    """The mean over all ranks of float32 tensors; all ranks must call this with the same shapes.

    Args:
        shapes: of the tensors.
        kernels: those of a CPU, through which processes of one machine share memory instead of sending messages; None
            only sends, and so does every other device.

    Returns:
        Cell, from a tuple of tensors to a tuple of tensors of the same shapes.
    """
    # A rank without kernels asks as well: all of them must take the same way.
    if ms.get_context("device_target") == "CPU" and share_memory(kernels, shapes):
        return SharedMean(kernels.library, shapes)
    return MeanInOneMessage(shapes, count_ranks())


def share_memory(kernels: Kernels | None, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Let all ranks share memory for tensors of these shapes; whether all of them could."""
    rank, ranks = communication.get_rank(), count_ranks()
    token = secrets.randbits(24)  # float32 is exact up to there, and process numbers on Linux are smaller
    created = create_memory(kernels.library, token, ranks, shapes) if kernels and rank == 0 else None
    where = np.array([token, os.getpid(), -1 if created is None else created], np.float32)
    where = [int(number) for number in take_from_rank_0({"": where})[""]]
    opened = created if rank == 0 else open_memory(*where)
    try:
        joined = kernels and opened is not None and map_memory(kernels.library, opened, rank, ranks, shapes)
        # Also the sign that rank 0 may close its file.
        return sum_floats([float(bool(joined))])[0] == ranks
    finally:
        if opened is not None:
            os.close(opened)


@functools.cache
def compiled_sum() -> SumOverRanks:
    """One cell for all sums: it is compiled once for each length."""
    return SumOverRanks()


def count_ranks() -> int:
    """How many ranks have joined; 1 where none has."""
    return communication.get_group_size() if communication.GlobalComm.INITED else 1


def sum_floats(values: Sequence[float]) -> list[float]:
    """The sums over all ranks, in float32; all ranks must call this with as many values."""
    if count_ranks() == 1:
        return list(values)
    return compiled_sum()(ms.Tensor(np.array(values, np.float32))).asnumpy().tolist()


def sum_counts(counts: Sequence[int]) -> list[int]:
    """The sums over all ranks, exact: as two float32 digits each, counts below 16 million on thousands of ranks."""
    digits = sum_floats([float(digit) for count in counts for digit in divmod(count, BASE)])
    return [int(digits[2 * i]) * BASE + int(digits[2 * i + 1]) for i in range(len(counts))]


def take_from_rank_0(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float32 arrays as rank 0 has them; all ranks must call this with the same names and shapes."""
    if count_ranks() == 1 or not arrays:
        return dict(arrays)
    flat = np.concatenate([array.ravel() for array in arrays.values()])
    if communication.get_rank() != 0:
        flat = np.zeros_like(flat)
    flat = compiled_sum()(ms.Tensor(flat)).asnumpy()
    ends = np.cumsum([array.size for array in arrays.values()])[:-1]
    return {name: part.reshape(arrays[name].shape) for name, part in zip(arrays, np.split(flat, ends))}


def find_disagreement(facts: Mapping[str, bytes]) -> str | None:
    """What is not the same on all ranks, compared by CRC-32: the first name, on all ranks alike, or None."""
    checksums = np.array([divmod(zlib.crc32(fact), 1 << 16) for fact in facts.values()], np.float32)
    differs = (checksums != take_from_rank_0({"": checksums})[""]).any(axis=1)
    ranks = sum_floats(differs.astype(float))
    return next((name for name, count in zip(facts, ranks) if count), None)
