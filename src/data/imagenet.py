"""The names of ImageNet's 1000 classes, in the order of their labels, which is the order of the sorted folder names."""

from __future__ import annotations

import os
from collections.abc import Sequence

CLASSES_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "imagenet_classes.txt")


def read_classes() -> tuple[tuple[str, str], ...]:
    """For each class its WordNet number, which is the name of its folder (n01440764), and its English name (tench)."""
    with open(CLASSES_FILE, encoding="utf-8") as file:
        return tuple(tuple(line.rstrip("\n").split("\t")) for line in file)


def class_names_for(num_classes: int) -> tuple[str, ...] | None:
    """ImageNet's English names for a published network of 1000 classes; None for any other number of classes."""
    return tuple(name for _, name in read_classes()) if num_classes == 1000 else None


def names_in_words(names: Sequence[str]) -> list[str]:
    """Class names as people read them: WordNet's numbers of ImageNet's classes are followed by their English names."""
    words = dict(read_classes()) if names[0][:1] == "n" and names[0][1:].isdigit() else {}
    return [f"{name} {words[name]}" if name in words else name for name in names]
