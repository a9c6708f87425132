"""Loss, top-1 and top-5 of a network over a labelled data set, every image counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from src.evaluation.metrics import Score
from src.runtime.collective import count_ranks, sum_counts, sum_floats


def evaluate(
    network: nn.Cell,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    smooth_factor: float,
    on_batch: Callable[[int], None] | None = None,
) -> Score:
    """Run a network over batches of images.

    Args:
        network: in evaluation mode, images (N, 3, H, W) to logits.
        batches: of float32 images and int labels; the last may be smaller than the others. A negative label is of an
            image that could not be decoded: it counts as wrong.
        smooth_factor: of the training loss, so that both losses can be compared.
        on_batch: called with the number of images of each batch, for progress.
    """
    score = Score()
    full = 0
    for images, labels in batches:
        full = max(full, len(labels))
        # A smaller last batch is filled up: another shape would compile the whole graph once more.
        filled = np.concatenate([images, np.zeros((full - len(labels), *images.shape[1:]), images.dtype)])
        logits = network(ms.Tensor(filled)).asnumpy()[: len(labels)]
        decoded = labels >= 0
        score.add(logits[decoded].astype(np.float32), labels[decoded], smooth_factor)
        score.add_wrong(int((~decoded).sum()))
        if on_batch:
            on_batch(len(labels))
    return score


def sum_over_ranks(score: Score) -> Score:
    """The score over all ranks' images; as it is where there is one rank."""
    if count_ranks() == 1:
        return score
    images, top_1, top_5, unusable = sum_counts([score.images, score.top_1, score.top_5, score.unusable])
    return Score(images=images, loss_sum=sum_floats([score.loss_sum])[0], top_1=top_1, top_5=top_5, unusable=unusable)
