"""The random changes that training makes to an image: crop, mirror image, colours.

The random numbers of a batch depend on (seed, epoch, rank, batch) alone, and their effect on the image alone. A resumed
run therefore sees the same images as an undisturbed one, with any number of threads, with the compiled engine or
without.

- The crop is that of Szegedy et al. 2015 (arXiv:1409.4842), drawn as torchvision draws it: a share of the area, an
  aspect ratio, a position. It is resized with Pillow's antialiased bilinear filter. If the crop is at least twice as
  large as needed, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size.
- Brightness, contrast and saturation change as in Pillow's ImageEnhance and torchvision's ColorJitter, each by a factor
  around 1, in random order.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

from src.images.decode import check_pixels, decode
from src.images.engine import find_engine, request_resize
from src.images.preprocess import Preprocess, check_shape

ATTEMPTS = 10
"""Crops that are drawn before the largest possible one in the centre is taken instead."""
ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], np.int32)
# Each image has a row of random numbers. These are the positions in it that decide each change.
AREA, ASPECT = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
PLACE = slice(2 * ATTEMPTS, 2 * ATTEMPTS + 2)
MIRROR = PLACE.stop
COLOURS = slice(MIRROR + 1, MIRROR + 4)
ORDER = COLOURS.stop
NUMBERS = ORDER + 1
AUTO_AUGMENTS = ("none", "randaugment", "autoaugment")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes are made to a training image.

    Attributes:
        random_crop: True takes a random crop, False the whole image; either is resized to a square.
        crop_scale_min: smallest share of the image's area that a crop takes, above 0 and at most 1.
        crop_aspect_max: longer by shorter side of the most elongated crop, at least 1.
        flip: half of the images are mirrored horizontally.
        color_jitter: strength of the change of brightness, contrast and saturation; 0 changes nothing.
        auto_augment: one of AUTO_AUGMENTS, MindSpore's policies, which `src/dataset.py` applies between crop and
            colours.

    Raises:
        ValueError: if auto_augment is not one of AUTO_AUGMENTS.
    """

    random_crop: bool = True
    crop_scale_min: float = 0.08
    crop_aspect_max: float = 4 / 3
    flip: bool = True
    color_jitter: float = 0.4
    auto_augment: str = "none"

    def __post_init__(self):
        if self.auto_augment not in AUTO_AUGMENTS:
            raise ValueError(f"auto_augment is {self.auto_augment!r}, not one of {', '.join(AUTO_AUGMENTS)}")


def draw_numbers(images: int, seed: int, epoch: int, rank: int, batch: int) -> np.ndarray:
    """The random numbers of a batch: float64 array of shape (images, NUMBERS), from [0, 1)."""
    return np.random.default_rng([seed, epoch, rank, batch]).random((images, NUMBERS))


def choose_crop(numbers: np.ndarray, width: int, height: int, augmentation: Augmentation) -> tuple[int, int, int, int]:
    """Draw the crop of an image.

    Args:
        numbers: float64 array of shape (NUMBERS,) from [0, 1).
        width, height: pixels, the image's size.
        augmentation: the bounds of area and aspect ratio.

    Returns:
        (left, top, width, height) of the crop in pixels.
    """
    if not augmentation.random_crop:
        return 0, 0, width, height
    limit = math.log(augmentation.crop_aspect_max)
    x, y = numbers[PLACE]
    for share, shape in zip(numbers[AREA], numbers[ASPECT]):
        area = width * height * (augmentation.crop_scale_min + (1 - augmentation.crop_scale_min) * share)
        aspect = math.exp((2 * shape - 1) * limit)
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return int(x * (width - wide + 1)), int(y * (height - tall + 1)), wide, tall
    wide = min(width, round(height * augmentation.crop_aspect_max))
    tall = min(height, round(width * augmentation.crop_aspect_max))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def choose_reduction(width: int, height: int, side: int) -> int:
    """The largest of 1, 2, 4 and 8 that may divide a JPEG's size so that its crop keeps `side` pixels or more."""
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * side), 1)


def augment(
    data: bytes,
    path: str,
    numbers: np.ndarray,
    augmentation: Augmentation,
    preprocess: Preprocess,
    out: np.ndarray,
) -> None:
    """Decode, crop and mirror an image; `change_colours` does the rest.

    Args:
        data: the file's bytes.
        path: the file's name, for the error.
        numbers: float64 array of shape (NUMBERS,) from [0, 1).
        augmentation: which changes are made.
        preprocess: its image_size.
        out: uint8 array of shape (3, S, S), contiguous, that receives the pixels.

    Raises:
        ImageError: if the image cannot be decoded, or is too large or too elongated.
    """
    side, flip = preprocess.image_size, bool(augmentation.flip and numbers[MIRROR] < 0.5)
    engine = find_engine()
    size = engine.jpeg_size(data) if engine else None
    if size:
        check_pixels(*size, path)
        check_shape(*size, preprocess, path)
        reduce, box = choose_box(numbers, *size, augmentation, side)
        request = request_resize(box, (side, side), (0, 0), side, "bilinear", reduce=reduce, flip=flip)
        if engine.resize_jpeg(data, request, out):
            return
    augment_by_pillow(data, path, numbers, augmentation, preprocess, flip, out)


def choose_box(numbers, width: int, height: int, augmentation: Augmentation, side: int) -> tuple[int, tuple]:
    """The factor that divides a JPEG's size, and (left, top, width, height) of the crop in the pixels that it gives."""
    crop = choose_crop(numbers, width, height, augmentation)
    factor = choose_reduction(*crop[2:], side)
    return factor, tuple(value // factor for value in crop)


def augment_by_pillow(data, path, numbers, augmentation, preprocess, flip, out) -> None:
    """`augment` for the images that the compiled engine does not take."""
    side, whole = preprocess.image_size, []

    def reduce(width: int, height: int) -> int:
        check_shape(width, height, preprocess, path)
        whole.extend((width, height))
        return choose_box(numbers, width, height, augmentation, side)[0]

    image = decode(data, path, reduce)[1]
    if image.size == tuple(whole):
        left, top, width, height = choose_crop(numbers, *whole, augmentation)
    else:
        left, top, width, height = choose_box(numbers, *whole, augmentation, side)[1]
    # Rows and columns in two calls: Pillow 13 and later begins with the columns where that is less work, which rounds
    # differently.
    rows = image.crop((left, top, left + width, top + height)).resize((side, height), Image.Resampling.BILINEAR)
    image = rows.resize((side, side), Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[:] = np.asarray(image).transpose(2, 0, 1)


def change_colours(planes: np.ndarray, numbers: np.ndarray, augmentation: Augmentation) -> None:
    """Change brightness, contrast and saturation at random, in place.

    Args:
        planes: uint8 array of shape (3, S, S), contiguous.
        numbers: float64 array of shape (NUMBERS,) from [0, 1).
        augmentation: its color_jitter.
    """
    if not augmentation.color_jitter:
        return
    order = ORDERS[int(numbers[ORDER] * len(ORDERS))]
    factors = (1 + augmentation.color_jitter * (2 * numbers[COLOURS] - 1)).astype(np.float32)
    engine = find_engine()
    if engine:
        engine.adjust_colours(planes, order, factors)
    else:
        planes[:] = adjust_by_pillow(planes, order, factors)


def adjust_by_pillow(planes: np.ndarray, order: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The planes with changed colours; see `ImageEngine.adjust_colours`."""
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in order:
        image = enhancers[which](image).enhance(float(factors[which]))
    return np.asarray(image).transpose(2, 0, 1)
