"""The network as a table of layers: output shapes, parameters and multiply-adds, counted without running it."""

from __future__ import annotations

import math
from typing import NamedTuple

from mindspore import nn

from src.common.cli import ArgumentParser, positive_int
from src.models.effnet import EfficientNet, MBConv, create_network
from src.models.family import VARIANTS


class Row(NamedTuple):
    """A layer of the table.

    Attributes:
        name: the cell's name in the network, and in a checkpoint.
        kind: what it is, in the paper's words: "MBConv6, k5x5, stride 2".
        output_shape: channels, height, width; the classifier's has classes only.
        parameters: trained numbers; batch-norm statistics are not trained.
        multiply_adds: of convolutions and dense layers for one image, what the paper calls FLOPs.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layer_table(network: EfficientNet, image_size: int) -> list[Row]:
    """The rows of a network for square images of `image_size` pixels."""
    layers = [("stem", network.stem)]
    layers += [(f"blocks.{i}", block) for i, block in enumerate(network.blocks)]
    layers += [("head", network.head)]
    rows = []
    size = image_size
    for name, layer in layers:
        multiply_adds = 0
        for path, cell in layer.cells_and_names():
            if isinstance(cell, nn.Conv2d):
                # Squeeze-and-excitation works on the means of the channels: one position.
                inside_gate = path.startswith("se.")
                size = size if inside_gate else math.ceil(size / cell.stride[0])
                multiply_adds += cell.weight.size * (1 if inside_gate else size * size)
                channels = cell.out_channels
        rows.append(Row(name, describe(layer), (channels, size, size), count_parameters(layer), multiply_adds))
    dense = network.classifier
    kind = "mean, dropout, dense"
    rows.append(Row("classifier", kind, (dense.out_channels,), count_parameters(dense), dense.weight.size))
    return rows


def describe(layer: nn.Cell) -> str:
    """A layer in the paper's words."""
    conv = layer.depthwise.conv if isinstance(layer, MBConv) else layer.conv
    kind = "Conv"
    if isinstance(layer, MBConv):
        kind = f"MBConv{conv.in_channels // (layer.expand.conv if layer.has_expand else conv).in_channels}"
    stride = f", stride {conv.stride[0]}" if conv.stride[0] > 1 else ""
    return f"{kind}, k{conv.kernel_size[0]}x{conv.kernel_size[1]}{stride}"


def count_parameters(cell: nn.Cell) -> int:
    """Trained numbers of a cell."""
    return sum(parameter.size for parameter in cell.trainable_params())


def count_multiply_adds(network: EfficientNet, image_size: int) -> int:
    """Multiply-adds of convolutions and dense layers for one square image of `image_size` pixels."""
    return sum(row.multiply_adds for row in layer_table(network, image_size))


def format_table(rows: list[Row]) -> str:
    """The rows and their sums as text in columns."""
    cells = [("layer", "kind", "output", "parameters", "multiply-adds")]
    for row in rows:
        shape = " x ".join(str(side) for side in row.output_shape)
        cells.append((row.name, row.kind, shape, f"{row.parameters:,}", f"{row.multiply_adds:,}"))
    parameters, multiply_adds = sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)
    cells.append(("sum", "", "", f"{parameters:,}", f"{multiply_adds:,}"))
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    lines = [
        "  ".join(f"{cell:{'<>'[column > 1]}{widths[column]}}" for column, cell in enumerate(line)) for line in cells
    ]
    rule = "-" * len(lines[0])
    total = f"{parameters / 1e6:.2f} M parameters, {multiply_adds / 1e9:.2f} G multiply-adds"
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], total])


def main(argv=None) -> None:
    """Print the table of a variant."""
    parser = ArgumentParser(prog="python -m src.models.effnet", description="Print the network's table of layers.")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="b0", help="member of the family")
    parser.add_argument("--image_size", type=positive_int, help="pixels; the variant's when left out")
    parser.add_argument("--class_num", type=positive_int, default=1000, help="number of classes")
    arguments = parser.parse_args(argv)
    size = arguments.image_size or VARIANTS[arguments.variant].image_size
    print(f"EfficientNet-{arguments.variant.upper()}, images of {size} x {size} pixels, {arguments.class_num} classes")
    print(format_table(layer_table(create_network(arguments.variant, num_classes=arguments.class_num), size)))
