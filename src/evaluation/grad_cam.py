"""Where a network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) at its last feature maps. NumPy only."""

from __future__ import annotations

import dataclasses
from typing import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Head:
    """The end of a network whose logits are a dense layer's, of the mean of feature maps over their positions.

    Attributes:
        features: from crops, uint8 of shape (N, S, S, 3), to the maps, float of shape (N, channels, H, W).
        weights: of the dense layer, float of shape (classes, channels).
    """

    features: Callable[[np.ndarray], np.ndarray]
    weights: np.ndarray


def class_maps(features: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much each position speaks for a class.

    Grad-CAM weights the maps by the mean gradient of the class's logit. Where that logit is a dense layer's, of the
    maps' mean, the gradient is the dense weight divided by the number of positions, so that none has to be computed.

    Args:
        features: float of shape (N, channels, H, W).
        weights: float of shape (classes, channels).
        labels: ints of shape (N,), a class for each image.

    Returns:
        float32 of shape (N, H, W), at least 0.
    """
    positions = features.shape[2] * features.shape[3]
    maps = np.einsum("nchw,nc->nhw", features.astype(np.float32), weights[labels].astype(np.float32)) / positions
    return np.maximum(maps, 0)
