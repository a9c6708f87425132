"""Images for a network whose own are not at hand: random patterns that its stem takes for what it was trained on.

A network may magnify rounding errors without bound on images that are unlike its own, and then no comparison proves
anything. Its first batch norm remembers what its own were like: from the mean and the variance of every channel behind
the stem's convolution follow brightness, contrast and coarseness. NumPy and Pillow only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from src.weights.model_info import ModelInfo
from src.weights.names import Weights

COUNT = 4
SEED = 1
CELLS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Side of the random patterns before they are enlarged to the image."""
DRAWS = 2
"""Patterns of each coarseness, as many grey ones and as many in colours."""
POSITIONS = 64
"""At the stem's output, in a row, that the statistics are taken from at least where there are so many."""
RIDGE = 1e-3
"""Holds the brightness at the preprocessing's mean where the stem does not respond to it."""


def seeded_images(weights: Weights, info: ModelInfo) -> np.ndarray:
    """The patterns that are nearest to what the first batch norm remembers, the same ones in every run.

    Args:
        weights: of the network, batch norms and all.
        info: of the network.

    Returns:
        uint8 array of shape (COUNT, S, S, 3).
    """
    generator = np.random.default_rng(SEED)
    size = info.preprocess.image_size
    found = []
    # That a weight is not finite is for the comparison to find.
    with np.errstate(all="ignore"):
        for cells in (cells for cells in CELLS if cells <= size):
            for channels in (1, 3) * DRAWS:
                pattern = draw_pattern(generator, cells, channels, size)
                found.append(fit_pattern(pattern, weights, info))
    found.sort(key=lambda pair: pair[0])
    return np.stack([pixels for _, pixels in found[:COUNT]])


def draw_pattern(generator: np.random.Generator, cells: int, channels: int, size: int) -> np.ndarray:
    """Dark and light cells with soft edges, in grey or in colours: float32 of shape (3, size, size), mean 0."""
    signs = generator.choice(np.array([-1, 1], np.float32), (channels, cells, cells))
    planes = [np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC)) for plane in signs]
    pattern = np.broadcast_to(planes, (3, size, size))
    return pattern - pattern.mean((1, 2), keepdims=True)


def fit_pattern(pattern: np.ndarray, weights: Weights, info: ModelInfo) -> tuple[float, np.ndarray]:
    """Give a pattern the contrast and the brightness that the first batch norm remembers.

    Returns:
        How far the result is from it, and the result as uint8 pixels of shape (S, S, 3). The distance is the
        Kullback-Leibler divergence of normal distributions, a channel's mean.
    """
    weight = weights["stem.conv.weight"]
    mean, variance = (weights[f"stem.norm.moving_{part}"].astype(np.float64) for part in ("mean", "variance"))
    variance = variance + info.norm_eps
    own_mean, own_variance = stem_statistics(pattern, weight, info)
    contrast = np.exp(np.log(variance / own_variance).mean() / 2)
    # Least squares: what the channels respond to a plain colour, in their deviations, against what they should have.
    response = weight.sum((2, 3)) / np.sqrt(variance)[:, None]
    wanted = (mean - contrast * own_mean) / np.sqrt(variance)
    brightness = np.linalg.solve(response.T @ response + RIDGE * np.eye(3), response.T @ wanted)
    image = (contrast * pattern + brightness[:, None, None]).transpose(1, 2, 0)
    pixels = image * info.preprocess.std + info.preprocess.mean
    pixels = np.nan_to_num(pixels).clip(0, 255).round().astype(np.uint8)

    image = ((pixels - np.array(info.preprocess.mean)) / info.preprocess.std).transpose(2, 0, 1)
    own_mean, own_variance = stem_statistics(image.astype(np.float32), weight, info)
    ratio = own_variance / variance
    return float((ratio + (own_mean - mean) ** 2 / variance - 1 - np.log(ratio)).mean() / 2), pixels


def stem_statistics(image: np.ndarray, weight: np.ndarray, info: ModelInfo) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and variance with the batch norm's epsilon, of each channel behind the stem's 3x3 convolution of stride 2.

    Args:
        image: float32 of shape (3, S, S).
        weight: of shape (C, 3, 3, 3).
        info: of the network.

    Returns:
        Two float64 arrays of shape (C,).
    """
    size = image.shape[-1]
    # TensorFlow's padding has no pixel before an image of an even side.
    first = int(info.padding == "same" and size % 2 == 0)
    # Of large images some of the positions tell enough.
    step = 2 * max(1, size // POSITIONS // 2)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, first::step, first::step]
    outputs = np.tensordot(weight, windows, ((1, 2, 3), (0, 3, 4))).astype(np.float64)
    return outputs.mean((1, 2)), outputs.var((1, 2)) + info.norm_eps
