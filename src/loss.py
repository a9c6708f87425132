"""CrossEntropySmooth: softmax cross-entropy with smoothed labels."""

from __future__ import annotations

from collections.abc import Sequence

import mindspore as ms
from mindspore import nn, ops


class CrossEntropySmooth(nn.Cell):
    """Cross-entropy against labels smoothed as in the model zoo (Szegedy et al. 2016, arXiv:1512.00567).

    The true class gets 1 - factor, each of the other classes factor / (num_classes - 1). Computed in float32 whatever
    the logits' type.

    Args:
        smooth_factor: the probability taken from the true class, 0 <= factor < 1.
        num_classes: width of the logits.
        reduction: "mean" over the images, or "none" for one loss an image.
        class_weights: factors on the losses by class, for training on classes of unequal size; None is 1 for all.

    Inputs:
        logits: float tensor of shape (N, num_classes).
        labels: int tensor of shape (N,), or float tensor of shape (N, num_classes) whose rows sum to 1 (mixed images);
            such rows are smoothed as the mixture of their one-hot parts.

    Outputs: float32 scalar, or of shape (N,) for "none".
    """

    def __init__(
        self,
        smooth_factor: float = 0.0,
        num_classes: int = 1000,
        reduction: str = "mean",
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction is '{reduction}', not mean or none")
        self.num_classes = num_classes
        self.mean = reduction == "mean"
        self.on_value = 1.0 - smooth_factor if num_classes > 1 else 1.0
        self.off_value = smooth_factor / (num_classes - 1) if num_classes > 1 else 0.0
        self.class_weights = None if class_weights is None else ms.Tensor(list(class_weights), ms.float32)

    def construct(self, logits, labels):
        logits = ops.cast(logits, ms.float32)
        if labels.ndim == 1:
            labels = ops.one_hot(labels, self.num_classes, ms.Tensor(1.0, ms.float32), ms.Tensor(0.0, ms.float32))
        target = ops.cast(labels, ms.float32) * (self.on_value - self.off_value) + self.off_value
        losses = -(target * ops.log_softmax(logits, -1)).sum(-1)
        if self.class_weights is not None:
            losses = losses * (ops.cast(labels, ms.float32) * self.class_weights).sum(-1)
        return losses.mean() if self.mean else losses
