"""The pieces of an MBConv block: convolution-norm-activation, squeeze-and-excitation, drop-connect, dropout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Normal
from mindspore.ops.auto_generate import SplitWithSize

from src.models.family import PADDINGS


def swish(x):
    """x * sigmoid(x), elementwise (Ramachandran et al. 2017, arXiv:1710.05941); every backend and ONNX have the two."""
    return x * ops.sigmoid(x)


ACTIVATIONS = {"swish": swish, "relu6": ops.relu6}
"""The functions behind the names in an `Architecture`."""


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """What all convolutions and batch norms of a network have in common.

    Attributes:
        padding: "same" (TensorFlow's) or "symmetric" (PyTorch's).
        norm_eps: epsilon of the batch norms.
        norm_momentum: share of the old moving statistics that a step keeps; PyTorch's momentum is 1 minus it.
        sync_norm: compute batch-norm statistics over the batches of all ranks; MindSpore does that on Ascend.
    """

    padding: str = "same"
    norm_eps: float = 1e-3
    norm_momentum: float = 0.99
    sync_norm: bool = False


DEFAULTS = LayerSettings()


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    padding: str = "same",
    has_bias: bool = False,
) -> nn.Conv2d:
    """A convolution initialised from N(0, 2 / (k * k * C_out / groups)).

    MindSpore's HeNormal(mode="fan_out") takes a depthwise weight's C * k * k for its fan, hence the explicit deviation.

    Args:
        padding: "same" (TensorFlow's: an odd pixel goes to the right and the bottom) or "symmetric" (PyTorch's).

    Raises:
        ValueError: for another padding.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding is '{padding}', not one of {', '.join(PADDINGS)}")
    fan_out = kernel_size * kernel_size * out_channels // groups
    symmetric = padding == "symmetric" and kernel_size > 1
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode="pad" if symmetric else "same",
        padding=(kernel_size - 1) // 2 if symmetric else 0,
        group=groups,
        has_bias=has_bias,
        weight_init=Normal(math.sqrt(2.0 / fan_out)),
        bias_init="zeros" if has_bias else None,
    )


# `src.kernels` knows the next three cells, and MBConv, by the names of their classes and reads their attributes; see
# its FUSED.


class ConvNormActivation(nn.Cell):
    """Convolution without bias, batch norm and, unless it is None, an activation.

    Args:
        in_channels, out_channels, kernel_size, stride, groups: of the convolution.
        activation: one of ACTIVATIONS, or None.
        settings: how convolutions pad and batch norms compute.

    Attributes:
        conv, norm: MindSpore's cells.
        activation: as given.

    Shapes: (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: str | None = "swish",
        settings: LayerSettings = DEFAULTS,
    ):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel_size, stride, groups, settings.padding)
        batch_norm = nn.SyncBatchNorm if settings.sync_norm else nn.BatchNorm2d
        self.norm = batch_norm(out_channels, eps=settings.norm_eps, momentum=settings.norm_momentum)
        self.activation = activation
        self.activate = ACTIVATIONS[activation] if activation else None

    def construct(self, x):
        x = self.norm(self.conv(x))
        return x if self.activate is None else self.activate(x)


class SqueezeExcitation(nn.Cell):
    """Scale each channel by a gate computed from the means of all channels (Hu et al. 2018, arXiv:1709.01507).

    Args:
        channels: channels of the input.
        squeezed: channels between the two 1x1 convolutions.
        activation: between the two, one of ACTIVATIONS.

    Attributes:
        reduce, expand: the convolutions, with bias.
        activation: as given.
    """

    def __init__(self, channels: int, squeezed: int, activation: str = "swish"):
        super().__init__()
        self.reduce = convolution(channels, squeezed, 1, has_bias=True)
        self.expand = convolution(squeezed, channels, 1, has_bias=True)
        self.activation = activation
        self.activate = ACTIVATIONS[activation]

    def construct(self, x):
        gate = ops.mean(x, (2, 3), True)
        return x * ops.sigmoid(self.expand(self.activate(self.reduce(gate))))


class PositionMean(nn.Cell):
    """The mean over an image's positions: (N, C, H, W) to (N, C).

    Args:
        channels: C.

    Attributes:
        channels: as given.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def construct(self, x):
        return ops.mean(x, (2, 3))


