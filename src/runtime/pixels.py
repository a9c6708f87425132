"""Pixels on their way to the network: a byte each until they are on the device."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops


class Normalise(nn.Cell):
    """(pixel - mean) / std of each channel.

    Args:
        mean, std: of the channels, in units of 0 to 255.

    Inputs: images of shape (N, C, H, W), uint8, or of another type where they are normalised already.
    Outputs: float32 images, or the others as they are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__(auto_prefix=False)
        self.mean, self.std = (ms.Tensor(np.array(values, np.float32).reshape(1, -1, 1, 1)) for values in (mean, std))

    def construct(self, images):
        if images.dtype == ms.uint8:
            return (ops.cast(images, ms.float32) - self.mean) / self.std
        return images
