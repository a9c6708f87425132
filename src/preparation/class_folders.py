"""Writing a listing of images, wherever they lie, as a folder of class folders."""

from __future__ import annotations

import contextlib
import os
from typing import Callable

from src.common.cli import RunError, describe_os_error
from src.common.files import check_space
from src.common.machine import count_cores, map_in_order
from src.data.listing import ImageFolder, read_encoded

BLOCK = 4096
"""Bytes, the usual unit in which file systems give space to files."""
CHUNK, AHEAD = 32, 64
"""Images that a thread writes in one go, and how often that before they are counted."""


def write_class_folders(folder: ImageFolder, out: str, on_images: Callable) -> None:
    """Write a listing as class folders; files that are there in full are kept, so that a killed run goes on.

    Where the images are files on the same disk they get a second name (a hard link), which takes no space.

    Raises:
        RunError: if there is not enough space, or an image cannot be read.
        OSError: if one cannot be written.
    """
    for name in folder.classes:
        os.makedirs(os.path.join(out, name), exist_ok=True)
    targets = [os.path.join(out, path) for path in folder.paths]
    missing = [index for index, target in enumerate(targets) if not has_size(target, folder.size_of(index))]
    first = folder.full_path(0)
    linkable = os.path.isfile(first) and os.stat(first).st_dev == os.stat(out).st_dev
    if not linkable:
        check_space(out, sum(-(-folder.size_of(index) // BLOCK) * BLOCK for index in missing), "the images")
    on_images(len(folder) - len(missing))

    def write_some(start: int) -> int:
        for index in missing[start : start + CHUNK]:
            write_image(folder, index, targets[index], linkable)
        return len(missing[start : start + CHUNK])

    for count in map_in_order(write_some, range(0, len(missing), CHUNK), count_cores(), AHEAD):
        on_images(count)


def has_size(path: str, size: int) -> bool:
    """Whether a file is there and has a size; one that was being written when the process was killed is smaller."""
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False


def write_image(folder: ImageFolder, index: int, target: str, linkable: bool) -> None:
    """Write or link one image.

    Raises:
        RunError: if it cannot be read, or is shorter than its archive says.
        OSError: if it cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        os.remove(target)  # never written into: it may be a second name of the user's own file
    if linkable:
        # Some file systems have no hard links.
        with contextlib.suppress(OSError):
            os.link(folder.full_path(index), target)
            return
    data = read_encoded(folder, index)
    try:
        with open(target, "xb") as file:
            file.write(data)
    except OSError as error:
        raise RunError(describe_os_error(OSError(error.errno, error.strerror, target))) from None
