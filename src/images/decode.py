"""Reading and decoding an image file with Pillow, and the errors on files that cannot be decoded.

The image becomes RGB as Pillow's `convert("RGB")` makes it: greyscale is repeated, alpha is dropped, CMYK and palettes
are converted. Of 16 bits the upper 8 are kept, for grey as for colour. The EXIF orientation is ignored, as it always
was in training on ImageNet.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import Callable

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from src.common.cli import describe_os_error
from src.images.bad_images import ImageError

MAX_PIXELS = 100_000_000
"""An image whose header claims more is refused as a decompression bomb before anything is decoded."""


def check_pixels(width: int, height: int, path: str) -> None:
    """Refuse a decompression bomb by the size in its header.

    Raises:
        ImageError: if it has more than MAX_PIXELS pixels.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(f"{path}: the image is refused, it has {width} x {height} pixels; the limit is {MAX_PIXELS}")


def open_image(data: bytes, path: str) -> Image.Image:
    """Decode an image to RGB with Pillow.

    Args:
        data: the file's bytes.
        path: the file's name, for the error.

    Raises:
        ImageError: if the file is empty, no image, truncated, damaged, or too large.
    """
    return decode(data, path)[1]


def decode(data: bytes, path: str, reduce: Callable[[int, int], int] | None = None) -> tuple[str, Image.Image]:
    """Pillow's name of the format, and the image in RGB.

    Args:
        data: the file's bytes.
        path: the file's name, for the error.
        reduce: function of an image's width and height that returns 1, 2, 4 or 8, by which a JPEG's size is divided
            while it is decoded; other formats keep their size.

    Raises:
        ImageError: see `open_image`.
    """
    if not data:
        raise ImageError(f"{path}: the image file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, for which our own limit is lower, and of odd EXIF data, which is ignored.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            check_pixels(*image.size, path)
            factor = reduce(*image.size) if reduce else 1
            if factor > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
                image.draft(None, (image.width // factor, image.height // factor))
            if image.mode.startswith("I"):
                # Pillow's convert would turn all but the darkest 1/256 of these greys into white.
                grey = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
                return image.format, grey.convert("RGB")
            return image.format, image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        # Pillow's own limit, which it checks before we learn the size, lies above ours.
        count = re.search(r"\d+", str(error))
        pixels = f"{count[0]} pixels" if count else "too many pixels"
        raise ImageError(f"{path}: the image is refused, it has {pixels}; the limit is {MAX_PIXELS}") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: it is not an image that can be decoded (of no known format)") from None
    except Exception as error:
        # Pillow's decoders raise all kinds of exceptions for broken files: OSError, ValueError, SyntaxError...
        raise ImageError(f"{path}: it is not an image that can be decoded ({type(error).__name__}: {error})") from None


def read_file(path: str) -> bytes:
    """A file's bytes.

    Raises:
        ImageError: if it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(describe_os_error(error)) from None
