"""ImageNet from what was downloaded to labelled folders or MindRecords, resumable at any moment.

A part is written under a hidden name and gets its own name once it is complete and the archive's MD5 sum is right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from typing import Callable

import numpy as np
from PIL import Image

from src.common.cli import RunError, UsageError
from src.common.files import locked_alone, sync_folder
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder, read_encoded
from src.preparation import imagenet_kaggle as kaggle
from src.preparation.imagenet_archives import list_archive
from src.preparation.imagenet_labels import read_val_labels
from src.preparation.imagenet_release import CMYK, ODD_IMAGES, Archive, Release
from src.preparation.md5 import WrongSum, checked_md5, compare_md5, file_md5

PARTS = ("train", "val")
UNFINISHED = ".unfinished-"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of ImageNet as it was found.

    Attributes:
        name: "train" or "val".
        folder: its images, in the order of a labelled folder.
        archive: the file whose MD5 sum was published, or None.
    """

    name: str
    folder: ImageFolder
    archive: Archive | None

    @property
    def sum(self) -> tuple[str | None, str]:
        """(file, published MD5 sum), or (None, "")."""
        return (self.archive.name, self.archive.md5) if self.archive else (None, "")


def find_parts(path: str, names: Sequence[str], labels: str | None, release: Release) -> list[Part]:
    """Look through what was downloaded: the official archives, or Kaggle's zip or folder.

    Args:
        path: the folder of the official archives under their published names; Kaggle's zip; or the folder that holds
            the zip, or into which it was unpacked.
        names: which parts, of "train" and "val".
        labels: a list of the validation images' classes, or the development kit; None finds them.
        release: what the parts consist of.

    Raises:
        RunError: if something is missing, damaged, or holds anything but ImageNet.
    """
    if not os.path.exists(path):
        raise RunError(f"{path}: there is no such file or folder")
    inside = os.path.join(path, kaggle.ZIP_NAME)
    zipped = path if os.path.isfile(path) else inside if os.path.isfile(inside) else None
    given = read_val_labels(labels, release) if labels and "val" in names else None
    if os.path.isdir(os.path.join(path, kaggle.IMAGES)):
        listings = kaggle.list_folder(path, tuple(names), release, given)
    elif zipped and not zipped.endswith(".zip"):
        raise RunError(
            f"{path}: name the folder of {release.archives['train'].name} and {release.archives['val'].name}, or "
            "Kaggle's zip; a compressed tar cannot be read in parts: unpack it and name the folder that holds ILSVRC/"
        )
    elif zipped:
        listings = kaggle.list_zip(zipped, tuple(names), release, given)
    else:
        return [find_official(path, name, given, release) for name in names]
    return [Part(name, listings[name], None) for name in names]


def find_official(path: str, name: str, labels: dict | None, release: Release) -> Part:
    """A part from its official archive; see `find_parts`."""
    archive, devkit = release.archives[name], release.archives["devkit"]
    place = os.path.join(path, archive.name)
    if not os.path.isfile(place):
        other = next(part for part in PARTS if part != name)
        raise RunError(
            f"{path}: there is neither {archive.name} nor {kaggle.IMAGES} in it; download the archive, or prepare the "
            f"other part alone with --part {other}"
        )
    if name == "val" and labels is None:
        kit = os.path.join(path, devkit.name)
        if not os.path.isfile(kit):
            raise RunError(
                f"{path}: {devkit.name}, which has the labels of the validation images, is missing; download it, or "
                "name a list of labels with --labels"
            )
        compare_md5(kit, file_md5(kit), devkit.md5)
        labels = read_val_labels(kit, release)
    return Part(name, list_archive(place, name, release, labels or {}), Archive(place, archive.md5))


