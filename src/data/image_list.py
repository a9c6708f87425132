"""Images without labels, as a command line names them: files, folders, patterns, standard input."""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
from collections.abc import Sequence

from src.common.cli import RunError, UsageError, describe_os_error
from src.data.listing import list_images

STANDARD_INPUT = "-"


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images without labels, which are read in the same way as those of an `ImageFolder`.

    Attributes:
        paths: the files; "-" is the image that came through standard input.
        standard_input: the bytes of that image.
    """

    paths: Sequence[str]
    standard_input: bytes = b""

    def __len__(self) -> int:
        return len(self.paths)

    def full_path(self, index: int) -> str:
        """The path of image number `index`."""
        return self.paths[index]

    def read(self, index: int) -> bytes:
        """The encoded image number `index`.

        Raises:
            OSError: if its file cannot be read.
        """
        if self.paths[index] == STANDARD_INPUT:
            return self.standard_input
        with open(self.paths[index], "rb") as file:
            return file.read()


def find_images(names: Sequence[str]) -> ImageList:
    """List the images that files, folders, patterns and "-" stand for, in the order in which they are named.

    A folder stands for the images anywhere below it, sorted; a pattern for the files that it matches, sorted; "-" for
    one image whose bytes come through standard input. A file that is missing is listed as well: reading it fails later,
    without harm to the other images.

    Raises:
        RunError: if a folder holds no image or cannot be read, or nothing matches a pattern.
        UsageError: if standard input is named and does not carry the bytes of an image.
    """
    paths: list[str] = []
    for name in names:
        if name != STANDARD_INPUT and os.path.isdir(name):
            paths += images_below(name)
        elif name != STANDARD_INPUT and glob.has_magic(name) and not os.path.lexists(name):
            paths += matching_files(name)
        else:
            paths.append(name)
    return ImageList(paths, read_standard_input() if STANDARD_INPUT in paths else b"")


def images_below(folder: str) -> list[str]:
    """The images of a folder and its sub-folders, sorted.

    Raises:
        RunError: if there is none, or a folder cannot be read.
    """
    try:
        # With an empty prefix the paths would begin with a slash.
        found = sorted(path[len("./") :] for path in list_images(folder, ".", ()))
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    if not found:
        raise RunError(f"{folder}: there is no image in this folder")
    return [os.path.join(folder, path) for path in found]


def matching_files(pattern: str) -> list[str]:
    """The files that match a pattern, sorted; folders are passed over.

    Raises:
        RunError: if there is none.
    """
    found = sorted(path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path))
    if not found:
        raise RunError(f"{pattern}: no file matches this pattern")
    return found


def read_standard_input() -> bytes:
    """All of standard input.

    Raises:
        UsageError: if it is a terminal, or carries the names of files.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("--image - reads the bytes of one image from standard input, as in: --image - < a.jpg")
    data = sys.stdin.buffer.read()
    first_line = data[:4096].split(b"\n")[0]
    if first_line and b"\0" not in first_line and os.path.exists(first_line):
        raise UsageError(
            "--image - reads the bytes of one image, but standard input holds file names: give them after --image, "
            "as xargs does"
        )
    return data
