"""What a network says of single images: the k most probable classes, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from src.common.cli import printable
from src.data.image_list import ImageList
from src.data.imagenet import names_in_words
from src.images.bad_images import ImageError, UnusableImages
from src.weights.model_info import ModelInfo

TOP_K = 5
"""Classes told of each image where the user does not say how many."""
WIDEST_NAME = 60


@dataclasses.dataclass(frozen=True)
class ClassifiedBatch:
    """What came out of some images in a row.

    Attributes:
        indices: numbers of the images that could be used.
        logits: float32 of shape (len(indices), classes).
        errors: numbers of the others, with the sentence on each.
    """

    indices: list[int]
    logits: np.ndarray
    errors: dict[int, ImageError]


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
    return names_in_words([info.class_name(label) for label in range(info.num_classes)])


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


def tell_predictions(
    images: ImageList,
    batches: Iterable[ClassifiedBatch],
    info: ModelInfo,
    unusable: UnusableImages,
    top_k: int | None,
    as_lines_of_json: bool,
) -> None:
    """Print the most probable classes of each image, as soon as they are known.

    Args:
        images: what was asked about.
        batches: what came out of them, in order.
        info: of the network.
        unusable: counts the images without an answer, and names them.
        top_k: classes told of each; None is TOP_K.
        as_lines_of_json: one line of JSON for each image instead of a table.
    """
    table = Table(images.paths, display_names(info))
    if not as_lines_of_json:
        print(f"\n{table.head()}", flush=True)
    for batch in batches:
        logits = dict(zip(batch.indices, batch.logits))
        for index in sorted([*logits, *batch.errors]):
            path = images.full_path(index)
            if index in batch.errors:
                unusable.add(batch.errors[index])
                lines = [error_as_json(path, str(batch.errors[index]))] if as_lines_of_json else []
            else:
                classes = top_classes(logits[index], top_k or TOP_K)
                lines = [as_json(path, classes, info)] if as_lines_of_json else table.lines(path, classes)
            for line in lines:
                print(line, flush=True)
