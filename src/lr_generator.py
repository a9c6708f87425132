"""The learning rate of every step of a run."""

from __future__ import annotations

import math

import numpy as np

DECAY_MODES = ("liner", "linear", "cosine", "poly", "steps", "exponential")
POLY_POWER = 2.0
# The model zoo's steps: a tenth after 30%, 60% and 80% of the run.
STEP_SHARES = (0.3, 0.6, 0.8)
STEP_FACTOR = 0.1
# The paper's: times 0.97 every 2.4 epochs.
EXPONENTIAL_FACTOR = 0.97
EXPONENTIAL_EPOCHS = 2.4


def get_lr(
    lr_init: float,
    lr_end: float,
    lr_max: float,
    warmup_epochs: float,
    total_epochs: int,
    steps_per_epoch: int,
    lr_decay_mode: str = "liner",
) -> np.ndarray:
    """Warm up linearly from lr_init to lr_max, then fall to lr_end.

    Step i of the warm-up's W steps has lr_init + (lr_max - lr_init) * i / W. With d = (i - W) / (total - W), the share
    of the decay that has passed, a later step has

    - linear ("liner"): lr_max + (lr_end - lr_max) * d
    - cosine (Loshchilov and Hutter 2017, arXiv:1608.03983): lr_end + (lr_max - lr_end) * (1 + cos(pi * d)) / 2
    - poly: lr_end + (lr_max - lr_end) * (1 - d)^2
    - steps: lr_max, times 0.1 after 30%, 60% and 80% of the whole run, never below lr_end
    - exponential (the paper's): lr_max, times 0.97 for every 2.4 whole epochs since the start, never below lr_end

    Args:
        lr_init, lr_end, lr_max: rates, not negative.
        warmup_epochs: may be a fraction; 0 is no warm-up.
        total_epochs, steps_per_epoch: at least 1.
        lr_decay_mode: one of DECAY_MODES.

    Returns:
        float32 array of shape (total_epochs * steps_per_epoch,).

    Raises:
        ValueError: for an unknown mode.
    """
    if lr_decay_mode not in DECAY_MODES:
        raise ValueError(f"lr_decay_mode is '{lr_decay_mode}', not one of {', '.join(DECAY_MODES)}")
    total = total_epochs * steps_per_epoch
    warmup = min(total, math.ceil(warmup_epochs * steps_per_epoch))
    rising = lr_init + (lr_max - lr_init) * np.arange(warmup) / max(1, warmup)
    step = np.arange(warmup, total)
    passed = (step - warmup) / max(1, total - warmup)
    if lr_decay_mode in ("liner", "linear"):
        falling = lr_max + (lr_end - lr_max) * passed
    elif lr_decay_mode == "cosine":
        falling = lr_end + (lr_max - lr_end) * (1 + np.cos(np.pi * passed)) / 2
    elif lr_decay_mode == "poly":
        falling = lr_end + (lr_max - lr_end) * (1 - passed) ** POLY_POWER
    elif lr_decay_mode == "exponential":
        reached = np.floor(step / (EXPONENTIAL_EPOCHS * steps_per_epoch))
        falling = np.maximum(lr_end, lr_max * EXPONENTIAL_FACTOR**reached)
    else:
        reached = sum((step >= share * total).astype(int) for share in STEP_SHARES)
        falling = np.maximum(lr_end, lr_max * STEP_FACTOR**reached)
    return np.concatenate([rising, falling]).astype(np.float32)
