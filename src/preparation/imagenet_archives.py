"""ImageNet's archives as listings of images: where each image lies in its archive, so that nothing is unpacked twice.

An archive is looked through before anything is written. Only what ImageNet consists of may be in it: regular files with
the names of its images, each once, each in the archive of its class.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from src.common.cli import RunError, describe_os_error, printable
from src.data.listing import PackedImages
from src.preparation.imagenet_release import TRAIN_NAME, VAL_NAME, Release


class Collection:
    """Images of one part of ImageNet as they are found: each is checked, and counted in the end.

    Args:
        part: "train" or "val".
        release: what the part consists of.
        labels: the class of each validation image by its number.
        source: where they are found, for errors.
    """

    def __init__(self, part: str, release: Release, labels: dict[int, str], source: str):
        self.part = part
        self.release = release
        self.labels = labels
        self.source = source
        self.places: dict[str, dict[str, object]] = {wnid: {} for wnid in release.classes}

    def add(self, name: str, folder: str | None, place: object) -> None:
        """Add an image.

        Args:
            name: its name in the archive, or its file name where `folder` is given.
            folder: the class in whose archive or folder a training image was found.
            place: where it lies, for `listing`.

        Raises:
            RunError: if there is no such image, it lies in another class, or comes a second time.
        """
        pattern = TRAIN_NAME if self.part == "train" else VAL_NAME
        match = pattern.fullmatch(name)
        wnid = None
        if match:
            wnid = match[1] if self.part == "train" else self.labels.get(int(match[1]))
        if wnid not in self.places or (self.part == "train" and wnid != folder):
            self.refuse(name if folder is None else f"{folder}/{name}", f"is no image of ImageNet's {self.part} part")
        if name in self.places[wnid]:
            self.refuse(name, "is there twice")
        self.places[wnid][name] = place

    def refuse(self, name: str, reason: str) -> None:
        """Raise the error on something that was found.

        Raises:
            RunError: always.
        """
        raise RunError(f"{self.source}: '{printable(name)}' {reason}; nothing was written")

    def arrange(self) -> tuple[list[str], np.ndarray, list]:
        """(paths, labels, places) in the order of a labelled folder.

        Raises:
            RunError: if it is not the number of images that were published.
        """
        counts = [len(self.places[wnid]) for wnid in self.release.classes]
        if sum(counts) != self.release.images[self.part] or 0 in counts:
            raise RunError(
                f"{self.source}: it holds {sum(counts)} images in {np.count_nonzero(counts)} classes, not "
                f"{self.release.images[self.part]} in {len(counts)}; it is incomplete, or another release"
            )
        paths: list[str] = []
        places: list = []
        for wnid in self.release.classes:
            for name, place in sorted(self.places[wnid].items()):
                paths.append(f"{wnid}/{name}")
                places.append(place)
        return paths, np.repeat(np.arange(len(counts), dtype=np.int32), counts), places


def list_archive(path: str, part: str, release: Release, labels: dict[int, str]) -> PackedImages:
    """List the images of ILSVRC2012_img_train.tar, which holds a tar of each class, or of ILSVRC2012_img_val.tar.

    Raises:
        RunError: if it cannot be read, is cut short, or holds anything else.
    """
    collection = Collection(part, release, labels, path)
    try:
        with tarfile.open(path, "r:") as archive:
            for member in members(archive):
                if not is_plain(member):
                    collection.refuse(member.name, "is no regular file")
                if part == "val":
                    collection.add(member.name, None, (member.offset_data, member.size))
                else:
                    add_class(archive, member, collection)
        file = open(path, "rb", buffering=0)
    except tarfile.TarError as error:
        raise RunError(f"{path}: it is not a tar archive, or it is cut short ({error})") from None
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    paths, label_of, places = collection.arrange()
    offsets, lengths = np.array(places, np.int64).reshape(-1, 2).T
    if int((offsets + lengths).max()) > Path(path).stat().st_size:
        file.close()
        raise RunError(f"{path}: it is cut short")
    return PackedImages(
        path,
        list(release.classes),
        paths,
        label_of,
        files=[file],
        file_of=np.zeros(len(paths), np.int32),
        offsets=offsets,
        lengths=lengths,
    )


def add_class(archive: tarfile.TarFile, member: tarfile.TarInfo, collection: Collection) -> None:
    """Add the images of a class's tar, which is a member of the archive of all classes.

    Raises:
        RunError: if it is no class, comes twice, or holds anything else.
        tarfile.TarError: if it is damaged.
    """
    wnid = member.name.removesuffix(".tar")
    if member.name == wnid or wnid not in collection.places:
        collection.refuse(member.name, "is no class of ImageNet")
    if collection.places[wnid]:
        collection.refuse(member.name, "is there twice")
    with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as images:
        for image in members(images):
            if not is_plain(image) or image.offset_data + image.size > member.size:
                collection.refuse(f"{member.name}/{image.name}", "is no regular file")
            collection.add(image.name, wnid, (member.offset_data + image.offset_data, image.size))


def members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of a tar, without keeping them: those of ImageNet would take a gigabyte."""
    while (member := archive.next()) is not None:
        archive.members.clear()
        yield member


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is a file whose bytes lie in the archive as they are: no link, device, folder or sparse file."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.sparse is None
