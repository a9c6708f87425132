"""Kernels in C++ for the network's layers on a CPU, where MindSpore's own operators are slow.

`load_kernels` compiles them on first use. A network that is built with the result computes the same numbers, up to
rounding, from the same parameters; without it, it consists of MindSpore's standard operators, which every device
has and every export format knows.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from typing import Callable

from src.common.native import CompileError
from src.kernels.build import library
from src.kernels.operators import ConvNormKernel, MeanKernel, RMSPropKernel, SqueezeKernel


@dataclasses.dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        library: path of the shared library.
    """

    library: str

    def conv_norm(
        self,
        kernel_size: int,
        stride: int,
        groups: int,
        padding: str,
        activate: bool,
        norm_eps: float,
        norm_momentum: float,
    ) -> ConvNormKernel:
        """Convolution, batch norm and swish as one operator; arguments as `ConvNormActivation`'s."""
        kind = "depthwise" if groups > 1 else "pointwise" if kernel_size == 1 else "dense"
        symmetric = padding == "symmetric"
        return ConvNormKernel(self.library, kind, stride, symmetric, activate, norm_eps, norm_momentum)

    def squeeze(self) -> SqueezeKernel:
        """Squeeze-and-excitation as one operator."""
        return SqueezeKernel(self.library)

    def rmsprop(self, decay: float, momentum: float, epsilon: float, weight_decays: list) -> RMSPropKernel:
        """RMSProp for all parameters as one operator; arguments as `RMSPropKernel`'s."""
        return RMSPropKernel(self.library, decay, momentum, epsilon, weight_decays)

    def mean(self, channels: int) -> MeanKernel:
        """The mean over positions."""
        return MeanKernel(self.library, channels)


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
