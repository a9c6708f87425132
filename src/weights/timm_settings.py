"""What weights of timm expect: which of its networks they are, by a name, and the images, by its config.json."""

from __future__ import annotations

import dataclasses
import json
import os
import re

from src.common.cli import RunError, UsageError
from src.images.preprocess import Preprocess
from src.models.family import VARIANTS
from src.weights.model_info import ModelInfo
from src.weights.names import WeightFile
from src.weights.sources import SOURCES

ARCHITECTURE = re.compile(rf"(tf_)?efficientnet_({'|'.join(VARIANTS)})(?![0-9])")
"""timm's names of the networks; those of weights go on behind them, `tf_efficientnet_b0.ap_in1k`."""


def describe_timm(file: WeightFile, architecture: str | None, variant: str, num_classes: int) -> tuple[ModelInfo, str]:
    """What timm's weights expect. Their tensors do not say whether TensorFlow's padding goes with them: a name does.

    Args:
        file: the weights.
        architecture: timm's name of the network as the user gave it, or None.
        variant, num_classes: what the tensors say.

    Returns:
        The description and a phrase on the source.

    Raises:
        UsageError: if no name says it, or two say different things.
        RunError: if the name is that of another network.
    """
    path = file.path
    settings = read_timm_config(path)
    where, name = find_name(file, architecture, settings)
    if name is None:
        raise UsageError(
            f"{path}: timm's efficientnet_{variant} and tf_efficientnet_{variant} have the same tensors but pad "
            f"differently; say which it is with --architecture"
        )
    match = ARCHITECTURE.match(name)
    if match is None or match[2] != variant:
        raise RunError(f"{where} {name}, but the tensors in {path} are those of {variant}")
    info = SOURCES["timm_tf" if match[1] else "timm"].describe(variant, num_classes, name)
    if settings and ARCHITECTURE.match(settings["architecture"])[0] == match[0]:
        info = dataclasses.replace(info, preprocess=timm_preprocess(settings, info.preprocess, config_path(path)))
    return info, f"timm's {match[0]}"


def find_name(file: WeightFile, architecture: str | None, settings: dict) -> tuple[str, str | None]:
    """The start of a sentence on where timm's name of the network was found, and the name.

    The user's word counts first, then that of the file itself, then its name and the config.json beside it.

    Raises:
        UsageError: if the file's name and config.json contradict each other.
    """
    path = file.path
    if architecture:
        return "--architecture is", architecture
    if file.timm_name:
        return f"{path} says that it is", file.timm_name
    in_config, in_path = settings.get("architecture"), name_from_path(path)
    if in_config and in_path and ARCHITECTURE.match(in_config)[0] != ARCHITECTURE.match(in_path)[0]:
        raise UsageError(
            f"{config_path(path)} says {in_config}, but the name of {path} says otherwise; say which it is with "
            "--architecture"
        )
    # The file's name may say more: tf_efficientnet_b0.ap_in1k.
    return ("the file's name says", in_path) if in_path else (f"{config_path(path)} says", in_config)


def name_from_path(path: str) -> str | None:
    """timm's name of a model and all behind it, in a file's name or that of a folder in the hub's cache."""
    folders = [part for part in os.path.abspath(path).split(os.sep)[:-1] if part.startswith("models--timm--")]
    for part in [os.path.basename(path)] + folders[::-1]:
        match = ARCHITECTURE.search(part)
        if match:
            return part[match.start() :]
    return None


def config_path(path: str) -> str:
    """Where timm's hub says what a model.safetensors expects."""
    return os.path.join(os.path.dirname(path), "config.json")


def read_timm_config(path: str) -> dict:
    """The settings in timm's config.json beside a weight file; empty if there is none, or one of another network."""
    try:
        with open(config_path(path), encoding="utf-8") as file:
            settings = json.load(file)
        return settings if ARCHITECTURE.match(settings["architecture"]) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def timm_preprocess(settings: dict, default: Preprocess, source: str) -> Preprocess:
    """The images as timm's config.json has them, whose means and deviations are of pixels from 0 to 1.

    Args:
        settings: of `read_timm_config`.
        default: takes the place of an interpolation that is missing or that `Preprocess` has not.
        source: the file, for the error's sentence.

    Raises:
        RunError: if the settings make no sense.
    """
    settings = settings.get("pretrained_cfg", settings)
    try:
        size = int(settings["input_size"][1])
        interpolation = settings.get("interpolation", default.interpolation)
        return Preprocess.from_dict(
            {
                "image_size": size,
                "resize": max(size, int(size / settings["crop_pct"])),
                "interpolation": interpolation if interpolation in ("bicubic", "bilinear") else default.interpolation,
                "mean": [255 * value for value in settings["mean"]],
                "std": [255 * value for value in settings["std"]],
            }
        )
    except (RunError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise RunError(f"{source}: its settings of the images are broken ({error})") from None
