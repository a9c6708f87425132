"""Which files, which classes, which order: the one definition of a labelled folder.

A folder of class folders, as ImageNet comes: classes are its sub-folders in sorted order, labels their numbers from 0,
images the files with an image's suffix anywhere below a class folder, sorted by path. Names that begin with a dot are
passed over everywhere. Sorting is by Unicode code points, the same on every machine.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import numpy as np

from src.cli import RunError, describe_os_error

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
# Deep enough for every data set, and an end for symbolic links that lead in a circle.
MAX_DEPTH = 16


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A labelled folder's listing.

    Attributes:
        root: the folder as the caller named it.
        classes: names of the class folders, sorted; the position is the label.
        paths: images relative to root with "/" between folders, sorted by class and path.
        labels: int32 array, one label an image.
    """

    root: str
    classes: list[str]
    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def full_path(self, index: int) -> str:
        """Where image number `index` lies."""
        return os.path.join(self.root, self.paths[index])


def read_image_folder(root: str) -> ImageFolder:
    """List a folder of class folders.

    Raises:
        RunError: if it is missing, unreadable, has no class folders, or they hold no image.
    """
    root = os.fspath(root)
    if not os.path.exists(root):
        raise RunError(f"{root}: there is no such folder")
    if not os.path.isdir(root):
        raise RunError(f"{root}: it is a file, not a folder of class folders")
    try:
        with os.scandir(root) as entries:
            classes = sorted(entry.name for entry in entries if is_visible_folder(entry))
        if not classes:
            raise RunError(f"{root}: there are no class folders in it; expected one folder for each class")
        paths: list[str] = []
        counts = []
        for name in classes:
            found = sorted(list_images(os.path.join(root, name), name, MAX_DEPTH))
            paths += found
            counts.append(len(found))
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    if not paths:
        raise RunError(f"{root}: its {len(classes)} class folders hold no image")
    return ImageFolder(root, classes, paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts))


def is_visible_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one, that is not hidden."""
    return not entry.name.startswith(".") and entry.is_dir()


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def list_images(folder: str, prefix: str, depth: int) -> Iterator[str]:
    """Paths of the images below a folder, each beginning with `prefix`, in no particular order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and not entry.is_dir():
                yield f"{prefix}/{entry.name}"
            elif depth and is_visible_folder(entry):
                yield from list_images(entry.path, f"{prefix}/{entry.name}", depth - 1)
