"""An evaluation class by class: a CSV file and the picture of the confusion matrix."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np

from src.common.cli import RunError, printable
from src.common.files import atomic_path, atomic_write, is_stream
from src.evaluation.metrics import label_ranks

COLUMNS = ("label", "class", "images", "unusable", "top_1", "top_5", "top_1_accuracy", "top_5_accuracy")
MOST_NUMBERS = 20
"""Up to so many classes the picture has the counts in its cells..."""
MOST_NAMES = 60
"""...and up to so many their names at its sides."""


class ClassTally:
    """Counts for each class.

    Args:
        num_classes: how many there are.
        confusion: whether the matrix is wanted; its size is the square of their number.

    Attributes:
        images: int array (C,), images of each class, those that could not be used among them.
        unusable: int array (C,), those.
        top_1, top_5: int arrays (C,), images whose label was among the one or five largest logits.
        confusion: int array (C, C), row the label, column the class of the largest logit; or None.
    """

    def __init__(self, num_classes: int, confusion: bool):
        self.images, self.unusable, self.top_1, self.top_5 = np.zeros((4, num_classes), np.int64)
        self.confusion = np.zeros((num_classes, num_classes), np.int64) if confusion else None

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch: float logits of shape (N, C) and int labels of shape (N,)."""
        ranks = label_ranks(logits, labels)
        np.add.at(self.images, labels, 1)
        np.add.at(self.top_1, labels, ranks < 1)
        np.add.at(self.top_5, labels, ranks < 5)
        if self.confusion is not None:
            np.add.at(self.confusion, (labels, np.argmax(logits, axis=1)), 1)

    def add_unusable(self, label: int, counts: bool) -> None:
        """Count an image that could not be used; as wrong where it `counts`."""
        self.unusable[label] += 1
        self.images[label] += counts


def check_writable(path: str) -> None:
    """Find out, before the evaluation begins, whether a file can be written at its end.

    Raises:
        RunError: if it is a folder, or lies in one that cannot be written or made.
    """
    if os.path.isdir(path):
        raise RunError(f"{path}: it is a directory")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise RunError(f"{path}: permission was denied")
        return
    folder = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise RunError(f"{path}: a part of the path is not a directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"{path}: permission was denied")


def write_report(path: str, tally: ClassTally, classes: Sequence[str]) -> None:
    """Write a row for each class, in the order of the labels; a class without images has no accuracies."""
    with atomic_write(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for label, name in enumerate(classes):
            images, unusable = int(tally.images[label]), int(tally.unusable[label])
            hits = [int(tally.top_1[label]), int(tally.top_5[label])]
            writer.writerow([label, name, images, unusable, *hits, *(hit / images if images else "" for hit in hits)])


def import_figure():
    """Matplotlib's Figure.

    Raises:
        RunError: if it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("--confusion draws with matplotlib, which is not installed: pip install matplotlib") from None
    return Figure


def draw_confusion(path: str, tally: ClassTally, classes: Sequence[str]) -> None:
    """Draw the confusion matrix as a PNG, coloured by the share of each label's images."""
    count = len(classes)
    shares = (tally.confusion / np.maximum(1, tally.images)[:, None]).astype(np.float32)
    side = max(5.0, 0.28 * count + 2) if count <= MOST_NAMES else 10.0
    figure = import_figure()(figsize=(side, side), layout="constrained")
    panel = figure.subplots()
    picture = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(picture, ax=panel, shrink=0.7, label="share of the true class's images")
    panel.set_xlabel("predicted")
    panel.set_ylabel("true")
    if count <= MOST_NAMES:
        # A dollar sign would begin a formula.
        names = [printable(name).replace("$", r"\$") for name in classes]
        panel.set_xticks(range(count), names, rotation=90)
        panel.set_yticks(range(count), names)
    if count <= MOST_NUMBERS:
        for row, column in np.argwhere(tally.confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            panel.text(column, row, int(tally.confusion[row, column]), ha="center", va="center", color=colour)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
