"""The recipe `finetune`: flags chosen for the images that are there, each with its reason.

The choices were measured on photos of two kinds, see docs/training.md: 1,399 large ones of two classes, and 2,062
squares of 100 pixels of ten classes.
"""

from __future__ import annotations

import io
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from src.common.machine import available_memory
from src.config import Config
from src.data.listing import ImageFolder
from src.models.family import VARIANTS
from src.models.table import count_activations

DEFAULT_WEIGHTS = "lite0"
VAL_SHARE = 0.2
MEASURED_IMAGES = 100
"""Of so many images the size is looked at."""

BATCH = 32
RATE = 0.03
"""Peak rate of SGD for a batch of 32."""

IMAGES_SEEN = 6000
"""A run is about so many images long, but not shorter or longer than EPOCHS."""
EPOCHS = (4, 40)
UNBALANCED = 3
"""A class with so many times the images of another one is counted with less weight."""


class Choice(NamedTuple):
    """A flag's value and the reason for it."""

    name: str
    value: Any
    reason: str


def choose_start(config: Config, has_held_out: bool) -> dict[str, Any]:
    """What comes before the images are looked at: the weights to start from, and what is held out; by name."""
    values = {} if config.pretrained else {"pretrained": DEFAULT_WEIGHTS}
    if not has_held_out and "val_share" not in config.given:
        values["val_share"] = VAL_SHARE
    return values


def choose_settings(config: Config, folder: ImageFolder, device_target: str, ranks: int) -> list[Choice]:
    """Choose what the caller has not given.

    Args:
        config: with the variant and the image settings of the weights that the run starts from.
        folder: the images to train on.
        device_target: what computes; memory counts on a CPU.
        ranks: that train together.
    """
    choices: list[Choice] = []

    def choose(name: str, value: Any, reason: str) -> Any:
        if name in config.given:
            return getattr(config, name)
        choices.append(Choice(name, value, reason))
        return value

    images = len(folder)
    size = choose("image_size", *choose_size(config, median_side(folder)))
    batch = choose("batch_size", *choose_batch(config.variant, size, images // ranks, device_target))
    epochs = min(max(math.ceil(IMAGES_SEEN / images), EPOCHS[0]), EPOCHS[1])
    epochs = choose(
        "epoch_size", epochs, f"{images:,} images; about {IMAGES_SEEN:,} are shown, in {EPOCHS[0]} epochs or more"
    )
    steps = max(1, images // (batch * ranks * config.accumulate_steps)) * epochs
    choose("freeze", *choose_frozen(images))
    choose("opt", "sgd", "RMSProp was no better, and a rate for it is harder to find")
    rate = min(RATE * batch * ranks * config.accumulate_steps / BATCH, 0.2)
    rate = choose("lr_max", rate, f"{RATE} for a batch of {BATCH}, in proportion to the batch")
    choose("lr_init", rate / 100, "a hundredth of the peak")
    choose("lr_end", rate / 100, "a hundredth of the peak")
    choose("lr_decay_mode", "cosine", "the rate stays high for longer than a line and ends gently")
    choose("warmup_epochs", round(0.1 * epochs, 2), "a tenth of the run, while the new classifier is random")
    choose("norm_momentum", round(follow_run(steps), 3), f"the statistics follow within a run of {steps} steps")
    choose("crop_scale_min", 0.35, "crops of a few percent of a photo often miss its subject")
    choose("class_weights", *choose_class_weights(folder))
    return choices


def median_side(folder: ImageFolder) -> int:
    """The median of the shorter sides of some images, in pixels; 0 where none can be read."""
    sides = []
    for index in np.unique(np.linspace(0, len(folder) - 1, MEASURED_IMAGES).astype(int)):
        try:
            with Image.open(io.BytesIO(folder.read(int(index)))) as image:
                sides.append(min(image.size))
        except Exception:  # noqa: S112  a broken image is named when it is trained on
            continue
    return int(np.median(sides)) if sides else 0


def choose_size(config: Config, side: int) -> tuple[int, str]:
    """The weights' image size, or a smaller one for small photos."""
    published = config.image_size
    wanted = max(96, math.ceil(1.25 * side / 32) * 32)
    if not side or wanted >= published:
        return published, f"that of the weights; the photos' shorter side is {side} pixels"
    return (
        wanted,
        f"the photos' shorter side is {side} pixels; the weights were trained on {published}, which takes longer",
    )


def choose_batch(variant: str, size: int, images: int, device_target: str) -> tuple[int, str]:
    """At most 32, less where there are few images or there is little memory."""
    batch, reason = BATCH, "small enough for many updates in a short run"
    while batch > 4 and batch * 8 > images:
        batch, reason = batch // 2, f"{images} images make 8 steps or more an epoch"
    if device_target == "CPU":
        # Forward, backward and what lies between: four times the activations, in float32.
        needed, there = 16 * count_activations(VARIANTS[variant], size), available_memory()
        while batch > 4 and batch * needed > there / 2:
            batch, reason = batch // 2, f"{there / 2**30:.1f} GiB of memory are free"
    return batch, reason


def choose_frozen(images: int) -> tuple[int, str]:
    """How many parts stay as they are: the fewer images, the more."""
    for parts, most in ((4, 5_000), (2, 50_000)):
        if images <= most:
            return parts, f"{images:,} images; what the first layers see is the same in all photos, and it saves time"
    return 0, f"{images:,} images are enough to train everything"


def choose_class_weights(folder: ImageFolder) -> tuple[str, str]:
    """Balanced where classes differ much in size."""
    counts = np.bincount(folder.labels, minlength=len(folder.classes))
    smallest, largest = counts.min(), counts.max()
    kind = "balanced" if largest > UNBALANCED * smallest else "none"
    return kind, f"the classes have {smallest:,} to {largest:,} images"


def choose_momentum(config: Config, steps_per_epoch: int) -> list[Choice]:
    """A smaller momentum of the batch-norm statistics than the published one, where the run is too short for that."""
    steps = max(1, steps_per_epoch * config.epoch_size)
    momentum = round(follow_run(steps), 3)
    if momentum >= config.norm_momentum:
        return []
    reason = f"with {config.norm_momentum:g} the statistics would lag behind in a run of {steps} steps"
    return [Choice("norm_momentum", momentum, reason)]


def follow_run(steps: int) -> float:
    """A momentum with which batch-norm statistics forget their start within a run of so many steps, at most 0.99."""
    return min(0.99, max(0.8, 1 - 25 / steps))
