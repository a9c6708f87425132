"""The network as a table of layers: output shapes, parameters and multiply-adds, counted from its row of the family.

Without MindSpore.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from src.common.cli import ArgumentParser, choice, positive_int
from src.models.family import VARIANTS, Architecture, Block


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


class Convolution(NamedTuple):
    """A convolution that gives an output of `size` x `size` pixels.

    Attributes:
        weights: numbers in its kernels.
        others: numbers of its bias or of the batch norm behind it.
    """

    weights: int
    others: int
    size: int


def layer_table(architecture: Architecture, image_size: int, num_classes: int = 1000) -> list[Row]:
    """The rows of a network for square images of `image_size` pixels."""
    size = math.ceil(image_size / 2)
    stem, head = architecture.stem_width, architecture.head_width
    rows = [count_row("stem", "Conv", 3, 2, stem, [normed(3, stem, 3, size)])]
    for i, block in enumerate(architecture.blocks):
        convolutions = block_convolutions(block, size)
        size = convolutions[-1].size
        kind = f"MBConv{block.expand_ratio}"
        rows.append(count_row(f"blocks.{i}", kind, block.kernel_size, block.stride, block.out_channels, convolutions))
    last = normed(architecture.blocks[-1].out_channels, head, 1, size)
    rows.append(count_row("head", "Conv", 1, 1, head, [last]))
    dense = head * num_classes
    rows.append(
        Row(
            name="classifier",
            kind="mean, dropout, dense",
            output_shape=(num_classes,),
            parameters=dense + num_classes,
            multiply_adds=dense,
        )
    )
    return rows


def block_convolutions(block: Block, size: int) -> list[Convolution]:
    """The convolutions of a block whose input has `size` x `size` pixels."""
    hidden, squeezed = block.hidden_channels, block.squeezed_channels
    smaller = math.ceil(size / block.stride)
    found = [normed(block.in_channels, hidden, 1, size)] if block.expands else []
    found.append(normed(1, hidden, block.kernel_size, smaller))
    if squeezed:
        # Squeeze-and-excitation works on the means of the channels: one position.
        found += [Convolution(hidden * squeezed, squeezed, 1), Convolution(squeezed * hidden, hidden, 1)]
    return [*found, normed(hidden, block.out_channels, 1, smaller)]


def normed(inputs: int, outputs: int, kernel_size: int, size: int) -> Convolution:
    """A convolution of which each output channel sees `inputs` channels, with a batch norm."""
    return Convolution(inputs * outputs * kernel_size**2, 2 * outputs, size)


def count_row(
    name: str, kind: str, kernel_size: int, stride: int, channels: int, convolutions: list[Convolution]
) -> Row:
    """The row of a layer that consists of these convolutions, the last of which gives its output."""
    stride_text = f", stride {stride}" if stride > 1 else ""
    size = convolutions[-1].size
    return Row(
        name=name,
        kind=f"{kind}, k{kernel_size}x{kernel_size}{stride_text}",
        output_shape=(channels, size, size),
        parameters=sum(convolution.weights + convolution.others for convolution in convolutions),
        multiply_adds=sum(convolution.weights * convolution.size**2 for convolution in convolutions),
    )


def count_multiply_adds(architecture: Architecture, image_size: int, num_classes: int = 1000) -> int:
    """Multiply-adds of convolutions and dense layers for one square image of `image_size` pixels."""
    return sum(row.multiply_adds for row in layer_table(architecture, image_size, num_classes))


def count_activations(architecture: Architecture, image_size: int) -> int:
    """Numbers in the outputs of all convolutions for one square image of `image_size` pixels."""
    size = math.ceil(image_size / 2)
    count = architecture.stem_width * size**2
    for block in architecture.blocks:
        if block.expands:
            count += block.hidden_channels * size**2
        size = math.ceil(size / block.stride)
        count += (block.hidden_channels + block.out_channels) * size**2
    return count + architecture.head_width * size**2


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
    parser.add_argument("--variant", type=choice(*VARIANTS), default="b0", help="member of the family")
    parser.add_argument("--image_size", type=positive_int, help="pixels; the variant's when left out")
    parser.add_argument("--class_num", type=positive_int, default=1000, help="number of classes")
    arguments = parser.parse_args(argv)
    architecture, classes = VARIANTS[arguments.variant], arguments.class_num
    size = arguments.image_size or architecture.image_size
    print(f"{VARIANTS[arguments.variant].title}, images of {size} x {size} pixels, {classes} classes")
    print(format_table(layer_table(architecture, size, classes)))
