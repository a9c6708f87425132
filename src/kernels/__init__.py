"""Kernels in C++ for the network's layers on a CPU, where MindSpore's own operators are slow.

`load_kernels` compiles them on first use. `Kernels.install` puts them into a finished network or optimiser, which then
computes the same numbers, up to rounding, from the same parameters. Without it, they consist of MindSpore's standard
operators, which every device has and every export format knows.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Iterator
from typing import Callable

from mindspore import nn

from src.common.native import CompileError
from src.kernels.build import library
from src.kernels.mbconv import MBConvKernel
from src.kernels.operators import ACTIVATIONS, ConvNormKernel, MeanKernel, RMSPropKernel, SqueezeKernel

FUSED = {
    "ConvNormActivation": ConvNormKernel,
    "SqueezeExcitation": SqueezeKernel,
    "MBConv": MBConvKernel,
    "PositionMean": MeanKernel,
    "RMSPropUpdate": RMSPropKernel,
}
"""The cells that kernels take the place of, by the names of their classes.

A kernel reads the cell's attributes and computes what it computes:

- ConvNormActivation: `conv` (nn.Conv2d without bias), `norm` (nn.BatchNorm2d), `activation` (one of ACTIVATIONS);
- SqueezeExcitation: `reduce` and `expand` (nn.Conv2d, 1x1, with bias), `activation` between them ("swish" or "relu6");
- MBConv: `expand`, `depthwise`, `se` and `project`, each of the cells above, and whether there are: `has_expand`,
  `has_squeeze`, `has_residual`;
- PositionMean: `channels`;
- RMSPropUpdate: `decay`, `momentum`, `epsilon`, and `weight_decays` of all parameters.
"""
# MindSpore's layers that expect (N, C, H, W); between kernels lies (N, H, W, C).
CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        library: path of the shared library.
    """

    library: str

    def install(self, cell: nn.Cell) -> bool:
        """Let a finished network or optimiser compute with kernels; parameters, their names and order stay.

        Install before `EfficientNet.freeze` and before the graph is compiled. The numbers must be float32. Afterwards
        a network's batch size must be known when a graph is compiled, and it cannot be exported.

        Returns:
            bool, whether that was done. All cells stay as they are where one of them is unknown to the kernels: another
            activation, a batch norm over several ranks, a convolution outside of the cells in FUSED.
        """
        places = list(find_places(cell))
        # A SequentialCell calls its cells by a list of its own, which `insert_child_to_cell` does not change.
        if not places or not all(
            is_known(child) and type(parent) is not nn.SequentialCell for parent, _, child in places
        ):
            return False
        for parent, name, child in places:
            # Not by assignment, which would prefix the parameters' names once more.
            parent.insert_child_to_cell(name, self.fuse(child))
        return True

    def fuse(self, cell: nn.Cell) -> nn.Cell:
        """The kernel for one of the cells in FUSED, with its parameters and in its mode."""
        return FUSED[type(cell).__name__](self.library, cell).set_train(cell.training)


def find_places(cell: nn.Cell) -> Iterator[tuple[nn.Cell, str, nn.Cell]]:
    """The cells within a cell that kernels may replace or that stand in their way: parent, name, cell."""
    for name, child in cell.name_cells().items():
        if type(child).__name__ in FUSED or isinstance(child, CHANNELS_FIRST):
            yield cell, name, child
        else:
            yield from find_places(child)


def is_known(cell: nn.Cell) -> bool:
    """Whether a kernel computes what a cell computes."""
    if type(cell).__name__ == "ConvNormActivation":
        return cell.activation in ACTIVATIONS and type(cell.norm) is nn.BatchNorm2d
    if type(cell).__name__ == "SqueezeExcitation":
        return cell.activation in ("swish", "relu6")
    if type(cell).__name__ == "MBConv":
        return all(is_known(part) for _, _, part in find_places(cell))
    return type(cell).__name__ in FUSED


def load_kernels(threads: int | None = None, say: Callable[[str], None] = print) -> Kernels | None:
    """The kernels for this machine, compiled where that has not been done; None, and one sentence, where it fails.

    Args:
        threads: how many compute; None takes one for each core that the process may use. Results are the same.
        say: told why there are none.
    """
    if not sys.platform.startswith("linux"):
        say(f"kernels: MindSpore's own operators, because its custom operators need Linux, not {sys.platform}")
        return None
    try:
        path = library()
        functions = ctypes.CDLL(path)
    except (CompileError, OSError) as error:
        say(f"kernels: MindSpore's own operators, which are slower, because {error}")
        return None
    if threads:
        functions.kernels_set_threads(threads)
    return Kernels(path)
