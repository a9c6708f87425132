"""The configuration completed: what was left to recipe, trained weights, variant, images and device."""

from __future__ import annotations

from src.common.cli import UsageError
from src.config import Config
from src.data.listing import ImageFolder
from src.models.family import VARIANTS
from src.recipes.finetune import Choice, choose_momentum, choose_settings
from src.recipes.named import apply_recipe
from src.runtime.device import Device, is_inference_card
from src.training.resume import adopt_pretrained
from src.weights.checkpoint import Checkpoint
from src.weights.model_info import ModelInfo

LARGEST_TRANSFER = 256_000_000
"""Bytes; the docstring of MindSpore's `Model.train` says 256M."""


def complete_config(
    config: Config, device: Device, folder: ImageFolder, pretrained: Checkpoint | None
) -> tuple[Config, list[Choice]]:
    """Fill in what was left to the recipe, the trained weights, the variant, the folder and the device.

    Returns:
        The configuration, and what the recipe chose for these images.
    """
    config = apply_recipe(config)
    if pretrained:
        config = adopt_pretrained(config, pretrained)
    choices = []
    if config.recipe == "finetune":
        choices = choose_settings(config, folder, device.target, device.rank_size)
    elif "norm_momentum" not in config.given and config.recipe == "zoo":
        choices = choose_momentum(config, len(folder) // (config.batch_size * device.rank_size))
    config = config.replace(**{choice.name: choice.value for choice in choices})
    variant = VARIANTS[config.variant]
    values = {}
    if "class_num" not in config.given:
        values["class_num"] = len(folder.classes)
    elif config.class_num != len(folder.classes):
        raise UsageError(
            f"--class_num is {config.class_num}, but {folder.root} has {len(folder.classes)} class folders"
        )
    if "image_size" not in config.given and not pretrained:
        values["image_size"] = variant.image_size
    if config.dropout_rate is None:
        values["dropout_rate"] = variant.dropout_rate
    if config.amp_level is None:
        values["amp_level"] = "O3" if device.target == "Ascend" else "O0"
    return config.replace(**values).settled(), choices


def describe_model(config: Config, folder: ImageFolder, start: Checkpoint | None) -> ModelInfo:
    """What the checkpoints will say of themselves."""
    if config.class_num != len(folder.classes):
        raise UsageError(
            f"the run has {config.class_num} classes, but {folder.root} has {len(folder.classes)} class folders"
        )
    names, origin = tuple(folder.classes), start.info.origin if start else None
    return config.part(
        ModelInfo, num_classes=config.class_num, class_names=names, preprocess=config.preprocess, origin=origin
    )


def check_card(device: Device) -> None:
    """Refuse an NPU that cannot train."""
    if is_inference_card(device.card):
        raise UsageError(
            f"--device_target is Ascend, but the NPU here is an {device.card}, which runs exported models and cannot "
            "train; take --device_target CPU, or a server with Ascend 910 or Atlas A2 cards"
        )


def check_transfer(batch_size: int, image_size: int) -> None:
    """Refuse batches that a data sink cannot send: MindSpore moves at most 256 MB of a column at once.

    Raises:
        UsageError: with the largest batch that fits.
    """
    largest = LARGEST_TRANSFER // (3 * image_size**2)
    if batch_size > largest:
        raise UsageError(
            f"--batch_size {batch_size} makes {batch_size * 3 * image_size**2 / 1e6:.0f} MB of images of {image_size} "
            f"pixels, and MindSpore sends at most {LARGEST_TRANSFER / 1e6:.0f} MB to an NPU at once; take at most "
            f"{largest}, with --accumulate_steps where updates should be of as many images"
        )


def check_sync_bn(device: Device) -> None:
    """Refuse what MindSpore's batch norm over several ranks cannot do."""
    if device.target != "Ascend":
        raise UsageError(
            f"--sync_bn needs Ascend devices, MindSpore cannot on {device.target}; without it each rank has its own "
            "batch-norm statistics"
        )
    if device.rank_size == 1:
        raise UsageError("--sync_bn needs several ranks; one device has the statistics of the whole batch anyway")
