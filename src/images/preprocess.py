"""Preprocessing for evaluation and inference: its settings as a value, and its arithmetic in NumPy and Pillow.

All programs, the one in C++ included, follow the same rules:

- The image is decoded to RGB as `src/images/decode.py` says.
- The shorter side becomes `resize` pixels, the longer `floor(long / short * resize)` in float32, as in MindSpore.
- Pillow's resampling (8 bits, fixed point), then the centre is cut out; where the border is an odd number of pixels
  wide, the additional pixel is on the right or at the bottom.
- `(pixel - mean) / std` in float32, channels first.

`src/images/engine.py` gives the same pixels for everyday JPEGs in half the time.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from src.common.cli import RunError
from src.images.bad_images import ImageError
from src.images.decode import check_pixels, open_image, read_file
from src.images.engine import find_engine, request_resize

INTERPOLATIONS = ("bicubic", "bilinear")
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_RESIZED_SIDE = 1 << 15
"""Pixels, limit of the longer side after resizing: an image of 1 x 60000 pixels would grow to gigabytes."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """The settings that lead from an image file to the network's input.

    The shorter side is resized to `resize` pixels, the centre of `image_size` x `image_size` pixels is cut out, and
    `(pixel - mean) / std` is taken per channel.

    Attributes:
        image_size: pixels, side of the square that the network sees.
        resize: pixels, the shorter side after resizing, at least `image_size`.
        interpolation: "bicubic" or "bilinear", as Pillow computes them.
        mean: per channel R, G, B in units of 0 to 255.
        std: per channel R, G, B in units of 0 to 255, above 0.

    Raises:
        RunError: naming a setting whose value is of the wrong type or out of range.
    """

    image_size: int = 224
    resize: int = 256
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self):
        for name, low in (("image_size", 1), ("resize", self.image_size)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_RESIZED_SIDE:
                raise RunError(
                    f"the preprocessing's {name} is {value!r}, not a whole number from {low} to {MAX_RESIZED_SIDE}"
                )
        if self.interpolation not in INTERPOLATIONS:
            raise RunError(f"the preprocessing's interpolation is {self.interpolation!r}, not bicubic or bilinear")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or len(values) != 3 or not all(map(is_finite_number, values)):
                raise RunError(f"the preprocessing's {name} is {values!r}, not three numbers")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if min(self.std) <= 0:
            raise RunError(f"the preprocessing's std is {self.std!r}; it must be above 0")

    @classmethod
    def for_image_size(cls, image_size: int, crop_ratio: float = 0.875, **settings) -> Preprocess:
        """The usual settings for an image size: the shorter side is `image_size / crop_ratio`, rounded half up."""
        return cls(image_size=image_size, resize=max(image_size, math.floor(image_size / crop_ratio + 0.5)), **settings)

    def to_dict(self) -> dict:
        """The settings as plain JSON types."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, settings: dict) -> Preprocess:
        """Read what `to_dict` gave.

        Raises:
            RunError: if a setting is unknown, or its value is of the wrong type or out of range.
        """
        if not isinstance(settings, dict):
            raise RunError(f"the preprocessing settings are {settings!r}, not names with values")
        unknown = settings.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise RunError(f"the preprocessing has no setting {sorted(map(str, unknown))[0]!r}")
        return cls(**settings)


