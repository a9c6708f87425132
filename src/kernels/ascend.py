"""The network's layers as operators of CANN's newer interface (aclnn), for training on an NPU.

MindSpore launches its operators one by one there, and launching the older ones takes longer. Fewer and larger ones also
read and write less memory: swish is one operator in each direction instead of two and four. Parameters, their names and
their types stay. Under mixed precision, statistics, normalisation and the gates are computed in float32 and the
convolutions in the type of their input, whatever the cells were cast to before.

Nothing here has run on an NPU. `--kernels False` trains with MindSpore's standard operators.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import mint, nn, ops


class AscendOperators:
    """What an NPU trains with; used as `Kernels` is."""

    def install(self, cell: nn.Cell) -> bool:
        """Let a finished network compute with these operators, from the same parameters.

        Install after mixed precision was set, because that casts the parameters of every cell that it knows, moving
        statistics too; and before `EfficientNet.freeze`. Afterwards a network cannot be exported.

        Returns:
            bool, whether there was something to replace.
        """
        places = list(find_replaced(cell))
        for parent, name, child in places:
            # Not by assignment, which would prefix the parameters' names once more.
            parent.insert_child_to_cell(name, REPLACED[type(child).__name__](child).set_train(child.training))
        for layer in [cell, *(child for _, child in cell.cells_and_names())]:
            if getattr(layer, "activation", None) == "swish":
                layer.activate = ops.silu
        return bool(places)


def find_replaced(cell: nn.Cell):
    """The cells within a cell that operators of this module take the place of: parent, name, cell."""
    for name, child in cell.name_cells().items():
        if type(child).__name__ in REPLACED and can_replace(child):
            yield cell, name, child
        else:
            yield from find_replaced(child)


def can_replace(cell: nn.Cell) -> bool:
    """Whether it computes what the operator computes: aclnn pads both sides alike."""
    if isinstance(cell, nn.Conv2d):
        return not cell.has_bias and (cell.pad_mode == "pad" or cell.stride[0] == 1)
    return True


class AclnnConvolution(nn.Cell):
    """`nn.Conv2d` without bias; one operator computes the gradients of input and weight."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(auto_prefix=False)
        self.weight = layer.weight
        self.stride, self.groups = layer.stride[0], layer.group
        self.padding = (layer.kernel_size[0] - 1) // 2

    def construct(self, x):
        return mint.nn.functional.conv2d(
            x, ops.cast(self.weight, x.dtype), None, self.stride, self.padding, 1, self.groups
        )


class AclnnNorm(nn.Cell):
    """`nn.BatchNorm2d`: one operator in each direction."""

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__(auto_prefix=False)
        self.moving_mean, self.moving_variance = layer.moving_mean, layer.moving_variance
        self.gamma, self.beta = layer.gamma, layer.beta
        self.momentum, self.eps = layer.momentum, layer.eps  # momentum is the share of the new value in both

    def construct(self, x):
        return mint.nn.functional.batch_norm(
            x, self.moving_mean, self.moving_variance, self.gamma, self.beta, self.training, self.momentum, self.eps
        )


class Gate(nn.Cell):
    """`SqueezeExcitation`, between its means and its product in float32."""

    def __init__(self, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        self.means = MeansBeside()
        self.reduce, self.expand = layer.reduce, layer.expand
        self.activate = ops.silu if layer.activation == "swish" else layer.activate

    def construct(self, x):
        x, mean = self.means(x)
        squeezed = self.activate(mint.nn.functional.conv2d(mean, self.reduce.weight, self.reduce.bias))
        gate = ops.sigmoid(mint.nn.functional.conv2d(squeezed, self.expand.weight, self.expand.bias))
        return x * ops.cast(gate, x.dtype)


class MeansBeside(nn.Cell):
    """A tensor (N, C, H, W) as it is, and its float32 means (N, C, 1, 1).

    Their gradients are added as they come: the means' own gradient is never spread over all positions.
    """

    def construct(self, x):
        return x, mint.mean(x, (2, 3), True, dtype=ms.float32)

    def bprop(self, x, out, upper):
        share = ops.cast(upper[1] * (1.0 / (x.shape[2] * x.shape[3])), x.dtype)
        return (upper[0] + share,)


REPLACED = {"Conv2d": AclnnConvolution, "BatchNorm2d": AclnnNorm, "SqueezeExcitation": Gate}
"""The cells that are replaced, by the names of their classes."""
