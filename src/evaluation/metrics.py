"""Top-1, top-5 and loss of logits against labels; the one definition for every program. NumPy only."""

from __future__ import annotations

import dataclasses

import numpy as np


def label_ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes come before each row's label; of equal logits the lower class number comes first.

    Args:
        logits: float array of shape (N, C); a row whose label has NaN has the rank C or higher.
        labels: int array of shape (N,), values in [0, C).

    Returns:
        int array of shape (N,): 0 where the label has the largest logit.

    Raises:
        ValueError: if the shapes disagree.
    """
    logits = np.asarray(logits)
    labels = np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits of shape {logits.shape} do not go with labels of shape {labels.shape}")
    own = np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=1)
    # NaN compares false with everything: a NaN elsewhere is counted as larger, so that it never helps.
    larger = (~(logits <= own)).sum(axis=1)
    equal_before = ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None])).sum(axis=1)
    return larger + equal_before


def top_k_hits(logits: np.ndarray, labels: np.ndarray, k: int) -> int:
    """Count rows whose label is among the k largest logits; of equal logits the lower class number comes first.

    Args:
        logits: float array of shape (N, C); a row whose label has NaN hits nothing.
        labels: int array of shape (N,), values in [0, C).
        k: how many of the largest logits count, 1 <= k <= C.

    Returns:
        int, how many of the N rows hit.

    Raises:
        ValueError: if k > C or the shapes disagree.
    """
    ranks = label_ranks(logits, labels)
    if not 1 <= k <= np.shape(logits)[1]:
        raise ValueError(f"k is {k}, but there are {np.shape(logits)[1]} classes")
    return int((ranks < k).sum())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the softmax of each row, in float64."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def smoothed_cross_entropy(logits: np.ndarray, labels: np.ndarray, smooth_factor: float = 0.0) -> np.ndarray:
    """Cross-entropy of each row as `src.loss.CrossEntropySmooth` computes it, in float64.

    Args:
        logits: float array of shape (N, C).
        labels: int array of shape (N,), values in [0, C).
        smooth_factor: probability taken from the true class and spread over the C - 1 others.

    Returns:
        float64 array of shape (N,).
    """
    log_shares = log_softmax(logits)
    classes = log_shares.shape[1]
    on_value, off_value = 1.0 - smooth_factor, smooth_factor / max(1, classes - 1)
    own = np.take_along_axis(log_shares, np.asarray(labels)[:, None].astype(np.int64), axis=1)[:, 0]
    return -((on_value - off_value) * own + off_value * log_shares.sum(axis=1))


@dataclasses.dataclass
class Score:
    """Sums over images, so that batches and ranks can be added up.

    Attributes:
        images: how many were counted.
        unusable: how many of them could not be read; they count as wrong and have no loss.
        loss_sum: sum of the others' losses.
        top_1, top_5: how many have the label among the one or five largest logits (all logits, if fewer than five).
    """

    images: int = 0
    loss_sum: float = 0.0
    top_1: int = 0
    top_5: int = 0
    unusable: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, smooth_factor: float = 0.0) -> None:
        """Count a batch: float logits of shape (N, C) and int labels of shape (N,)."""
        self.images += len(labels)
        self.loss_sum += float(smoothed_cross_entropy(logits, labels, smooth_factor).sum())
        self.top_1 += top_k_hits(logits, labels, 1)
        self.top_5 += top_k_hits(logits, labels, min(5, logits.shape[1]))

    def add_wrong(self, images: int) -> None:
        """Count images that could not be read: wrong, and without a loss of their own."""
        self.images += images
        self.unusable += images

    @property
    def loss(self) -> float:
        """Mean loss over the images that could be read."""
        return self.loss_sum / max(1, self.images - self.unusable)

    @property
    def top_1_accuracy(self) -> float:
        """Share of images, 0 to 1."""
        return self.top_1 / max(1, self.images)

    @property
    def top_5_accuracy(self) -> float:
        """Share of images, 0 to 1."""
        return self.top_5 / max(1, self.images)

    def as_result(self) -> dict:
        """The model card's form: {'Loss': ..., 'Top_1_Acc': ..., 'Top_5_Acc': ...}."""
        return {"Loss": self.loss, "Top_1_Acc": self.top_1_accuracy, "Top_5_Acc": self.top_5_accuracy}
