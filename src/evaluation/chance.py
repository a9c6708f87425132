"""Losses beside that of a network that only guesses, and the sentences on those that are far above it."""

from __future__ import annotations

import math

FACTOR_IN_TRAINING = 1.5
"""Above so many times the loss of guessing a training is named. Equal probabilities for all classes have the loss
ln(classes) whatever the targets are, smoothed or mixed labels too, so that only a network that is wrong and sure of it
stays above that; a fresh network begins near 1, and half as much again is no noise of an epoch's mean."""
FACTOR_IN_EVALUATION = 10
"""Above so many times it an evaluation is named: networks that fit their training images too well reach a few times."""
FEWEST_FOR_TOP_5 = 6
"""From so many classes on top-5 says something; with fewer it is 100% by definition."""


def chance_loss(classes: int) -> float:
    """The loss of equal probabilities for all classes, in nats: ln(classes)."""
    return math.log(classes)


def warn_of_training(loss: float, classes: int, learning_rate: float) -> str | None:
    """A sentence on an epoch's mean loss that is well above chance, with what to do; else None."""
    if classes < 2 or loss <= FACTOR_IN_TRAINING * chance_loss(classes):
        return None
    return (
        f"warning: the average loss {loss:.3f} is well above {chance_loss(classes):.3f}, that of guessing among "
        f"{classes} classes; if it does not fall soon, try a smaller --lr_max (the rate is {learning_rate:.3g}), more "
        "--warmup_epochs or --clip_norm 5"
    )


def warn_of_evaluation(loss: float, classes: int, norm_momentum: float | None = None) -> str | None:
    """A sentence on an evaluation's loss that is far above chance, or no number, with what to do; else None.

    Args:
        loss: the mean over the images.
        classes: how many there are.
        norm_momentum: of the training, where it is known.
    """
    if classes < 2 or loss <= FACTOR_IN_EVALUATION * chance_loss(classes):
        return None
    now = "" if norm_momentum is None else f" (it is {norm_momentum:g})"
    return (
        f"warning: the evaluation's loss {loss:.4g} is far above {chance_loss(classes):.3f}, that of guessing among "
        f"{classes} classes. Where the training's loss is lower, the batch norms' moving statistics lag behind or have "
        f"exploded: train with a smaller --norm_momentum{now}, a smaller --lr_max or more steps"
    )
