"""The listing of a labelled folder: its classes and images, and their order, which every program shares.

A labelled folder is a folder of class folders, as ImageNet comes. The classes are its sub-folders in sorted order, and
their labels count from 0. The images are the files with an image's suffix anywhere below a class folder, sorted by
path. Names that begin with a dot are passed over; symbolic links are followed. Sorting is by Unicode code points, the
same on every machine.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import os
from collections.abc import Iterator
from typing import NoReturn, Protocol

import numpy as np

from src.common.cli import RunError, describe_os_error
from src.images.bad_images import ImageError

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
TRAIN_NAMES = ("train", "training")
PART_NAMES = frozenset((*TRAIN_NAMES, "val", "valid", "validation", "test", "testing"))


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A labelled folder's listing.

    Attributes:
        root: the folder as the caller named it.
        classes: names of the class folders, sorted; the position of a name is its label.
        paths: the images relative to root, with "/" between folders, sorted by class and path.
        labels: int32 array of shape (len(paths),), the label of each image.
    """

    root: str
    classes: list[str]
    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def balance(self) -> np.ndarray:
        """Factors, one for each class, with which all classes count alike and the mean over the images is 1."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return len(self) / (np.count_nonzero(counts) * np.maximum(counts, 1))

    def full_path(self, index: int) -> str:
        """The path of image number `index`."""
        return os.path.join(self.root, self.paths[index])

    def read(self, index: int) -> bytes:
        """The encoded image number `index`.

        Raises:
            OSError: if its file cannot be read.
        """
        with open(self.full_path(index), "rb", buffering=0) as file:
            return file.read()

    def size_of(self, index: int) -> int:
        """Bytes of the encoded image number `index`.

        Raises:
            OSError: if its file is missing.
        """
        return os.stat(self.full_path(index)).st_size

    def take(self, indices: np.ndarray) -> ImageFolder:
        """A listing of some of the images, with the same classes.

        Args:
            indices: int array of shape (M,), numbers of images, ascending.
        """
        paths = [self.paths[index] for index in indices]
        columns = {name: getattr(self, name)[indices] for name in self.columns()}
        return dataclasses.replace(self, paths=paths, **columns)

    def columns(self) -> tuple[str, ...]:
        """Names of the attributes that are arrays with a row for each image."""
        return ("labels",)


@dataclasses.dataclass(frozen=True)
class PackedImages(ImageFolder):
    """A listing of N images that lie in larger files.

    Attributes:
        files: the open files.
        file_of: int32 array of shape (N,), the position in `files` of each image's file.
        offsets, lengths: int64 arrays of shape (N,), in bytes, the place of each image in its file.
    """

    files: list[io.FileIO]
    file_of: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def full_path(self, index: int) -> str:
        """The file and the image's path, for errors."""
        return f"{self.files[self.file_of[index]].name}:{self.paths[index]}"

    def read(self, index: int) -> bytes:
        """The encoded image number `index`.

        Raises:
            OSError: if the file cannot be read, or ends too early.
        """
        file, length = self.files[self.file_of[index]], int(self.lengths[index])
        data = os.pread(file.fileno(), length, int(self.offsets[index]))
        if len(data) != length:
            raise OSError(errno.EIO, "the file is cut short", self.full_path(index))
        return data

    def size_of(self, index: int) -> int:
        """Bytes of the encoded image number `index`."""
        return int(self.lengths[index])

    def columns(self) -> tuple[str, ...]:
        """Names of the attributes that are arrays with a row for each image."""
        return (*super().columns(), "file_of", "offsets", "lengths")


class Images(Protocol):
    """Images that are read by number: an `ImageFolder`, an `ImageList`."""

    def __len__(self) -> int: ...

    def full_path(self, index: int) -> str: ...

    def read(self, index: int) -> bytes: ...


def read_encoded(images: Images, index: int) -> bytes:
    """The encoded image number `index`.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        return images.read(index)
    except OSError as error:
        raise ImageError(describe_os_error(error)) from None


def list_class_folders(root: str) -> ImageFolder:
    """List a folder of class folders.

    Raises:
        RunError: if it is a file, unreadable, has no class folders, or they hold no image.
    """
    if not os.path.isdir(root):
        raise RunError(f"{root}: it is a file, not a folder of class folders or a list (.csv or .tsv)")
    try:
        with os.scandir(root) as scanned:
            entries = list(scanned)
        classes = sorted(entry.name for entry in entries if is_visible_folder(entry))
        if not classes:
            refuse_without_classes(root, sum(is_image_name(entry.name) for entry in entries))
        above = (inode_of(root),)
        paths: list[str] = []
        counts = []
        for name in classes:
            found = sorted(list_images(os.path.join(root, name), name, above))
            paths += found
            counts.append(len(found))
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    if not paths:
        raise RunError(f"{root}: its {len(classes)} class folders hold no image")
    check_not_parent(root, classes, paths)
    return ImageFolder(root, classes, paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts))


def refuse_without_classes(root: str, images: int) -> NoReturn:
    """Say how a labelled folder looks.

    Raises:
        RunError: always.
    """
    here = f"there are {images} images and no class folders in it" if images else "there are no class folders in it"
    raise RunError(
        f"{root}: {here}; put the images of each class into a folder with its name, as in {root}/cat/1.jpg and "
        f"{root}/dog/1.jpg, or name a list with path and label (.csv)"
    )


def check_not_parent(root: str, classes: list[str], paths: list[str]) -> None:
    """Refuse the folder of train/ and val/, whose names would be taken for two classes.

    Raises:
        RunError: naming what to give instead.
    """
    nested = all(path.count("/") > 1 for path in paths)
    if PART_NAMES.issuperset(map(str.lower, classes)) and (nested or len(classes) > 1):
        raise RunError(
            f"{root}: {' and '.join(classes)} are no classes but parts of a data set; name one of them, such as "
            f"{root}/{next((name for name in classes if name.lower() in TRAIN_NAMES), classes[0])}"
        )


def is_visible_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one, that is not hidden."""
    return not entry.name.startswith(".") and is_folder(entry)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def inode_of(folder: str) -> tuple[int, int]:
    """(device, inode) of a folder: the same through every link that leads to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def list_images(folder: str, prefix: str, above: tuple) -> Iterator[str]:
    """Paths of the images below a folder, each beginning with `prefix`, in no particular order.

    Args:
        folder: where to look.
        prefix: the folder's path relative to the root.
        above: inodes of the folders above it; a link back to one of them is passed over.
    """
    here = inode_of(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and not is_folder(entry):
                yield f"{prefix}/{entry.name}"
            elif is_visible_folder(entry):
                yield from list_images(entry.path, f"{prefix}/{entry.name}", (*above, here))
