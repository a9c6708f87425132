"""What a network made of each image of an evaluation."""

from __future__ import annotations

import numpy as np

from src.evaluation.metrics import label_ranks, log_softmax, smoothed_cross_entropy

MOST_LOGITS = 1 << 26
"""So many logits are kept for the temperature, 256 MB; of larger evaluations those of every second, third... image."""
ROW = np.dtype(
    [("label", "i4"), ("prediction", "i4"), ("rank", "i4"), ("confidence", "f8"), ("own", "f8"), ("loss", "f8")]
)


class Outcomes:
    """A row for each image that could be used, in the order of the images.

    Args:
        images: how many there are at most.
        num_classes: width of the logits.
        smooth_factor: label smoothing of the loss.

    Attributes:
        rows: array of ROW: the label; the class of the largest logit; how many classes come before the label; the
            softmax of the prediction and of the label, 0 where the logits are not finite; the loss.
    """

    def __init__(self, images: int, num_classes: int, smooth_factor: float):
        self.num_classes = num_classes
        self.smooth_factor = smooth_factor
        self.stride = max(1, -(-images * num_classes // MOST_LOGITS))
        self.table = np.zeros(images, ROW)
        self.count = 0
        self.kept: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def rows(self) -> np.ndarray:
        """The rows that have been added."""
        return self.table[: self.count]

    def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: float logits of shape (N, C) and int labels of shape (N,)."""
        rows = self.table[self.count : self.count + len(labels)]
        finite = np.isfinite(logits).all(axis=1)
        shares = np.exp(log_softmax(np.where(finite[:, None], logits, 0)))
        rows["label"], rows["prediction"] = labels, np.argmax(logits, axis=1)
        rows["rank"] = label_ranks(logits, labels)
        everyone = np.arange(len(labels))
        rows["confidence"] = np.where(finite, shares[everyone, rows["prediction"]], 0)
        rows["own"] = np.where(finite, shares[everyone, rows["label"]], 0)
        rows["loss"] = smoothed_cross_entropy(logits, labels, self.smooth_factor)
        chosen = (self.count + everyone) % self.stride == 0
        self.kept.append((logits[chosen & finite].astype(np.float32), np.asarray(labels)[chosen & finite]))
        self.count += len(labels)

    def kept_logits(self) -> tuple[np.ndarray, np.ndarray]:
        """Finite logits and their labels, for fitting a temperature: float32 (M, C) and int (M,)."""
        logits, labels = zip(*self.kept) if self.kept else ([np.zeros((0, self.num_classes))], [np.zeros(0, int)])
        return np.concatenate(logits), np.concatenate(labels)
