"""Is an exported file the network that was trained? Images to run both on, and the comparison of their logits."""

from __future__ import annotations

import dataclasses

import numpy as np

from src.images.decode import read_file
from src.images.preprocess import Preprocess, crop_encoded

NOISE_IMAGES = 4
NOISE_SEED = 1
PATCH = 16
"""Pixels, side of the noise's coarse patches: single pixels alone would average out in the first layers."""
SMALLEST_LOGIT = 1e-2


def noise_pixels(preprocess: Preprocess) -> np.ndarray:
    """Seeded noise, half in single pixels and half in patches: uint8 of shape (NOISE_IMAGES, S, S, 3)."""
    generator = np.random.default_rng(NOISE_SEED)
    size = preprocess.image_size
    patches = -(-size // PATCH)
    coarse = generator.integers(0, 256, (NOISE_IMAGES, patches, patches, 3))
    coarse = coarse.repeat(PATCH, 1).repeat(PATCH, 2)[:, :size, :size]
    fine = generator.integers(0, 256, (NOISE_IMAGES, size, size, 3))
    return ((coarse + fine) // 2).astype(np.uint8)


def read_pixels(paths: list[str], preprocess: Preprocess) -> np.ndarray:
    """Images as evaluation crops them: uint8 of shape (N, S, S, 3).

    Raises:
        ImageError: if one cannot be used.
    """
    return np.stack([crop_encoded(read_file(path), path, preprocess) for path in paths])


def pick_evenly(paths: list[str], count: int) -> list[str]:
    """At most `count` of the paths, spread evenly from the first to the last."""
    if len(paths) <= count:
        return list(paths)
    return [paths[round(i)] for i in np.linspace(0, len(paths) - 1, count)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Logits of the exported file beside those of the network.

    Attributes:
        images: how many were compared.
        difference: largest difference between two logits.
        largest: largest logit of the network, apart from what all classes of an image share.
        bound: the difference that is allowed.
        same_class: images that both put in the same class.
    """

    images: int
    difference: float
    largest: float
    bound: float
    same_class: int

    @property
    def passed(self) -> bool:
        """Whether the file may be delivered; a number that is not finite never passes."""
        return self.difference <= self.bound

    def describe(self) -> str:
        """The figures for a line of output."""
        return (
            f"largest difference {self.difference:.3g} (allowed {self.bound:.3g}, logits up to {self.largest:.3g}), "
            f"same class for {self.same_class} of {self.images} images"
        )

    @property
    def proves_little(self) -> bool:
        """Whether the logits are so small that no difference could be seen."""
        return self.largest < SMALLEST_LOGIT


def compare(
    reference: np.ndarray, logits: np.ndarray, tolerance: float, relative: bool = False, rounding: float = 0.0
) -> Comparison:
    """Compare two arrays of logits of shape (N, C).

    Args:
        tolerance: difference allowed for each unit of the largest logit, and for logits below 1 altogether.
        relative: leave out of the difference what all classes of an image share. It changes neither the class nor a
            probability, and may be a hundred times as large as what tells the classes apart.
        rounding: further difference that is allowed.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits have shapes {reference.shape} and {logits.shape}")
    same_class = int((reference.argmax(1) == logits.argmax(1)).sum())
    apart = centre(reference)
    difference = float(np.abs(apart - centre(logits) if relative else reference - logits).max())
    largest = float(np.abs(apart).max())
    return Comparison(len(reference), difference, largest, tolerance * max(1.0, largest) + rounding, same_class)


def centre(logits: np.ndarray) -> np.ndarray:
    """Logits less the mean of their image's, in float64; a single class has nothing to be apart from."""
    logits = logits.astype(np.float64)
    return logits - logits.mean(1, keepdims=True) if logits.shape[1] > 1 else logits
