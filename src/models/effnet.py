"""EfficientNet (Tan and Le 2019, arXiv:1905.11946): the cells of any member of the family."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Uniform

from src.models.family import VARIANTS, Architecture, Block, classifier_bound
from src.models.layers import (
    DEFAULTS,
    ConvNormActivation,
    DropConnect,
    Dropout,
    KeepMasks,
    LayerSettings,
    PositionMean,
    SqueezeExcitation,
)


class MBConv(nn.Cell):
    """Inverted residual: expand 1x1, depthwise, squeeze-and-excitation, project 1x1, residual where shapes allow.

    Args:
        block: kernel, stride and channels; which of the parts there are.
        activation: one of `layers.ACTIVATIONS`.
        settings: how convolutions pad and batch norms compute.
    """

    def __init__(self, block: Block, activation: str, settings: LayerSettings):
        super().__init__()
        layer = functools.partial(ConvNormActivation, activation=activation, settings=settings)
        hidden = block.hidden_channels
        self.has_expand = block.expands
        if self.has_expand:
            self.expand = layer(block.in_channels, hidden, 1)
        self.depthwise = layer(hidden, hidden, block.kernel_size, block.stride, groups=hidden)
        self.has_squeeze = block.squeezed_channels > 0
        if self.has_squeeze:
            self.se = SqueezeExcitation(hidden, block.squeezed_channels, activation)
        self.project = layer(hidden, block.out_channels, 1, activation=None)
        self.has_residual = block.has_residual
        if self.has_residual:
            self.drop_connect = DropConnect()

    def construct(self, x, mask):
        y = self.expand(x) if self.has_expand else x
        y = self.depthwise(y)
        y = self.project(self.se(y) if self.has_squeeze else y)
        return self.drop_connect(y, mask) + x if self.has_residual else y


class EfficientNet(nn.Cell):
    """The network: images to logits.

    Args:
        architecture: the member of the family.
        num_classes: width of the logits.
        layers: how convolutions pad and batch norms compute.
        dropout_rate: dropout before the dense layer, 0 <= rate < 1; None takes the architecture's.
        drop_connect_rate: drop-connect grows linearly over the blocks from 0 towards this rate.
        seed: seed of drop-connect and dropout; weights follow `mindspore.set_seed`.

    Inputs: float32 tensor of shape (N, 3, H, W), any N.
    Outputs: logits of shape (N, num_classes).
    """

    def __init__(
        self,
        architecture: Architecture,
        num_classes: int = 1000,
        *,
        layers: LayerSettings = DEFAULTS,
        dropout_rate: float | None = None,
        drop_connect_rate: float = 0.2,
        seed: int = 1,
    ):
        super().__init__()
        self.architecture = architecture
        activation, blocks, width = architecture.activation, architecture.blocks, architecture.head_width
        layer = functools.partial(ConvNormActivation, activation=activation, settings=layers)
        self.stem = layer(3, architecture.stem_width, 3, 2)
        self.blocks = nn.CellList([MBConv(block, activation, layers) for block in blocks])
        self.head = layer(blocks[-1].out_channels, width, 1)
        self.mean = PositionMean(width)
        self.dropout = Dropout()
        # Of drop-connect in each block, and of dropout.
        rates = [drop_connect_rate * i / len(blocks) * block.has_residual for i, block in enumerate(blocks)]
        rates.append(architecture.dropout_rate if dropout_rate is None else dropout_rate)
        self.rates = tuple(rates)
        self.dropping = tuple(i for i, rate in enumerate(rates) if rate != 0)
        self.dropped_blocks = sum(i < len(blocks) for i in self.dropping)
        self.drops_features = len(self.dropping) - self.dropped_blocks
        if self.dropping:
            self.masks = KeepMasks([rates[i] for i in self.dropping], self.dropping, seed)
        self.features = width
        weight_init = Uniform(classifier_bound(num_classes))
        self.classifier = nn.Dense(width, num_classes, weight_init=weight_init, bias_init="zeros")
        # Counts training steps: the position in the random numbers of drop-connect and dropout.
        self.random_step = Parameter(ms.Tensor(0, ms.int32), name="random_step", requires_grad=False)

    def construct(self, x):
        masks = self.draw_masks(x.shape[0], x.dtype)
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x, self.mask_of(masks, i))
        x = self.mean(self.head(x))
        return self.classifier(self.dropout(x, self.mask_of(masks, len(self.blocks))))

    def draw_masks(self, images: int, dtype):
        """The masks of this training step's drop-connect and dropout where there are any; None in evaluation."""
        if not self.training:
            return None
        step = self.random_step + 1
        ops.assign(self.random_step, step)
        if not self.dropping:
            return None
        sizes = (images,) * self.dropped_blocks + (images * self.features,) * self.drops_features
        return self.masks(step, sizes, dtype)

    def mask_of(self, masks, i: int):
        """The mask of a block, or behind the blocks of dropout; None for no mask."""
        return None if masks is None or i not in self.dropping else masks[self.dropping.index(i)]

    def freeze(self, parts: int) -> list[nn.Cell]:
        """Hold the first parts of the network fixed: 1 is the stem, each further one adds a stage, the last the head.

        Kernels must have been installed before: the cells that are returned are those in use now.

        Returns:
            list of cells, which must stay in evaluation mode: their batch norms use the moving statistics.
        """
        blocks = iter(self.blocks)
        stages = [list(itertools.islice(blocks, repeats)) for repeats in self.architecture.stage_repeats]
        frozen = [cell for part in [[self.stem], *stages, [self.head]][:parts] for cell in part]
        for cell in frozen:
            for parameter in cell.get_parameters():
                parameter.requires_grad = False
        return frozen


def create_network(variant: str = "b0", **settings) -> EfficientNet:
    """Build a member of the family.

    Args:
        variant: one of VARIANTS.
        settings: arguments of `EfficientNet` and fields of its `LayerSettings`, where they differ from the defaults.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant is '{variant}', not one of {', '.join(VARIANTS)}")
    names = {field.name for field in dataclasses.fields(LayerSettings)} & settings.keys()
    layers = LayerSettings(**{name: settings.pop(name) for name in names})
    return EfficientNet(VARIANTS[variant], layers=layers, **settings)


if __name__ == "__main__":
    from src.common.cli import run_cli
    from src.models.table import main

    sys.exit(run_cli(main))
