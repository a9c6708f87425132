"""The family as a table: one row for each member, and the rules by which a row becomes a network. Without MindSpore.

Whatever walks the network (its cells, the ONNX graph, the names of its weights, the table of layers) reads these rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

PADDINGS = ("same", "symmetric")
"""How convolutions pad: as TensorFlow does, or as PyTorch does."""


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


class Block(NamedTuple):
    """An MBConv block of a scaled network.

    Attributes:
        number, stage, repeat: its number, that of its stage, and its number within the stage, all from 0.
        expand_ratio, kernel_size, stride: as in the paper's table.
        in_channels, out_channels: scaled.
        squeezed_channels: between the two convolutions of squeeze-and-excitation; 0 where the block has none.
    """

    number: int
    stage: int
    repeat: int
    expand_ratio: int
    kernel_size: int
    stride: int
    in_channels: int
    out_channels: int
    squeezed_channels: int

    @property
    def hidden_channels(self) -> int:
        """Channels of the depthwise convolution."""
        return self.in_channels * self.expand_ratio

    @property
    def expands(self) -> bool:
        """Whether a 1x1 convolution comes before the depthwise one."""
        return self.expand_ratio != 1

    @property
    def has_residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_channels == self.out_channels


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A member of the family.

    Attributes:
        name: its name in flags and file names.
        width_coeff, depth_coeff: factors on the channel counts and on the repeats.
        image_size: pixels, side of the images that it was published with.
        dropout_rate: before the dense layer, as published.
        stages: the paper's table.
        stem_channels, head_channels: of the first convolution and of the last.
        ends_scale: whether stem and head scale in width.
        fixed_stages: numbers, from 0, of the stages whose repeats do not scale.
        activation: "swish" or "relu6".
        squeeze_ratio: squeezed channels by the block's input channels; 0 is no squeeze-and-excitation.
    """

    name: str
    width_coeff: float
    depth_coeff: float
    image_size: int
    dropout_rate: float
    stages: tuple[Stage, ...] = STAGES
    stem_channels: int = 32
    head_channels: int = 1280
    ends_scale: bool = True
    fixed_stages: tuple[int, ...] = ()
    activation: str = "swish"
    squeeze_ratio: float = 0.25

    @property
    def title(self) -> str:
        """The member for a sentence: "EfficientNet-B0", "EfficientNet-Lite0"."""
        return f"EfficientNet-{self.name.capitalize()}"

    @property
    def stem_width(self) -> int:
        """Channels of the stem."""
        return scale_channels(self.stem_channels, self.width_coeff if self.ends_scale else 1.0)

    @property
    def head_width(self) -> int:
        """Channels of the head, and features of an image."""
        return scale_channels(self.head_channels, self.width_coeff if self.ends_scale else 1.0)

    @property
    def stage_repeats(self) -> tuple[int, ...]:
        """Blocks of each stage."""
        return tuple(
            stage.repeats if number in self.fixed_stages else scale_repeats(stage.repeats, self.depth_coeff)
            for number, stage in enumerate(self.stages)
        )

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order."""
        blocks = []
        before = self.stem_width
        for number, (stage, repeats) in enumerate(zip(self.stages, self.stage_repeats)):
            after = scale_channels(stage.out_channels, self.width_coeff)
            for repeat in range(repeats):
                block = Block(
                    number=len(blocks),
                    stage=number,
                    repeat=repeat,
                    expand_ratio=stage.expand_ratio,
                    kernel_size=stage.kernel_size,
                    stride=stage.stride if repeat == 0 else 1,
                    in_channels=before,
                    out_channels=after,
                    squeezed_channels=max(1, int(before * self.squeeze_ratio)) if self.squeeze_ratio else 0,
                )
                blocks.append(block)
                before = after
        return tuple(blocks)


LITE = {"ends_scale": False, "fixed_stages": (0, 6), "activation": "relu6", "squeeze_ratio": 0.0}
"""EfficientNet-Lite (Google 2020), for quantisation and small devices."""

VARIANTS = {
    row.name: row
    for row in (
        Architecture("b0", 1.0, 1.0, 224, 0.2),
        Architecture("b1", 1.0, 1.1, 240, 0.2),
        Architecture("b2", 1.1, 1.2, 260, 0.3),
        Architecture("b3", 1.2, 1.4, 300, 0.3),
        Architecture("b4", 1.4, 1.8, 380, 0.4),
        Architecture("b5", 1.6, 2.2, 456, 0.4),
        Architecture("b6", 1.8, 2.6, 528, 0.5),
        Architecture("b7", 2.0, 3.1, 600, 0.5),
        Architecture("lite0", 1.0, 1.0, 224, 0.2, **LITE),
        Architecture("lite1", 1.0, 1.1, 240, 0.2, **LITE),
        Architecture("lite2", 1.1, 1.2, 260, 0.3, **LITE),
        Architecture("lite3", 1.2, 1.4, 280, 0.3, **LITE),
        Architecture("lite4", 1.4, 1.8, 300, 0.3, **LITE),
    )
}


def scale_channels(channels: int, width_coeff: float) -> int:
    """Scale a channel count and round it to a multiple of 8, never losing more than 10%."""
    scaled = channels * width_coeff
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def scale_repeats(repeats: int, depth_coeff: float) -> int:
    """Scale a block count and round it up."""
    return math.ceil(repeats * depth_coeff)


def classifier_bound(num_classes: int) -> float:
    """A new dense layer's weights are uniform within plus and minus this.

    TensorFlow's 1 / sqrt(classes), made for the 1000 of ImageNet, and no more than that where there are fewer: with 10
    classes the logits would begin with a deviation of about 2, and the first epochs would go into unlearning them.
    """
    return 1.0 / math.sqrt(max(num_classes, 1000))
