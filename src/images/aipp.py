"""AIPP: the unit of an Ascend NPU that makes normalised float16 images of uint8 pixels; its settings, its arithmetic.

CANN's documentation gives the formula `[pixel - mean_chn - min_chn] * var_reci_chn` for each channel, with mean_chn in
uint8, min_chn and var_reci_chn in float16. A mean such as 123.675 has no near neighbour in float16 (123.6875), which
would move values near zero by up to a hundred steps. Its whole part therefore goes to mean_chn, which is exact, and the
rest, whose neighbours are near, to min_chn.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from src.common.cli import RunError
from src.images.preprocess import Preprocess

LARGEST_MEAN = 255.0
SMALLEST_STD = 1 / 65504
"""The reciprocal must be a number in float16."""


@dataclasses.dataclass(frozen=True)
class Aipp:
    """What AIPP does to an image.

    Attributes:
        size: pixels, side of the image.
        mean: whole part of the mean of each channel R, G, B, subtracted first.
        rest: of the mean.
        reciprocal: of the deviation.
    """

    size: int
    mean: tuple[int, ...]
    rest: tuple[float, ...]
    reciprocal: tuple[float, ...]

    @classmethod
    def from_preprocess(cls, preprocess: Preprocess) -> Aipp:
        """The settings that come nearest to `(pixel - mean) / std`.

        Raises:
            RunError: if AIPP cannot do it.
        """
        if not all(0 <= mean <= LARGEST_MEAN for mean in preprocess.mean):
            raise RunError(f"AIPP subtracts means of 0 to 255, the checkpoint's is {preprocess.mean}; take MINDIR")
        if min(preprocess.std) < SMALLEST_STD:
            raise RunError(f"AIPP's float16 cannot hold 1 / std, the checkpoint's std is {preprocess.std}; take MINDIR")
        whole = tuple(math.floor(mean) for mean in preprocess.mean)
        return cls(
            size=preprocess.image_size,
            mean=whole,
            rest=tuple(mean - part for mean, part in zip(preprocess.mean, whole)),
            reciprocal=tuple(1 / std for std in preprocess.std),
        )

    def to_text(self) -> str:
        """The file for ATC's --insert_op_conf, in protocol buffers' text form."""
        lines = [
            "aipp_mode: static",
            "input_format: RGB888_U8",
            f"src_image_size_w: {self.size}",
            f"src_image_size_h: {self.size}",
            "crop: false",
            "csc_switch: false",
            "rbuv_swap_switch: false",
        ]
        for name, values in (("mean", self.mean), ("min", self.rest), ("var_reci", self.reciprocal)):
            lines += [f"{name}_chn_{channel}: {value:.9g}" for channel, value in enumerate(values)]
        return "aipp_op {\n" + "".join(f"    {line}\n" for line in lines) + "}\n"

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """What AIPP makes of pixels, by the documented formula with one rounding at its end.

        Args:
            pixels: uint8 of shape (N, S, S, 3).

        Returns:
            float32 array of shape (N, 3, S, S), of numbers that float16 can hold.
        """
        rest, reciprocal = (np.asarray(part, np.float16).astype(np.float32) for part in (self.rest, self.reciprocal))
        values = (pixels.astype(np.float32) - np.asarray(self.mean, np.float32) - rest) * reciprocal
        return values.astype(np.float16).astype(np.float32).transpose(0, 3, 1, 2)
