"""The labels of ImageNet's validation images: from the development kit, from Kaggle's CSV, or from a list."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np

from src.common.cli import RunError, describe_os_error
from src.preparation.imagenet_release import Release

GROUND_TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
MAX_BYTES = 1 << 26
"""Both files of the kit have a few megabytes at most; an archive that unpacks to more is none."""
KNOWN = re.compile(r"(?:ILSVRC2012_val_(\d{8})(?:\.JPEG)?[\s,;]+)?(n\d{8}|\d+)(?:[\s,;].*)?", re.ASCII)
"""A line of a list: the image, unless the line's number says it; then a WordNet number, or the class's number."""


def read_val_labels(path: str, release: Release) -> dict[int, str]:
    """Read the labels of the validation images from the development kit or a list; see `parse_list`.

    Returns:
        dict, the WordNet number of the class by the number of the image, from 1.

    Raises:
        RunError: if the file cannot be read, or does not label every image once.
    """
    try:
        if path.endswith((".tar.gz", ".tgz")):
            return read_devkit(path, release)
        with open(path, encoding="utf-8-sig") as file:
            return parse_list(file, path, release)
    except UnicodeDecodeError:
        raise RunError(f"{path}: it is not a list of labels, but no text") from None
    except OSError as error:
        raise RunError(describe_os_error(error)) from None


def parse_list(lines: Iterator[str], source: str, release: Release) -> dict[int, str]:
    """Read a list with a line for each image, such as Kaggle's LOC_val_solution.csv.

    A line is `ILSVRC2012_val_00000001.JPEG n01751748`, with spaces, commas or tabs, with or without the suffix; what
    follows is ignored. Instead of the WordNet number the label from 0 in the order of the sorted WordNet numbers may
    stand. Without names, line 1 is image 1. A first line that is none of this is a header.

    Raises:
        RunError: naming the line that is wrong, or the first image without a label.
    """
    labels: dict[int, str] = {}
    known = set(release.classes)
    for number, line in enumerate(lines, 1):
        match = KNOWN.fullmatch(line.strip())
        if not match:
            if number == 1 or not line.strip():
                continue
            raise RunError(f"{source}: line {number} is not an image and its class")
        image, label = match.groups()
        if label.isdecimal():
            if not image:
                raise RunError(
                    f"{source}: numbers alone can be explained only by the development kit; give its archive, "
                    f"{release.archives['devkit'].name}"
                )
            label = release.classes[int(label)] if int(label) < len(release.classes) else label
        if label not in known:
            raise RunError(f"{source}: line {number} names '{label}', which is no class of ImageNet's {len(known)}")
        place = int(image) if image else number
        if labels.setdefault(place, label) != label:
            raise RunError(f"{source}: line {number} gives image {place} a second label")
    return check_labels(labels, source, release)


def check_labels(labels: dict[int, str], source: str, release: Release) -> dict[int, str]:
    """Check that every image has a label.

    Raises:
        RunError: if one has none, or there are more.
    """
    images = release.images["val"]
    missing = next((number for number in range(1, images + 1) if number not in labels), None)
    if missing or len(labels) != images:
        lack = f"; image {missing} has none" if missing else ""
        raise RunError(f"{source}: it labels {len(labels)} validation images, not {images}{lack}")
    return labels


def read_devkit(path: str, release: Release) -> dict[int, str]:
    """Read the labels from the development kit: a class number for each image, and what the numbers mean.

    Raises:
        RunError: if it is damaged.
        OSError: if it cannot be read.
    """
    try:
        with tarfile.open(path, "r:gz") as kit:
            found = {name: read_member(kit, name) for name in (GROUND_TRUTH, META)}
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise RunError(f"{path}: it is not the development kit, or cut short ({error})") from None
    meanings = parse_meta(found[META], path)
    try:
        ids = [int(word) for word in found[GROUND_TRUTH].split()]
        labels = {number: meanings[identity] for number, identity in enumerate(ids, 1)}
    except (ValueError, KeyError) as error:
        raise RunError(f"{path}: {GROUND_TRUTH} holds what is no class's number ({error})") from None
    if set(meanings.values()) != set(release.classes):
        raise RunError(f"{path}: {META} describes other classes than ImageNet's {len(release.classes)}")
    return check_labels(labels, path, release)


def read_member(kit: tarfile.TarFile, name: str) -> bytes:
    """A file of the development kit.

    Raises:
        RunError: if there is none of that name, or it is too large to be it.
    """
    for member in kit:
        if member.isfile() and member.name.endswith("/" + name) and member.size <= MAX_BYTES:
            return kit.extractfile(member).read()
    raise RunError(f"{kit.name}: there is no {name} in it")


def parse_meta(data: bytes, path: str) -> dict[int, str]:
    """The WordNet number of each class number in MATLAB's file of the development kit.

    Raises:
        RunError: if SciPy is missing, or the file is another.
    """
    try:
        # Imported here: it comes with MindSpore, but not to machines that only run an ONNX file.
        from scipy import io as scipy_io
    except ImportError:
        raise RunError(
            f"{os.path.basename(path)} needs SciPy, which comes with MindSpore: pip install scipy; or name a list of "
            "labels with --labels"
        ) from None
    try:
        synsets = np.atleast_1d(scipy_io.loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        rows = zip(synsets["ILSVRC2012_ID"], synsets["WNID"], synsets["num_children"])
        # What has children is a group of classes.
        return {int(number): str(wnid) for number, wnid, children in rows if children == 0}
    except Exception as error:
        # Whatever SciPy's reader stumbles over in a file of another kind.
        raise RunError(f"{path}: {META} cannot be read ({error})") from None
