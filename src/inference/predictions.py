"""What a network says of single images: the k most probable classes, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import printable
from src.data.imagenet import read_classes
from src.weights.model_info import ModelInfo

WIDEST_NAME = 60


def top_classes(logits: np.ndarray, k: int) -> list[tuple[int, float]]:
    """The k largest of a row of logits with their softmax; of equal ones the lower number comes first.

    Args:
        logits: float array of shape (C,).
        k: how many; all where there are fewer.

    Returns:
        list of (class number, probability).
    """
    values = np.asarray(logits, np.float64)
    exponents = np.exp(values - values.max())
    probabilities = exponents / exponents.sum()
    order = np.argsort(-values, kind="stable")[:k]
    return [(int(label), float(probabilities[label])) for label in order]


def display_names(info: ModelInfo) -> list[str]:
    """A name for each class: the file's, in words where the file has ImageNet's WordNet numbers, else its number."""
    names = [info.class_name(label) for label in range(info.num_classes)]
    words = dict(read_classes()) if names[0][:1] == "n" and names[0][1:].isdigit() else {}
    return [f"{name} {words[name]}" if name in words else name for name in names]


class Table:
    """Lines of a table with one block of k lines for each image.

    Args:
        paths: the images that will come, for the width.
        names: of the classes.
    """

    def __init__(self, paths: Sequence[str], names: Sequence[str]):
        self.path_width = width_of(paths, "image")
        self.name_width = width_of(names, "class")
        self.names = names

    def head(self) -> str:
        """The line above all others."""
        return f"{'image':<{self.path_width}}  rank  {'class':<{self.name_width}}  probability"

    def lines(self, path: str, classes: Sequence[tuple[int, float]]) -> Iterator[str]:
        """The lines of an image; its name stands in the first."""
        for rank, (label, probability) in enumerate(classes, 1):
            shown = printable(path) if rank == 1 else ""
            name = printable(self.names[label])
            yield f"{shown:<{self.path_width}}  {rank:>4}  {name:<{self.name_width}}  {probability:>11.6f}"


def width_of(texts: Sequence[str], title: str) -> int:
    """Width of a column; longer texts stand out."""
    return min(WIDEST_NAME, max([len(title), *(len(printable(text)) for text in texts)]))


def as_json(path: str, classes: Sequence[tuple[int, float]], info: ModelInfo) -> str:
    """One line of JSON for an image; the class is called what the file calls it."""
    rows = [{"label": label, "class": info.class_name(label), "probability": share} for label, share in classes]
    return json.dumps({"image": path, "classes": rows})


def error_as_json(path: str, sentence: str) -> str:
    """One line of JSON for an image that could not be used."""
    return json.dumps({"image": path, "error": sentence})
