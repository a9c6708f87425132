"""ImageNet as Kaggle hands it out: a zip, or the folder that it was unpacked into."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator

from src.common.cli import RunError, describe_os_error
from src.data.listing import ImageFolder
from src.preparation.imagenet_archives import Collection
from src.preparation.imagenet_labels import parse_list
from src.preparation.imagenet_release import Release

ZIP_NAME = "imagenet-object-localization-challenge.zip"
IMAGES = "ILSVRC/Data/CLS-LOC"
VAL_LABELS = "LOC_val_solution.csv"


@dataclasses.dataclass(frozen=True)
class ZippedImages(ImageFolder):
    """A listing of N images in a zip, which carries a checksum of each.

    Attributes:
        archive: the open zip.
        members: the N entries.
    """

    archive: zipfile.ZipFile
    members: list[zipfile.ZipInfo]

    def full_path(self, index: int) -> str:
        """The zip and the image's path, for errors."""
        return f"{self.root}:{self.paths[index]}"

    def read(self, index: int) -> bytes:
        """The encoded image number `index`.

        Raises:
            OSError: if the zip cannot be read, or the checksum differs.
        """
        try:
            return self.archive.read(self.members[index])
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise OSError(errno.EIO, f"it is damaged ({error})", self.full_path(index)) from None

    def size_of(self, index: int) -> int:
        """Bytes of the encoded image number `index`."""
        return self.members[index].file_size


class FlatImages(ImageFolder):
    """A listing of images that lie in one folder, without class folders."""

    def full_path(self, index: int) -> str:
        """The path of image number `index`."""
        return os.path.join(self.root, os.path.basename(self.paths[index]))


def list_zip(path: str, parts: tuple[str, ...], release: Release, labels: dict | None) -> dict[str, ImageFolder]:
    """List the images of Kaggle's zip.

    Args:
        path: the zip.
        parts: which parts, of "train" and "val".
        release: what they consist of.
        labels: the classes of the validation images, or None for those of the zip.

    Raises:
        RunError: if it cannot be read, or holds other images.
    """
    try:
        archive = zipfile.ZipFile(path)
        if "val" in parts and labels is None:
            with archive.open(VAL_LABELS) as file:
                text = io.TextIOWrapper(file, "utf-8-sig", errors="replace")
                labels = parse_list(text, f"{path}:{VAL_LABELS}", release)
    except KeyError:
        raise RunError(f"{path}: there is no {VAL_LABELS} in it; name a list of labels with --labels") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RunError(f"{path}: it is not a zip, or it is cut short ({error})") from None
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    collections = {part: Collection(part, release, labels or {}, path) for part in parts}
    for member in archive.infolist():
        for part in parts:
            prefix = f"{IMAGES}/{part}/"
            if member.filename.startswith(prefix) and not member.is_dir():
                if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
                    collections[part].refuse(member.filename, "is no regular file")
                add_path(collections[part], member.filename[len(prefix) :], member)
    listings = {}
    for part, collection in collections.items():
        paths, label_of, members = collection.arrange()
        listings[part] = ZippedImages(path, list(release.classes), paths, label_of, archive=archive, members=members)
    return listings


def list_folder(path: str, parts: tuple[str, ...], release: Release, labels: dict | None) -> dict[str, ImageFolder]:
    """List the images of a folder into which Kaggle's download was unpacked; the arguments are those of `list_zip`.

    Raises:
        RunError: if it cannot be read, or holds other images.
    """
    listings = {}
    try:
        if "val" in parts and labels is None:
            with open(os.path.join(path, VAL_LABELS), encoding="utf-8-sig", errors="replace") as file:
                labels = parse_list(file, file.name, release)
        for part in parts:
            folder = os.path.join(path, IMAGES, part)
            collection = Collection(part, release, labels or {}, folder)
            for name in walk(folder, 2 if part == "train" else 1):
                add_path(collection, name, None)
            paths, label_of, _ = collection.arrange()
            kind = ImageFolder if part == "train" else FlatImages
            listings[part] = kind(folder, list(release.classes), paths, label_of)
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    return listings


def walk(folder: str, levels: int) -> Iterator[str]:
    """Paths of the entries so many levels below a folder, relative to it; hidden ones are passed over."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if levels > 1 and entry.is_dir():
                yield from (f"{entry.name}/{name}" for name in walk(entry.path, levels - 1))
            elif not entry.name.startswith("."):
                yield entry.name


def add_path(collection: Collection, path: str, place: object) -> None:
    """Add an image by its path below the part's folder: `n01440764/n01440764_10026.JPEG`, or a bare name of "val"."""
    folder, slash, name = path.rpartition("/")
    collection.add(name if slash else path, folder if slash else None, place)
