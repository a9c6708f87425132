"""Loss, top-1 and top-5 of a network over a labelled data set, every image counted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import communication, nn, ops

from src.metrics import Score


def evaluate(
    network: nn.Cell,
    batches: Iterable[Tuple[np.ndarray, np.ndarray]],
    smooth_factor: float,
    on_batch: Optional[Callable[[int], None]] = None,
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


class SumOverRanks(nn.Cell):
    """All ranks' vectors added up."""

    def __init__(self):
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x):
        return self.all_reduce(x)


def sum_over_ranks(score: Score) -> Score:
    """The score over all ranks' images; as it is where there is one rank."""
    if not communication.GlobalComm.INITED or communication.get_group_size() == 1:
        return score
    # Counts travel as two float32 digits of base 4096 each: exact up to 16 million images on every backend.
    counts = [score.images, score.top_1, score.top_5]
    digits = [digit for count in counts for digit in divmod(count, 4096)]
    sums = SumOverRanks()(ms.Tensor(np.array([*digits, score.loss_sum], np.float32))).asnumpy()
    images, top_1, top_5 = (int(sums[2 * i]) * 4096 + int(sums[2 * i + 1]) for i in range(3))
    return Score(images, float(sums[6]), top_1, top_5)
