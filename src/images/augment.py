"""What training does to an image at random: crop, mirror, colours. Neither MindSpore nor threads take part in it.

The numbers of a batch come from (seed, epoch, rank, batch) alone and what they mean from the image alone, so that a
resumed run sees what the undisturbed one saw, whatever the number of threads and whoever decodes.

- The crop is that of Szegedy et al. 2015 (arXiv:1409.4842) as everyone draws it: a share of the area, an aspect ratio,
  a place; resized with Pillow's antialiased bilinear filter. A JPEG of which the crop is at least twice as large as
  needed is decoded at 1/2, 1/4 or 1/8 of its size.
- Brightness, contrast and saturation change as Pillow's ImageEnhance and torchvision's ColorJitter change them, each by
  a factor around 1, in random order.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance

from src.images.decode import check_pixels, decode
from src.images.engine import FILTERS, Request, find_engine
from src.images.preprocess import Preprocess, check_shape

ATTEMPTS = 10
"""Crops that are drawn before the largest one in the middle is taken."""
ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)], np.int32)
# Where in an image's row of random numbers each choice finds its own.
AREA, ASPECT = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
PLACE = slice(2 * ATTEMPTS, 2 * ATTEMPTS + 2)
MIRROR = PLACE.stop
COLOURS = slice(MIRROR + 1, MIRROR + 4)
ORDER = COLOURS.stop
NUMBERS = ORDER + 1
AUTO_AUGMENTS = ("none", "randaugment", "autoaugment")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Which random changes a training image gets.

    Attributes:
        random_crop: random resized crop; else the whole image, resized to a square.
        crop_scale_min: smallest share of the area that a crop takes.
        crop_aspect_max: width by height or height by width of the most elongated crop.
        flip: horizontally, half of the images.
        color_jitter: strength for brightness, contrast and saturation; 0 is off.
        auto_augment: a policy of MindSpore's that works between crop and colours, see `src/dataset.py`.
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
    """The part of an image that is taken.

    Args:
        numbers: float64 array of shape (NUMBERS,).
        width, height: of the image, in pixels.
        augmentation: the bounds of area and aspect ratio.

    Returns:
        (left, top, width, height) in pixels.
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
    wide = min(width, max(1, round(height * augmentation.crop_aspect_max)))
    tall = min(height, max(1, round(width * augmentation.crop_aspect_max)))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def choose_reduction(width: int, height: int, side: int) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG may be decoded for a crop of this size to give `side` pixels or more."""
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * side), 1)


def augment(
    data: bytes,
    path: str,
    numbers: np.ndarray,
    augmentation: Augmentation,
    preprocess: Preprocess,
    out: np.ndarray,
) -> None:
    """Decode, crop and mirror an image; colours are `change_colours`' work.

    Args:
        data: the file's bytes.
        path: its name, for the sentence.
        numbers: float64 array of shape (NUMBERS,) from [0, 1).
        augmentation: what is to be done.
        preprocess: its image_size.
        out: uint8 array of shape (3, S, S), contiguous, that receives the pixels.

    Raises:
        ImageError: if it cannot be used.
    """
    side, flip = preprocess.image_size, bool(augmentation.flip and numbers[MIRROR] < 0.5)
    engine = find_engine()
    size = engine.jpeg_size(data) if engine else None
    if size:
        check_pixels(*size, path)
        check_shape(*size, preprocess, path)
        reduce, box = choose_box(numbers, *size, augmentation, side)
        if engine.resize_jpeg(data, Request(reduce, *box, side, side, 0, 0, side, FILTERS["bilinear"], flip), out):
            return
    augment_by_pillow(data, path, numbers, augmentation, preprocess, flip, out)


def choose_box(numbers, width: int, height: int, augmentation: Augmentation, side: int) -> tuple[int, tuple]:
    """How much smaller a JPEG is decoded, and (left, top, width, height) of the crop in the pixels that this gives."""
    crop = choose_crop(numbers, width, height, augmentation)
    factor = choose_reduction(*crop[2:], side)
    return factor, tuple(value // factor for value in crop)


def augment_by_pillow(data, path, numbers, augmentation, preprocess, flip, out) -> None:
    """What `augment` does, for all that the engine leaves."""
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
    # One after the other: from 13 on Pillow takes the columns first where that is less work, which rounds otherwise.
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
        augmentation: how much.
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
    """The planes with other colours; see `ImageEngine.adjust_colours`."""
    image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for which in order:
        image = enhancers[which](image).enhance(float(factors[which]))
    return np.asarray(image).transpose(2, 0, 1)
