"""Many tensors as one, where each operator costs a launch or each message a delay."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.ops.auto_generate import SplitWithSize

# While a graph is compiled, the sizes of one split are read one within the other, and MindSpore allows 1000 such calls.
# For the same reason there is no loop over all tensors below.
GROUP = 64


class Pieces(nn.Cell):
    """Joins tensors to one vector, and parts it again.

    Args:
        shapes: of the tensors.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        super().__init__(auto_prefix=False)
        sizes = [int(np.prod(shape, dtype=int)) for shape in shapes]
        self.groups = tuple(tuple(sizes[begin : begin + GROUP]) for begin in range(0, len(sizes), GROUP))
        self.group_sizes = tuple(sum(group) for group in self.groups)
        # mint.split gives views, each of which an NPU copies where it is used. MindSpore 2.7 has this one only there.
        self.split = SplitWithSize() if ms.get_context("device_target") == "Ascend" else ops.split
        self.hyper_map = ops.HyperMap()

    def join(self, tensors):
        """A tuple of tensors as one vector."""
        return ops.concat(self.hyper_map(_flatten, tensors))

    def part(self, vector, tensors):
        """The vector as a tuple of tensors of the same shapes as those that are given."""
        pieces = ()
        for part, sizes in zip(self.split(vector, self.group_sizes, 0), self.groups):
            pieces += self.split(part, sizes, 0)
        return self.hyper_map(_shape_like, pieces, tensors)


def _flatten(tensor):
    return ops.reshape(tensor, (-1,))


def _shape_like(piece, tensor):
    return ops.reshape(piece, tensor.shape)
