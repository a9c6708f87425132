"""Photos of ImageNet's classes, as somebody has them on disk, as a labelled folder; and what programs make of them."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np

from src.common.cli import RunError
from src.data.image_folder import read_image_folder
from src.data.image_list import images_below
from src.data.imagenet import read_classes
from src.data.listing import ImageFolder
from src.export.verification import pick_evenly

WORDNET = re.compile(r"n\d{8}")
BATCH = 16
LABELS = {"all": (0, 1), "even": (0,), "odd": (1,)}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a program made of the photos.

    Attributes:
        logits: float32 of shape (N, 1000), in the folder's order.
        rate: images/s.
    """

    logits: np.ndarray
    rate: float


def arrange_photos(photos: str, target: str, labels: str, most: int | None = None) -> ImageFolder:
    """Links to photos in a folder of class folders, of which those without a photo are empty.

    Args:
        photos: a folder. The WordNet number is in a photo's own name (n01440764_tench.JPEG) or in its folder's.
        target: a folder to make.
        labels: a key of LABELS: which classes are taken.
        most: so many photos, spread over the classes, where there are more.

    Raises:
        RunError: if no photo is of a class of ImageNet.
    """
    numbers = {number: label for label, (number, _) in enumerate(read_classes())}
    found = []
    for path in images_below(photos):
        folder, name = os.path.split(os.path.relpath(path, photos))
        for number in WORDNET.findall(name)[:1] or WORDNET.findall(folder)[-1:]:
            if number in numbers and numbers[number] % 2 in LABELS[labels]:
                found.append((number, os.path.abspath(path)))
    if not found:
        raise RunError(
            f"{photos}: no photo in it is of a class of ImageNet whose label is {labels}; a photo is named, or lies "
            "in a folder that is named, like n01440764"
        )
    for number in numbers:
        os.makedirs(os.path.join(target, number))
    found.sort()
    for number, path in pick_evenly(found, most) if most else found:
        os.symlink(path, os.path.join(target, number, os.path.basename(path)))
    return read_image_folder(target)
