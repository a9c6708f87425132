"""Holding out a share of each class, always the same images, and the lists that keep the choice for later runs."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import io
import os
from typing import Callable

import numpy as np

from src.common.cli import RunError, printable
from src.common.files import atomic_write
from src.data.label_list import parse_entries
from src.data.listing import ImageFolder
from src.preparation.alike import group_alike

LISTS = {"train": "train.tsv", "val": "val.tsv"}
NAMED = 3
"""Classes or images that a sentence names at most."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A listing in two parts, both with all of its classes.

    Attributes:
        train, val: the images to train on, and those that are held out.
        remarks: sentences on what is odd about the parts.
    """

    train: ImageFolder
    val: ImageFolder
    remarks: tuple[str, ...] = ()


def split_by_class(folder: ImageFolder, share: float, seed: int = 1, on_images: Callable = lambda count: None) -> Split:
    """Hold out a share of each class.

    Images that belong together (see `src/preparation/alike.py`) stay on one side, so that the held-out ones are new to
    the network. A class of one image stays in training; any other keeps at least one image there. The same files give
    the same parts on every machine, and other files change little about them.

    Args:
        folder: the listing.
        share: of each class, above 0 and below 1; at least one image, where it has two that do not belong together.
        seed: another one holds out other images.
        on_images: called with how many more images were looked at, for progress.

    Raises:
        ValueError: if the share is out of range.
        RunError: if nothing can be held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, it must be above 0 and below 1")
    groups, same = group_alike(folder, on_images)
    sizes = np.bincount(folder.labels, minlength=len(folder.classes))
    targets = np.where(sizes > 1, np.clip(np.floor(share * sizes + 0.5), 1, np.maximum(sizes - 1, 1)), 0).astype(int)
    held = np.zeros(len(folder), bool)
    counts = np.zeros_like(targets)
    for members in order_groups(folder, groups, seed):
        labels, numbers = np.unique(folder.labels[members], return_counts=True)
        if np.all(counts[labels] + numbers <= targets[labels]):
            counts[labels] += numbers
            held[members] = True
    if not held.any():
        raise RunError(f"{folder.root}: nothing can be held out of its {len(folder)} images, which all belong together")
    remarks = (*describe_classes(folder, sizes, counts), *describe_pairs(folder, same))
    return Split(folder.take(np.flatnonzero(~held)), folder.take(np.flatnonzero(held)), remarks)


def order_groups(folder: ImageFolder, groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """The positions of each group's images, in an order that depends on nothing but the seed and the groups' names."""
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])

    def rank(group: np.ndarray) -> bytes:
        name = f"{seed}\0{folder.paths[group.min()]}"
        return hashlib.sha256(name.encode(errors="surrogateescape")).digest()

    return sorted(members, key=rank)


def describe_classes(folder: ImageFolder, sizes: np.ndarray, held: np.ndarray) -> list[str]:
    """Sentences on the classes of which nothing is held out."""
    remarks = []
    alone, together = sizes == 1, (sizes > 1) & (held == 0)
    reasons = "one image, which stays in training", "images that all belong together, which stay in training"
    for which, reason in zip((alone, together), reasons):
        names = [printable(folder.classes[label]) for label in np.flatnonzero(which)]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            listed = ", ".join(f"'{name}'" for name in names[:NAMED]) + more
            remarks.append(f"{folder.root}: nothing is held out of {listed}: {reason}")
    return remarks


def describe_pairs(folder: ImageFolder, same: np.ndarray) -> list[str]:
    """Sentences on images that look the same: how many, and those of different classes, of which one is mislabelled."""
    if not len(same):
        return []
    remarks = [f"{folder.root}: {len(np.unique(same))} images look like another one; those are kept on one side"]
    labels = folder.labels[same]
    contradict = np.unique(np.sort(same[labels[:, 0] != labels[:, 1]], axis=1), axis=0)
    if len(contradict):
        pairs = [" and ".join(printable(folder.paths[index]) for index in pair) for pair in contradict[:NAMED]]
        more = f" and {len(contradict) - NAMED} more pairs" if len(contradict) > NAMED else ""
        remarks.append(f"{folder.root}: the same picture lies in two classes: {'; '.join(pairs)}{more}")
    return remarks


def write_split(split: Split, where: str) -> None:
    """Write train.tsv and val.tsv, lists of path and label, which `read_split` and --dataset_path take.

    Paths are relative to the lists' folder.

    Raises:
        OSError: if they cannot be written.
    """
    base = os.path.realpath(where)
    for part, folder in (("val", split.val), ("train", split.train)):
        text = io.StringIO(newline="")
        writer = csv.writer(text, "excel-tab", lineterminator="\n")
        writer.writerow(("path", "label"))
        for index, label in enumerate(folder.labels):
            writer.writerow((os.path.relpath(locate(folder.full_path(index)), base), folder.classes[label]))
        with atomic_write(os.path.join(where, LISTS[part])) as file:
            file.write(text.getvalue().encode(errors="surrogateescape"))


def read_split(folder: ImageFolder, where: str) -> Split | None:
    """Divide a listing as an earlier run did.

    Args:
        folder: the listing, with at least the images of then.
        where: the folder of the lists.

    Returns:
        Split, or None where there are no lists. Images that no list names are in neither part, which a remark says.

    Raises:
        RunError: if the listing lacks an image of a list, or a list is damaged.
    """
    lists = {part: os.path.join(where, name) for part, name in LISTS.items()}
    if not all(os.path.isfile(path) for path in lists.values()):
        return None
    position = {locate(folder.full_path(index)): index for index in range(len(folder))}
    base = os.path.realpath(where)
    parts, taken = {}, 0
    for part, path in lists.items():
        places = [os.path.normpath(os.path.join(base, entry.path)) for entry in parse_entries(path)]
        missing = [place for place in places if place not in position]
        if missing:
            raise RunError(
                f"{path}: {len(missing)} of its {len(places)} images are not in {folder.root} any more, such as "
                f"{printable(missing[0])}; the run needs the images that it began with"
            )
        parts[part] = folder.take(np.sort([position[place] for place in places]))
        taken += len(places)
    new = len(folder) - taken
    remarks = (f"{folder.root}: {new} images came after the run began and are not used",) if new else ()
    return Split(parts["train"], parts["val"], remarks)


def locate(path: str) -> str:
    """An absolute path, the same through every link to the folders above; see `os.path.realpath`."""
    folder, name = os.path.split(path)
    return os.path.join(real_folder(folder), name)


@functools.lru_cache(maxsize=100_000)
def real_folder(folder: str) -> str:
    """`os.path.realpath`, which asks the disk about every part of the path."""
    return os.path.realpath(folder)
