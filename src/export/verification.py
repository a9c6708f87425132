"""Is an exported file the network that was trained? Images to run both on, and the comparison of their logits."""

from __future__ import annotations

import dataclasses
import math
from typing import Callable

import numpy as np

from src.images.decode import read_file
from src.images.preprocess import Preprocess, crop_encoded
from src.weights.names import Weights

LAST_BITS = 2.0**-20
"""Relative change of every number that a network computes with, 8 to 16 units in float32's last place..."""
ROUNDING_SEED = 1
ROUNDING_DRAWS = 4
"""...in so many draws of random signs..."""
ROUNDING_FACTOR = 2
"""...and how many times as far as the farthest of them two ways to compute the same network may lie apart.

Where errors grow in proportion, ways that add up in another order lie about as far apart as a change of the last bit
alone takes the logits, a thirtieth of this. Where a network is so steep that they jump, draws of the last bit alone
would miss jumps."""
SMALLEST_LOGIT = 1e-2
LARGE_ROUNDING = 0.1


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
        rounding: the difference that rounding errors may make, as far as it was measured.
    """

    images: int
    difference: float
    largest: float
    bound: float
    same_class: int
    rounding: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the file may be delivered; a number that is not finite never passes."""
        return self.difference <= self.bound < math.inf

    def describe(self) -> str:
        """The figures for a line of output."""
        return (
            f"largest difference {self.difference:.3g} (allowed {self.bound:.3g}, logits up to {self.largest:.3g}), "
            f"same class for {self.same_class} of {self.images} images"
        )

    @property
    def doubt(self) -> str | None:
        """Why the comparison proves little, where it does."""
        if self.largest < SMALLEST_LOGIT:
            return "the logits are nearly zero, which proves little; the network looks untrained"
        if self.rounding > self.largest * LARGE_ROUNDING:
            return (
                "on these images rounding errors alone may move the logits that far, which proves little; are they "
                "like those that the network was trained on?"
            )
        return None


def compare(
    reference: np.ndarray, logits: np.ndarray, tolerance: float, relative: bool = False, rounding: float = 0.0
) -> Comparison:
    """Compare two arrays of logits of shape (N, C).

    Args:
        tolerance: difference allowed for each unit of the largest logit, and for logits below 1 altogether.
        relative: leave out of the difference what all classes of an image share. It changes neither the class nor a
            probability, and may be a hundred times as large as what tells the classes apart.
        rounding: difference that is allowed in any case; see `measure_rounding`.

    Raises:
        ValueError: if the shapes differ.
    """
    if reference.shape != logits.shape:
        raise ValueError(f"logits have shapes {reference.shape} and {logits.shape}")
    same_class = int((reference.argmax(1) == logits.argmax(1)).sum())
    apart = centre(reference)
    difference = float(np.abs(apart - centre(logits) if relative else reference - logits).max())
    largest = float(np.abs(apart).max())
    bound = max(tolerance * max(1.0, largest), rounding)
    return Comparison(
        images=len(reference),
        difference=difference,
        largest=largest,
        bound=bound,
        same_class=same_class,
        rounding=rounding,
    )


def centre(logits: np.ndarray) -> np.ndarray:
    """Logits less the mean of their image's, in float64; a single class has nothing to be apart from."""
    logits = logits.astype(np.float64)
    return logits - logits.mean(1, keepdims=True) if logits.shape[1] > 1 else logits


def measure_rounding(
    run: Callable[[Weights, np.ndarray], np.ndarray], weights: Weights, images: np.ndarray, reference: np.ndarray
) -> float:
    """How far rounding errors may take the logits, measured on the network itself.

    Every intermediate result of a network is rounded, and each way to compute it rounds elsewhere. The effect is that
    of a change in the last bits of the input and of the weights that follow.

    Args:
        run: weights and images to logits of shape (N, C).
        weights: of the network, batch norms and all.
        images: float32 of shape (N, 3, S, S).
        reference: the logits of both as they are.
    """
    generator = np.random.default_rng(ROUNDING_SEED)
    farthest = 0.0
    for _ in range(ROUNDING_DRAWS):
        changed = {name: change_last_bits(value, generator) for name, value in weights.items()}
        logits = run(changed, change_last_bits(images, generator))
        farthest = max(farthest, float(np.abs(logits - reference).max()))
    return ROUNDING_FACTOR * farthest


def change_last_bits(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Each number by LAST_BITS of itself larger or smaller."""
    signs = generator.choice(np.array([-1, 1], np.float32), values.shape)
    return values.astype(np.float32) * (1 + np.float32(LAST_BITS) * signs)
