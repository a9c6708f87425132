"""ImageNet as it was published in 2012 (ILSVRC2012): its archives, their MD5 sums, its classes and its images."""

from __future__ import annotations

import dataclasses
import functools
import re

from src.data.imagenet import read_classes

TRAIN_NAME = re.compile(r"(n\d{8})_\d+\.JPEG", re.ASCII)
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.ASCII)
CMYK = "a CMYK JPEG"
CMYK_NAMES = """
    n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752 n03018349_4028 n03062245_4620
    n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228 n03633091_5218 n03710637_5125 n03961711_5286
    n04033995_2932 n04258138_17003 n04264628_27969 n04336792_7448 n04371774_5854 n04596742_4225 n07583066_647
    n13037406_4650 ILSVRC2012_val_00019877
"""
ODD_IMAGES = {"n02105855_2933.JPEG": "a PNG", **{f"{name}.JPEG": CMYK for name in CMYK_NAMES.split()}}
"""Images that are no JPEG of grey or RGB, by file name. Pillow decodes them, in place of the compiled engine."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file as it is handed out.

    Attributes:
        name: its published name.
        md5: its published MD5 sum in hexadecimal digits.
    """

    name: str
    md5: str


@dataclasses.dataclass(frozen=True)
class Release:
    """What a release of ImageNet consists of.

    Attributes:
        classes: the classes' WordNet numbers, sorted.
        images: how many images each part has, "train" and "val".
        archives: the archive of each part, and "devkit", the development kit with the labels of "val".
    """

    classes: tuple[str, ...]
    images: dict[str, int]
    archives: dict[str, Archive]


@functools.cache
def imagenet_2012() -> Release:
    """The release of 2012; the sums are those of its download page."""
    return Release(
        classes=tuple(wnid for wnid, _ in read_classes()),
        images={"train": 1_281_167, "val": 50_000},
        archives={
            "train": Archive("ILSVRC2012_img_train.tar", "1d675b47d978889d74fa0da5fadfb00e"),
            "val": Archive("ILSVRC2012_img_val.tar", "29b22e2961454d5413ddabcf34fc5622"),
            "devkit": Archive("ILSVRC2012_devkit_t12.tar.gz", "fa75699e90414af021442c21a62c3abf"),
        },
    )
