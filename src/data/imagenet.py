"""ImageNet's 1000 classes in the order of their labels, which is that of the sorted folder names."""

from __future__ import annotations

import os

CLASSES_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "imagenet_classes.txt")


def read_classes() -> tuple[tuple[str, str], ...]:
    """All classes as pairs of WordNet number (the name of the class folder, n01440764) and English name (tench)."""
    with open(CLASSES_FILE, encoding="utf-8") as file:
        return tuple(tuple(line.rstrip("\n").split("\t")) for line in file)


def class_names_for(num_classes: int) -> tuple[str, ...] | None:
    """The English names where a published network has ImageNet's 1000 classes, else None."""
    return tuple(name for _, name in read_classes()) if num_classes == 1000 else None
