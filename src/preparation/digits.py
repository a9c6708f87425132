"""A small data set to try the programs on: scikit-learn's handwritten digits, written as a folder of JPEGs."""

from __future__ import annotations

import io
import os

import numpy as np
from PIL import Image

from src.common.cli import RunError, UsageError
from src.common.files import scratch_folder, sync_folder

IMAGE_SIZE = 64
HELD_OUT_PER_CLASS = 36
SPLITS = {"train": 1437, "val": 360}


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits that come with scikit-learn.

    Returns:
        images: uint8 array of shape (1797, 8, 8), 0 is paper and 255 is ink.
        labels: int array of shape (1797,), which digit each image shows.
    """
    # Imported here: only this data set needs scikit-learn, and its import takes a second.
    from sklearn import datasets

    digits = datasets.load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target


def split_digits(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Hold out HELD_OUT_PER_CLASS images of each class, always the same ones.

    Args:
        labels: int array of shape (N,).

    Returns:
        "train" and "val", each a sorted int array of positions in `labels`; every position is in one of them.
    """
    # NumPy guarantees that RandomState's numbers never change; for default_rng it does not.
    order = np.random.RandomState(0).permutation(len(labels))
    held_out = [order[labels[order] == label][:HELD_OUT_PER_CLASS] for label in np.unique(labels)]
    val = np.sort(np.concatenate(held_out))
    return {"train": np.setdiff1d(np.arange(len(labels)), val), "val": val}


def encode_digit(image: np.ndarray) -> bytes:
    """Enlarge a digit with Pillow's bicubic filter and encode it as an RGB JPEG without chroma subsampling.

    Args:
        image: uint8 array of shape (8, 8).

    Returns:
        bytes, a JPEG of IMAGE_SIZE x IMAGE_SIZE pixels.
    """
    enlarged = Image.fromarray(image).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    enlarged.convert("RGB").save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def digit_paths(labels: np.ndarray) -> list[str]:
    """The path of each digit relative to the root, for example `val/7/digit_0042.jpg`."""
    paths = [""] * len(labels)
    for split, positions in split_digits(labels).items():
        for position in positions:
            paths[position] = f"{split}/{labels[position]}/digit_{position:04d}.jpg"
    return paths


def is_complete(root: str, paths: list[str]) -> bool:
    """Whether `root` holds exactly the files of `paths`, none of them empty."""
    found = {
        os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
        for folder, _, names in os.walk(root)
        for name in names
        if os.path.getsize(os.path.join(folder, name))
    }
    return found == set(paths)


def write_digits(root: str) -> bool:
    """Write `root`/train/<class>/*.jpg (1,437 images) and `root`/val/<class>/*.jpg (360 images).

    The folder is written under another name and renamed, so that it appears whole or not at all. One version of Pillow
    writes the same bytes every time. A complete folder that is there already is kept.

    Returns:
        bool, whether anything was written.

    Raises:
        RunError: if `root` is a file.
        UsageError: if it is a folder that is neither empty nor complete.
        OSError: if it cannot be written.
    """
    images, labels = load_digits()
    paths = digit_paths(labels)
    root = os.path.realpath(root)  # a link stays
    if os.path.isdir(root) and is_complete(root, paths):
        return False
    if os.path.exists(root) and not os.path.isdir(root):
        raise RunError(f"{root}: it is a file; name a folder for the images")
    if os.path.exists(root) and os.listdir(root):
        raise UsageError(f"{root} exists and is not the complete set of digits; remove it or name another folder")
    parent = os.path.dirname(os.path.abspath(root))
    os.makedirs(parent, exist_ok=True)
    with scratch_folder(prefix=".digits-", dir=parent) as aside:
        for path, image in zip(paths, images):
            target = os.path.join(aside, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(encode_digit(image))
        os.chmod(aside, 0o755)  # it was made for its owner alone
        os.replace(aside, root)
        sync_folder(parent)
    return True