def is_finite_number(value: object) -> bool:
    """Whether a value is an int or float that is neither infinite nor NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def resized_size(height: int, width: int, resize: int) -> tuple[int, int]:
    """Height and width after the shorter side becomes `resize` pixels.

    MindSpore divides in float32 and rounds down; the same is done here, so that no image differs by a row.
    """
    short, long = min(height, width), max(height, width)
    longer = int(np.floor(np.float32(long) / np.float32(short) * np.float32(resize)))
    return (resize, longer) if height <= width else (longer, resize)


def check_shape(width: int, height: int, preprocess: Preprocess, path: str) -> None:
    """Refuse an image that is so elongated that resizing would make it huge.

    Raises:
        ImageError: if the longer side would pass MAX_RESIZED_SIDE pixels.
    """
    if max(resized_size(height, width, preprocess.resize)) > MAX_RESIZED_SIDE:
        raise ImageError(f"{path}: an image of {width} x {height} pixels is too elongated")


def crop_for_evaluation(image: np.ndarray | Image.Image, preprocess: Preprocess, path: str = "the image") -> np.ndarray:
    """Resize the shorter side and cut out the centre.

    Args:
        image: uint8 array of shape (H, W, 3), or a Pillow image in RGB.
        preprocess: the sizes and the interpolation.
        path: the file's name, for the error.

    Returns:
        uint8 array of shape (image_size, image_size, 3).

    Raises:
        ImageError: see `check_shape`.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    check_shape(image.width, image.height, preprocess, path)
    height, width = resized_size(image.height, image.width, preprocess.resize)
    side, method = preprocess.image_size, RESAMPLING[preprocess.interpolation]
    top, left = (height - side) // 2, (width - side) // 2
    # Pillow resizes along rows, rounds to 8 bits, and resizes along columns. Here these are two calls, which leave out
    # the rows and columns that the crop does not need: the same bytes in five sixths of the time. The bicubic filter
    # reaches two pixels out.
    scale = image.height / height
    reach = 3 * max(1.0, scale) + 1
    first = max(0, int(top * scale - reach))
    last = min(image.height, int((top + side) * scale + reach) + 1)
    rows = image.crop((0, first, image.width, last)).resize((width, last - first), method)
    columns = rows.crop((left, -first, left + side, image.height - first)).resize((side, height), method)
    return np.asarray(columns.crop((0, top, side, top + side)))


def normalise(crop: np.ndarray, preprocess: Preprocess, out: np.ndarray | None = None) -> np.ndarray:
    """`(pixel - mean) / std` in float32, channels first.

    Args:
        crop: uint8 array of shape (S, S, 3).
        preprocess: mean and std.
        out: float32 array of shape (3, S, S) to write to, such as a row of a batch; None makes a new one.

    Returns:
        float32 array of shape (3, S, S).
    """
    if out is None:
        out = np.empty((3, *crop.shape[:2]), np.float32)
    # One plane at a time and in place: ten times as fast as the formula on whole arrays, with the same result.
    for plane, pixels, mean, std in zip(out, crop.transpose(2, 0, 1), preprocess.mean, preprocess.std):
        np.subtract(pixels, np.float32(mean), out=plane, dtype=np.float32)
        np.divide(plane, np.float32(std), out=plane)
    return out


def crop_encoded(data: bytes, path: str, preprocess: Preprocess) -> np.ndarray:
    """Decode an image, resize the shorter side and cut out the centre.

    Args:
        data: the file's bytes.
        path: the file's name, for errors.
        preprocess: the sizes and the interpolation.

    Returns:
        uint8 array of shape (image_size, image_size, 3).

    Raises:
        ImageError: see `open_image` and `crop_for_evaluation`.
    """
    engine = find_engine()
    size = engine.jpeg_size(data) if engine else None
    if size:
        width, height = size
        check_pixels(width, height, path)
        check_shape(width, height, preprocess, path)
        new_height, new_width = resized_size(height, width, preprocess.resize)
        side = preprocess.image_size
        window = (new_width - side) // 2, (new_height - side) // 2
        request = request_resize((0, 0, width, height), (new_width, new_height), window, side, preprocess.interpolation)
        planes = np.empty((3, side, side), np.uint8)
        if engine.resize_jpeg(data, request, planes):
            return planes.transpose(1, 2, 0)
    return crop_for_evaluation(open_image(data, path), preprocess, path)


def load_image(path: str, preprocess: Preprocess) -> np.ndarray:
    """An image file as the network's input: float32 array of shape (3, S, S).

    Raises:
        ImageError: if the file cannot be used.
    """
    return normalise(crop_encoded(read_file(path), path, preprocess), preprocess)