def scramble(x):
    """Mix the bits of int32 numbers so that neighbours become unrelated; a bijection (C. Wellons' "lowbias32").

    Only operators that wrap or act on bits are used, so the result is the same on every device.
    """
    x = fold(x, 16)
    x = fold(x * 0x7FEB352D, 15)
    return fold(x * (0x846CA68B - 2**32), 16)


def fold(x, bits: int):
    """x ^ (x >> bits) with a shift that fills with zeros, for bits >= 8.

    Shifted as a float: what remains of x without its last bits has at most 24, so that float32 holds it exactly. Ascend
    has an operator for shifts on the slow AI CPU only.
    """
    high = ops.cast(ops.bitwise_and(x, -(2**bits)), ms.float32) * 2.0**-bits
    return ops.bitwise_xor(x, ops.bitwise_and(ops.cast(high, ms.int32), 2 ** (32 - bits) - 1))


@ops.constexpr
def spread(values, sizes) -> ms.Tensor:
    """The first value so many times as the first size says, the second ... : a constant of the compiled graph."""
    return ms.Tensor(np.repeat(np.array(values, np.float32 if isinstance(values[0], float) else np.int32), sizes))


@ops.constexpr
def positions(sizes) -> ms.Tensor:
    """0, 1, ..., size - 1 of each size, as an int32 constant of the compiled graph."""
    return ms.Tensor(np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]))


class KeepMasks(nn.Cell):
    """Random 0 or 1 / (1 - rate), a function of (seed, stream, step, position) and of nothing else.

    Framework random operators keep hidden counters that no checkpoint holds. With this one a run that is resumed at
    step k draws what the undisturbed run drew at step k. Several layers are drawn at once, because each operator costs
    a launch on a device.

    Args:
        rates: probability of 0 of each layer, 0 <= rate < 1.
        streams: number of each layer, so that layers draw independently.
        seed: seed of the run (and of the rank).
    """

    def __init__(self, rates: Sequence[float], streams: Sequence[int], seed: int):
        super().__init__()
        for rate in rates:
            if not 0 <= rate < 1:
                raise ValueError(f"a drop rate is at least 0 and below 1, not {rate}")
        # 24-bit thresholds: the numbers compared are exact in every integer type.
        self.thresholds = tuple(int(round(rate * 2**24)) for rate in rates)
        self.scales = tuple(1.0 / (1.0 - rate) for rate in rates)
        mixed = np.array([(seed * 0x9E3779B1 + stream * 0x85EBCA77) & 0xFFFFFFFF for stream in streams], np.uint32)
        self.keys = ms.Tensor(mixed.astype(np.int32))
        self.layers = tuple(range(len(rates)))
        # One operator on an NPU, where ops.split takes one for each part; MindSpore 2.7 has it nowhere else.
        self.split = SplitWithSize() if ms.get_context("device_target") == "Ascend" else ops.split

    def construct(self, step, sizes, dtype):
        """Draw for training step `step` (int32 tensor): a tensor of shape (size,) for each layer."""
        keys = ops.gather(scramble(step + self.keys), spread(self.layers, sizes), 0)
        bits = ops.bitwise_and(scramble(positions(sizes) + keys), 0xFFFFFF)
        kept = ops.cast(bits >= spread(self.thresholds, sizes), ms.float32) * spread(self.scales, sizes)
        return self.split(ops.cast(kept, dtype), sizes, 0)


class DropConnect(nn.Cell):
    """Drop a residual branch for whole images while training, scale up the rest (Huang et al. 2016, arXiv:1603.09382).

    Inputs: tensor of shape (N, C, H, W), and the mask of shape (N,) of `KeepMasks` or None. Evaluation passes the input
    on.
    """

    def construct(self, x, mask):
        if self.training and mask is not None:
            return x * ops.cast(mask, x.dtype).reshape((-1, 1, 1, 1))
        return x


class Dropout(nn.Cell):
    """Zero single features while training and scale up the rest (Srivastava et al. 2014).

    Inputs: tensor of shape (N, C), and the mask of shape (N * C,) of `KeepMasks` or None. Evaluation passes it on.
    """

    def construct(self, x, mask):
        if self.training and mask is not None:
            return x * ops.cast(mask, x.dtype).reshape(x.shape)
        return x