def prepare_part(part: Part, out: str, write: Callable, form: str, on_images: Callable, on_bytes: Callable) -> bool:
    """Write a part into `out`/`part.name`, which appears complete or not at all.

    Args:
        part: what `find_parts` gave.
        out: the folder of all parts, which is made if it is missing.
        write: function of (folder, target, on_images=...) that writes a listing and goes on where it was stopped.
        form: a word for what it writes: parts that were begun in another form are not mixed with this one.
        on_images, on_bytes: called with how many more images were written, and bytes of the archive were hashed.

    Returns:
        bool, whether anything was written; False if the part was there.

    Raises:
        UsageError: if the target holds something else, or another process is writing to it.
        RunError: if the archive's MD5 sum is wrong, or writing fails. What was written stays for the next start, unless
            the sum is wrong.
    """
    target = os.path.join(out, part.name)
    os.makedirs(out, exist_ok=True)
    with locked_alone(out):
        if os.path.lexists(target):
            if holds(target, part.folder):
                return False
            raise UsageError(f"{target}: it is there and holds something else; remove it, or name another folder")
        aside = find_unfinished(part, out, form)
        with checked_md5(*part.sum, on_bytes) as check:

            def count(images: int) -> None:
                check()
                on_images(images)

            try:
                write(part.folder, aside, on_images=count)
                check(wait=True)
            except WrongSum:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        if not holds(aside, part.folder):
            raise RunError(f"{aside}: it holds other images than were written to it; remove it and start again")
        os.sync()
        os.rename(aside, target)
        sync_folder(out)
    return True


def find_unfinished(part: Part, out: str, form: str) -> str:
    """The hidden folder of an unfinished part, whose name says what it was begun from.

    Raises:
        UsageError: if there is one that was begun from something else.
    """
    source = part.archive.name if part.archive else part.folder.root
    status = os.stat(source)
    # A folder's time changes when somebody looks into it with a file manager; its images were all counted.
    identity = (os.path.realpath(source), form, *((status.st_size, status.st_mtime_ns) if part.archive else ()))
    name = f".{part.name}{UNFINISHED}{hashlib.sha256(repr(identity).encode(errors='surrogateescape')).hexdigest()[:12]}"
    others = [other for other in os.listdir(out) if other.startswith(f".{part.name}{UNFINISHED}") and other != name]
    if others:
        raise UsageError(
            f"{os.path.join(out, others[0])}: a part was begun here from another file, or in another form; remove it, "
            "or name another folder"
        )
    return os.path.join(out, name)


def holds(target: str, folder: ImageFolder) -> bool:
    """Whether a labelled folder or a MindRecord has a listing's classes, images and sizes."""
    try:
        there = read_image_folder(target)
        same = there.classes == folder.classes and there.paths == folder.paths
        return (
            same
            and np.array_equal(there.labels, folder.labels)
            and all(there.size_of(index) == folder.size_of(index) for index in range(len(folder)))
        )
    except (RunError, OSError):
        return False


def describe_odd_images(folder: ImageFolder) -> str | None:
    """A sentence on the images of a part that are known to be no JPEG of grey or RGB; None if it has none."""
    found: dict[str, list[str]] = {}
    for index, path in enumerate(folder.paths):
        name = path.rpartition("/")[2]
        if name in ODD_IMAGES:
            found.setdefault(describe_format(read_encoded(folder, index)), []).append(name)
    if not found:
        return None
    kinds = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in found.items())
    return f"odd images, which every program decodes all the same: {kinds}"


def describe_format(data: bytes) -> str:
    """What an encoded image is, in the words of `ODD_IMAGES` where it is one of them."""
    try:
        image = Image.open(io.BytesIO(data))
    except Exception:
        return "no image"
    return CMYK if (image.format, image.mode) == ("JPEG", "CMYK") else f"a {image.format}"


def check_outside_source(path: str, out: str) -> None:
    """Refuse to write among the downloads of Kaggle's layout, or over a file.

    Raises:
        UsageError: naming both folders.
        RunError: if it is a file.
    """
    if os.path.exists(out) and not os.path.isdir(out):
        raise RunError(f"{out}: it is a file; name a folder for the images")
    images = os.path.realpath(os.path.join(path, kaggle.IMAGES))
    if os.path.commonpath([images, os.path.realpath(out)]) == images:
        raise UsageError(f"{out} lies in {images}, from which the images come; name another folder")
