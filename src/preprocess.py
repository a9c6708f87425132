"""What happens to an image before the network, as data, and the same in NumPy and Pillow."""

from __future__ import annotations

import dataclasses
import math
from typing import Tuple

from src.cli import RunError

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The evaluation's way from an image file to the network's input.

    The shorter side is resized to `resize` pixels, the centre of `image_size` x `image_size` pixels is cut out, and
    `(pixel - mean) / std` is taken per channel.

    Attributes:
        image_size: pixels, side of the square that the network sees.
        resize: pixels, the shorter side after resizing, at least `image_size`.
        interpolation: "bicubic" or "bilinear", as Pillow computes them.
        mean: per channel R, G, B in units of 0 to 255.
        std: per channel R, G, B in units of 0 to 255.
    """

    image_size: int = 224
    resize: int = 256
    interpolation: str = "bicubic"
    mean: Tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: Tuple[float, float, float] = (127.5, 127.5, 127.5)

    @classmethod
    def for_image_size(cls, image_size: int, crop_ratio: float = 0.875, **settings) -> "Preprocess":
        """The usual settings for an image size: the shorter side is `image_size / crop_ratio`, rounded."""
        return cls(image_size=image_size, resize=max(image_size, math.floor(image_size / crop_ratio + 0.5)), **settings)

    def to_dict(self) -> dict:
        """The settings as plain JSON types."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, settings: dict) -> "Preprocess":
        """Read what `to_dict` gave."""
        settings = dict(settings)
        for name in ("mean", "std"):
            if name in settings:
                settings[name] = tuple(float(value) for value in settings[name])
        try:
            return cls(**settings)
        except TypeError as error:
            raise RunError(f"the preprocessing settings are broken ({error})") from None
