"""What weights of timm expect: which of its networks they are, by a name, and the images, by its config.json."""

from __future__ import annotations

import dataclasses
import json
import os
import re

from src.common.cli import RunError, UsageError
from src.images.preprocess import Preprocess
from src.weights.model_info import ModelInfo
from src.weights.sources import SOURCES

ARCHITECTURE = re.compile(r"(tf_)?efficientnet_(b[0-7])(?![0-9])")
"""timm's names of the networks; what it published under them is named further, `tf_efficientnet_b0.ap_in1k`."""


def describe_timm(
    path: str, variant: str, num_classes: int, architecture: str | None, name: str | None
) -> tuple[ModelInfo, str]:
    """What timm's weights expect. Their tensors do not say whether TensorFlow's padding goes with them: a name does.

    Args: those of `describe_source`.

    Raises:
        UsageError: if no name says it, or two say different things.
        RunError: if the name is that of another network.
    """
    settings = read_timm_config(path)
    where, name = find_name(path, architecture, name, settings)
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


def find_name(path: str, architecture: str | None, name: str | None, settings: dict) -> tuple[str, str | None]:
    """timm's name of the network, from the flag, the file itself, or what lies around it; and where it was found."""
    if architecture:
        return "--architecture is", architecture
    if name:
        return f"{path} says that it is", name
    in_config, in_path = settings.get("architecture"), name_from_path(path)
    if in_config and in_path and ARCHITECTURE.match(in_config)[0] != ARCHITECTURE.match(in_path)[0]:
        raise UsageError(
            f"{config_path(path)} says {in_config}, but the name of {path} says otherwise; say which it is with "
            "--architecture"
        )
    # The file's name may say more: tf_efficientnet_b0.ap_in1k.
    return ("the file's name says", in_path) if in_path else (f"{config_path(path)} says", in_config)


def name_from_path(path: str) -> str | None:
    """timm's name of a model from a file's name on, or that of a folder of the hub's cache."""
    folders = [part for part in os.path.abspath(path).split(os.sep)[:-1] if part.startswith("models--timm--")]
    for part in [os.path.basename(path)] + folders[::-1]:
        match = ARCHITECTURE.search(part)
        if match:
            return part[match.start() :]
    return None


def config_path(path: str) -> str:
    """Where timm's hub keeps what a model.safetensors expects."""
    return os.path.join(os.path.dirname(path), "config.json")


def read_timm_config(path: str) -> dict:
    """The settings of timm's config.json beside a weight file; empty without one of these networks."""
    try:
        with open(config_path(path), encoding="utf-8") as file:
            settings = json.load(file)
        return settings if ARCHITECTURE.match(settings["architecture"]) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def timm_preprocess(settings: dict, default: Preprocess, source: str) -> Preprocess:
    """The images of timm's config.json, whose means and deviations are of pixels from 0 to 1.

    Raises:
        RunError: if it makes no sense.
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
