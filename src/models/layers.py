"""The pieces of an MBConv block: convolution-norm-activation, squeeze-and-excitation, drop-connect, dropout."""

from __future__ import annotations

import dataclasses
import math

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Normal

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


# `src.kernels` knows the next three cells by the names of their classes and reads their attributes; see its FUSED.


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
    """x ^ (x >> bits) with a shift that fills with zeros; int32 shifts fill with the sign."""
    return ops.bitwise_xor(x, ops.bitwise_and(ops.bitwise_right_shift(x, bits), 2 ** (32 - bits) - 1))


@ops.constexpr
def positions(count: int) -> ms.Tensor:
    """0, 1, ..., count - 1 as an int32 constant of the compiled graph."""
    return ms.Tensor(np.arange(count, dtype=np.int32))


class KeepMask(nn.Cell):
    """Random 0 or 1 / (1 - rate), a function of (seed, stream, step, position) and of nothing else.

    Framework random operators keep hidden counters that no checkpoint holds. With this one a run that is resumed at
    step k draws what the undisturbed run drew at step k.

    Args:
        rate: probability of 0, 0 <= rate < 1.
        stream: number of the layer, so that layers draw independently.
        seed: seed of the run (and of the rank).
    """

    def __init__(self, rate: float, stream: int, seed: int):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop rate is at least 0 and below 1, not {rate}")
        # A 24-bit threshold: the numbers compared are exact in every integer type.
        self.threshold = int(round(rate * 2**24))
        self.scale = 1.0 / (1.0 - rate)
        mixed = (seed * 0x9E3779B1 + stream * 0x85EBCA77) & 0xFFFFFFFF
        self.key = mixed - 2**32 if mixed >= 2**31 else mixed

    def construct(self, step, count, dtype):
        """Draw `count` numbers for training step `step` (int32 tensor): a tensor of shape (count,)."""
        position = positions(count)
        bits = ops.bitwise_and(scramble(position + scramble(step + self.key)), 0xFFFFFF)
        return ops.cast(bits >= self.threshold, dtype) * self.scale


class DropConnect(nn.Cell):
    """Drop a residual branch for whole images while training, scale up the rest (Huang et al. 2016, arXiv:1603.09382).

    Args: those of `KeepMask`. Evaluation passes the input on.
    """

    def __init__(self, rate: float, stream: int, seed: int):
        super().__init__()
        self.rate = rate
        self.mask = KeepMask(rate, stream, seed)

    def construct(self, x, step):
        if self.training and self.rate > 0:
            return x * self.mask(step, x.shape[0], x.dtype).reshape((-1, 1, 1, 1))
        return x


class Dropout(nn.Cell):
    """Zero single features while training and scale up the rest (Srivastava et al. 2014).

    Args: those of `KeepMask`. Input of shape (N, C); evaluation passes it on.
    """

    def __init__(self, rate: float, stream: int, seed: int):
        super().__init__()
        self.rate = rate
        self.mask = KeepMask(rate, stream, seed)

    def construct(self, x, step):
        if self.training and self.rate > 0:
            return x * self.mask(step, x.shape[0] * x.shape[1], x.dtype).reshape(x.shape)
        return x
