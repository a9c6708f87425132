"""The fast way for everyday JPEGs: `src/images/engine.c`, with Pillow's bytes. Without a compiler Pillow does it.

It decodes only the part that a crop needs, resizes row by row while it decodes, and needs no copies between the two.
"""

from __future__ import annotations

import ctypes
import functools
import os

import numpy as np

from src.common.native import CompileError, compile_library, find_compiler

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "engine.c")
# No fused multiply-add: results are to be the same on every processor. "native" where the compiler knows the word.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")
FASTER = ("-march=native",)
LIBRARIES = ("-ljpeg", "-lm")
SWITCH = "IMAGE_ENGINE"
"""Environment variable: "pillow" leaves the compiled engine alone."""
FILTERS = {"bilinear": 0, "bicubic": 1}
DONE = 0


class Request(ctypes.Structure):
    """What is wanted of an image.

    Attributes:
        reduce: the JPEG is decoded at 1/1, 1/2, 1/4 or 1/8 of its size; all that follows is in these pixels.
        left, top, width, height: the box that is resized.
        new_width, new_height: to which size.
        window_left, window_top, side: the square that is cut out of the result.
        filter: one of FILTERS.
        flip: 1 mirrors the square horizontally.
    """

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "reduce left top width height new_width new_height window_left window_top side filter flip".split()
        )
    ]


class ImageEngine:
    """The compiled functions.

    Args:
        library: of `src/images/engine.c`.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        encoded = [ctypes.c_char_p, ctypes.c_size_t]
        library.jpeg_size.argtypes = [*encoded, ctypes.c_void_p]
        library.jpeg_resized.argtypes = [*encoded, ctypes.POINTER(Request), ctypes.c_void_p]
        library.adjust_colours.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        library.adjust_colours.restype = None

    def jpeg_size(self, data: bytes) -> tuple[int, int] | None:
        """(width, height) of an undamaged everyday JPEG: baseline, grey or YCbCr, one scan, whole; else None."""
        size = (ctypes.c_int32 * 2)()
        return (size[0], size[1]) if self.library.jpeg_size(data, len(data), size) == DONE else None

    def resize_jpeg(self, data: bytes, request: Request, out: np.ndarray) -> bool:
        """Decode and resize what is wanted of a JPEG of which `jpeg_size` gave the size.

        Args:
            data: the file's bytes.
            request: within the image.
            out: uint8 array of shape (3, side, side), contiguous; holds no image where the result is False.

        Returns:
            bool, False if its data are damaged after all: Pillow decides.
        """
        check_planes(out)
        return self.library.jpeg_resized(data, len(data), request, out.ctypes.data) == DONE

    def adjust_colours(self, planes: np.ndarray, order: np.ndarray, factors: np.ndarray) -> None:
        """Change brightness (0), contrast (1) and saturation (2) in place, as Pillow's ImageEnhance does.

        Args:
            planes: uint8 array of shape (3, S, S), contiguous.
            order: int32 array of shape (3,), a permutation of 0, 1, 2.
            factors: float32 array of shape (3,), of brightness, contrast and saturation; 1 leaves the image.
        """
        check_planes(planes)
        count = planes.shape[1] * planes.shape[2]
        self.library.adjust_colours(planes.ctypes.data, count, order.ctypes.data, factors.ctypes.data)


def check_planes(planes: np.ndarray) -> None:
    """Refuse what the compiled functions would misread.

    Raises:
        ValueError: if it is not a contiguous uint8 array of shape (3, S, S).
    """
    if planes.dtype != np.uint8 or planes.ndim != 3 or len(planes) != 3 or not planes.flags.c_contiguous:
        raise ValueError(f"an image is three contiguous planes of uint8, not {planes.dtype} of shape {planes.shape}")


@functools.cache
def load_engine() -> ImageEngine | Exception:
    """The engine, or why there is none."""
    if os.environ.get(SWITCH, "").lower() == "pillow":
        return CompileError(f"{SWITCH} is pillow")
    try:
        flags = [[*FLAGS, *faster, SOURCE, *LIBRARIES] for faster in (FASTER, ())]
        return ImageEngine(ctypes.CDLL(compile_library("image_engine", find_compiler("CC"), flags, [SOURCE])))
    except (CompileError, OSError) as error:
        return error


def find_engine() -> ImageEngine | None:
    """The engine, compiled on the first call on a machine; None where that fails."""
    engine = load_engine()
    return engine if isinstance(engine, ImageEngine) else None


def describe_engine() -> str:
    """Who decodes, for the log."""
    engine = load_engine()
    if isinstance(engine, ImageEngine):
        return "decoded by the compiled engine"
    return (
        f"decoded by Pillow, which takes longer for the same bytes ({engine}; a C compiler with libjpeg's headers, on "
        "Debian gcc and libjpeg-dev, would be used)"
    )
