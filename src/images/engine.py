"""Decoding and resizing everyday JPEGs in compiled code, `src/images/engine.c`, to the same pixels as Pillow's.

It decodes only the part that a crop needs and resizes each row as soon as it is decoded, without a copy in between.
Where there is no C compiler, and for all other images, Pillow does the work.
"""

from __future__ import annotations

import ctypes
import functools
import os

import numpy as np

from src.common.native import CompileError, compile_library, find_compiler

SOURCE, HEADER = (os.path.join(os.path.dirname(os.path.abspath(__file__)), name) for name in ("engine.c", "resample.h"))
# No fused multiply-add: results are to be the same on every processor.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fPIC", "-shared")
FASTER = ("-march=native",)
"""Flags that not every compiler knows; without them the engine is slower."""
LIBRARIES = ("-ljpeg", "-lm")
SWITCH = "IMAGE_ENGINE"
"""Environment variable; with the value "pillow" the engine is not used."""
FILTERS = {"bilinear": 0, "bicubic": 1}
DONE = 0


class Request(ctypes.Structure):
    """Which part of a JPEG is resized to which size, and which square of the result is cut out.

    Attributes:
        reduce: 1, 2, 4 or 8, by which the JPEG's size is divided while it is decoded. The box is in the pixels that
            this gives.
        left, top, width, height: the box that is resized.
        new_width, new_height: its size afterwards.
        window_left, window_top, side: the square that is cut out of the resized box.
        filter: one of FILTERS.
        flip: 1 mirrors the square horizontally.
    """

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "reduce left top width height new_width new_height window_left window_top side filter flip".split()
        )
    ]


def request_resize(
    box: tuple, size: tuple, window: tuple, side: int, filter: str, *, reduce: int = 1, flip: bool = False
) -> Request:
    """A `Request` of (left, top, width, height), (new_width, new_height), (window_left, window_top) and the others."""
    return Request(*map(int, (reduce, *box, *size, *window, side, FILTERS[filter], flip)))


class ImageEngine:
    """The functions of the compiled engine.

    Args:
        library: `src/images/engine.c`, compiled and loaded.
    """

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        encoded = [ctypes.c_char_p, ctypes.c_size_t]
        library.jpeg_size.argtypes = [*encoded, ctypes.c_void_p]
        library.jpeg_resized.argtypes = [*encoded, ctypes.POINTER(Request), ctypes.c_void_p]
        library.adjust_colours.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p]
        library.adjust_colours.restype = None

    def jpeg_size(self, data: bytes) -> tuple[int, int] | None:
        """(width, height) of a JPEG that the engine takes, else None.

        It takes undamaged files of the everyday kind: baseline, grey or YCbCr, in one scan, with nothing missing.
        """
        size = (ctypes.c_int32 * 2)()
        return (size[0], size[1]) if self.library.jpeg_size(data, len(data), size) == DONE else None

    def resize_jpeg(self, data: bytes, request: Request, out: np.ndarray) -> bool:
        """Decode and resize a part of a JPEG whose size `jpeg_size` gave.

        Args:
            data: the file's bytes.
            request: the part; its box lies within the image.
            out: uint8 array of shape (3, side, side), contiguous, that receives the pixels.

        Returns:
            bool, False if the data turn out to be damaged. `out` holds no image then, and Pillow decides on the file.
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
    """Check the layout of an image, because the compiled functions get no more than its address.

    Raises:
        ValueError: if it is not a contiguous uint8 array of shape (3, S, S).
    """
    if planes.dtype != np.uint8 or planes.ndim != 3 or len(planes) != 3 or not planes.flags.c_contiguous:
        raise ValueError(f"an image is three contiguous planes of uint8, not {planes.dtype} of shape {planes.shape}")


@functools.cache
def load_engine() -> ImageEngine | Exception:
    """The engine, or the error that says why there is none."""
    if os.environ.get(SWITCH, "").lower() == "pillow":
        return CompileError(f"{SWITCH} is pillow")
    try:
        flags = [[*FLAGS, *faster, SOURCE, *LIBRARIES] for faster in (FASTER, ())]
        return ImageEngine(ctypes.CDLL(compile_library("image_engine", find_compiler("CC"), flags, [SOURCE, HEADER])))
    except (CompileError, OSError) as error:
        return error


def find_engine() -> ImageEngine | None:
    """The engine, which the first call on a machine compiles; None if that fails."""
    engine = load_engine()
    return engine if isinstance(engine, ImageEngine) else None


def describe_engine() -> str:
    """For the log: whether the engine or Pillow decodes, and why the engine does not."""
    engine = load_engine()
    if isinstance(engine, ImageEngine):
        return "decoded by the compiled engine"
    return (
        f"decoded by Pillow, which takes longer for the same bytes ({engine}; a C compiler with libjpeg's headers, on "
        "Debian gcc and libjpeg-dev, would be used)"
    )
