"""EfficientNet B0 to B7 (Tan and Le 2019, arXiv:1905.11946)."""

from __future__ import annotations

import math
from typing import NamedTuple

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Uniform

from src.models.layers import ConvNormActivation, DropConnect, Dropout, SqueezeExcitation


class Stage(NamedTuple):
    """A row of the paper's table 1: `repeats` blocks, of which the first changes channels and resolution."""

    expand_ratio: int
    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int
    repeats: int


STAGES = (
    Stage(1, 3, 1, 32, 16, 1),
    Stage(6, 3, 2, 16, 24, 2),
    Stage(6, 5, 2, 24, 40, 2),
    Stage(6, 3, 2, 40, 80, 3),
    Stage(6, 5, 1, 80, 112, 3),
    Stage(6, 5, 2, 112, 192, 4),
    Stage(6, 3, 1, 192, 320, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
SQUEEZE_RATIO = 0.25


class Variant(NamedTuple):
    """How a member of the family is scaled, and the image size and dropout that it was published with."""

    width_coeff: float
    depth_coeff: float
    image_size: int
    dropout_rate: float


VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2),
    "b1": Variant(1.0, 1.1, 240, 0.2),
    "b2": Variant(1.1, 1.2, 260, 0.3),
    "b3": Variant(1.2, 1.4, 300, 0.3),
    "b4": Variant(1.4, 1.8, 380, 0.4),
    "b5": Variant(1.6, 2.2, 456, 0.4),
    "b6": Variant(1.8, 2.6, 528, 0.5),
    "b7": Variant(2.0, 3.1, 600, 0.5),
}


def scale_channels(channels: int, width_coeff: float) -> int:
    """Scale a channel count and round it to a multiple of 8, never losing more than 10%."""
    scaled = channels * width_coeff
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scale_repeats(repeats: int, depth_coeff: float) -> int:
    """Scale a block count and round it up."""
    return math.ceil(repeats * depth_coeff)


class MBConv(nn.Cell):
    """Inverted residual: expand 1x1, depthwise, squeeze-and-excitation, project 1x1, residual where shapes allow.

    Args:
        stage: expand ratio, kernel and stride; its channels are this block's, already scaled.
        drop_rate: drop-connect's rate for this block.
        stream, seed: see `layers.KeepMask`.
        norm: keyword arguments of `ConvNormActivation`: padding, norm_eps, norm_momentum.
    """

    def __init__(self, stage: Stage, drop_rate: float, stream: int, seed: int, norm: dict):
        super().__init__()
        hidden = stage.in_channels * stage.expand_ratio
        self.has_expand = stage.expand_ratio != 1
        if self.has_expand:
            self.expand = ConvNormActivation(stage.in_channels, hidden, 1, 1, 1, True, **norm)
        self.depthwise = ConvNormActivation(hidden, hidden, stage.kernel_size, stage.stride, hidden, True, **norm)
        self.se = SqueezeExcitation(hidden, max(1, int(stage.in_channels * SQUEEZE_RATIO)))
        self.project = ConvNormActivation(hidden, stage.out_channels, 1, 1, 1, False, **norm)
        self.has_residual = stage.stride == 1 and stage.in_channels == stage.out_channels
        if self.has_residual:
            self.drop_connect = DropConnect(drop_rate, stream, seed)

    def construct(self, x, step):
        y = self.expand(x) if self.has_expand else x
        y = self.project(self.se(self.depthwise(y)))
        return self.drop_connect(y, step) + x if self.has_residual else y


class EfficientNet(nn.Cell):
    """The network: images to logits.

    Args:
        width_coeff: factor on the channel counts, positive.
        depth_coeff: factor on the block counts, positive.
        dropout_rate: dropout before the dense layer, 0 <= rate < 1.
        drop_connect_rate: drop-connect grows linearly over the blocks from 0 towards this rate.
        num_classes: width of the logits.
        padding: "same" (TensorFlow's) or "symmetric" (PyTorch's).
        norm_eps: epsilon of the batch norms.
        norm_momentum: share of the old moving statistics that a step keeps.
        seed: seed of drop-connect and dropout; weights follow `mindspore.set_seed`.

    Inputs: float32 tensor of shape (N, 3, H, W), any N.
    Outputs: logits of shape (N, num_classes).
    """

    def __init__(
        self,
        width_coeff: float = 1.0,
        depth_coeff: float = 1.0,
        dropout_rate: float = 0.2,
        drop_connect_rate: float = 0.2,
        num_classes: int = 1000,
        padding: str = "same",
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.99,
        seed: int = 1,
    ):
        super().__init__()
        norm = {"padding": padding, "norm_eps": norm_eps, "norm_momentum": norm_momentum}
        stem_channels = scale_channels(STEM_CHANNELS, width_coeff)
        head_channels = scale_channels(HEAD_CHANNELS, width_coeff)
        stages = scaled_blocks(width_coeff, depth_coeff)
        self.stem = ConvNormActivation(3, stem_channels, 3, 2, 1, True, **norm)
        self.blocks = nn.CellList(
            [MBConv(block, drop_connect_rate * i / len(stages), i, seed, norm) for i, block in enumerate(stages)]
        )
        self.head = ConvNormActivation(stages[-1].out_channels, head_channels, 1, 1, 1, True, **norm)
        self.dropout = Dropout(dropout_rate, len(stages), seed)
        self.classifier = nn.Dense(
            head_channels, num_classes, weight_init=Uniform(1.0 / math.sqrt(num_classes)), bias_init="zeros"
        )
        # Counts training steps: the position in the random numbers of drop-connect and dropout.
        self.random_step = Parameter(ms.Tensor(0, ms.int32), name="random_step", requires_grad=False)

    def construct(self, x):
        step = self.random_step
        if self.training:
            step = self.random_step + 1
            ops.assign(self.random_step, step)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, step)
        x = ops.mean(self.head(x), (2, 3))
        return self.classifier(self.dropout(x, step))


def scaled_blocks(width_coeff: float, depth_coeff: float) -> list:
    """All blocks of a scaled network in order, each as a Stage with repeats 1."""
    blocks = []
    for stage in STAGES:
        in_channels = scale_channels(stage.in_channels, width_coeff)
        out_channels = scale_channels(stage.out_channels, width_coeff)
        for repeat in range(scale_repeats(stage.repeats, depth_coeff)):
            first = repeat == 0
            blocks.append(
                Stage(
                    stage.expand_ratio,
                    stage.kernel_size,
                    stage.stride if first else 1,
                    in_channels if first else out_channels,
                    out_channels,
                    1,
                )
            )
    return blocks


def create_network(variant: str = "b0", **settings) -> EfficientNet:
    """Build a member of the family.

    Args:
        variant: "b0" to "b7".
        settings: arguments of `EfficientNet` that differ from the variant's.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is '{variant}', not one of {', '.join(VARIANTS)}")
    scaling = VARIANTS[variant]
    settings = {"dropout_rate": scaling.dropout_rate, **settings}
    return EfficientNet(scaling.width_coeff, scaling.depth_coeff, **settings)
