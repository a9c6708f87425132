"""The family as a table: the paper's seven stages and how its members scale them. Does without MindSpore."""

from __future__ import annotations

import math
from typing import List, NamedTuple


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
PADDINGS = ("same", "symmetric")
"""How convolutions pad: as TensorFlow does, or as PyTorch does."""


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


def scaled_blocks(width_coeff: float, depth_coeff: float) -> List[Stage]:
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


def classifier_bound(num_classes: int) -> float:
    """A new dense layer's weights are uniform within plus and minus this.

    TensorFlow's 1 / sqrt(classes), made for the 1000 of ImageNet, and no more than that where there are fewer: with 10
    classes the logits would begin with a deviation of about 2, and the first epochs would go into unlearning them.
    """
    return 1.0 / math.sqrt(max(num_classes, 1000))
