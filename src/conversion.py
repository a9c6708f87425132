"""Weights of any known project to ours: what a file is, what it expects, and the same under another project's names."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from typing import Dict, Optional, Tuple

import numpy as np

from src.checkpoint import INFO_ENTRY, read_checkpoint, read_entries
from src.cli import RunError, UsageError
from src.config import Config
from src.model_info import ModelInfo
from src.models.scaling import HEAD_CHANNELS, VARIANTS, scale_channels
from src.preprocess import Preprocess
from src.weight_files import read_pth, read_safetensors, without_wrapper, write_safetensors
from src.weights import CLASSIFIER, LAYOUTS, SOURCES, Weights, find_variant, recognise, to_ours, to_theirs

ARCHITECTURE = re.compile(r"(tf_)?efficientnet_(b[0-7])(?![0-9])")
"""timm's names of the networks."""
INFO_TEXT = "efficientnet"
"""The entry of a .safetensors file in which we describe the model."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights under our names, what they expect, and a sentence on where they came from."""

    weights: Weights
    info: ModelInfo
    origin: str


def read_source(path: str, architecture: Optional[str], averaged: bool, parameters: Config) -> Converted:
    """Read a weight file of any known project and translate it.

    Raises:
        RunError: if it cannot be read or is none of these networks.
        UsageError: if what it is cannot be told from the file and the flags.
    """
    if not os.path.isfile(path):
        raise RunError(f"{path}: there is no such file")
    texts = {}
    if path.endswith(".safetensors"):
        entries, texts = read_safetensors(path)
    elif path.endswith((".pth", ".pt", ".bin", ".tar")):
        entries = read_pth(path, averaged)
    elif path.endswith(".ckpt"):
        entries = read_entries(path)
        if INFO_ENTRY in entries:
            return read_ours(path, averaged)
    else:
        raise UsageError(f"--source {path}: the name of a weight file ends in .safetensors, .pth, .pt, .bin or .ckpt")
    entries = without_wrapper(entries, path)
    layout = recognise(entries)
    if layout is None:
        raise RunError(
            f"{path}: it is no EfficientNet of timm, torchvision, the model zoo or MindCV; its names are like "
            f"{next(iter(entries), 'none at all')}"
        )
    variant = find_variant(layout, entries, path)
    weights = to_ours(layout, variant, entries, path)
    info, origin = describe_source(path, texts, variant, layout, architecture, count_classes(weights, path, parameters))
    if CLASSIFIER[0] not in weights:
        weights.update(new_classifier(info))
        info = dataclasses.replace(info, class_names=None)
        origin += f", without a classifier: it gets a new, untrained one for {info.num_classes} classes"
    return Converted(weights, info, origin)


def read_ours(path: str, averaged: bool) -> Converted:
    """Read one of this project's own checkpoints."""
    checkpoint = read_checkpoint(path)
    if averaged and checkpoint.ema:
        return Converted(checkpoint.ema, checkpoint.info, "a checkpoint of this project, averaged weights")
    return Converted(checkpoint.weights, checkpoint.info, "a checkpoint of this project")


def count_classes(weights: Weights, path: str, parameters: Config) -> int:
    """The classes of the file's classifier, or of the flag where the file has none.

    Raises:
        UsageError: if the two contradict each other.
    """
    if CLASSIFIER[0] not in weights:
        return parameters.class_num
    classes = weights[CLASSIFIER[0]].shape[0] if weights[CLASSIFIER[0]].ndim else 0
    if "class_num" in parameters.given and parameters.class_num != classes:
        raise UsageError(
            f"--class_num is {parameters.class_num}, but the classifier in {path} has {classes}; leave the flag out, "
            "training on other classes replaces the classifier by itself"
        )
    return classes


def describe_source(path, texts, variant, layout, architecture, num_classes) -> Tuple[ModelInfo, str]:
    """What the weights expect: from the file's own text, from timm's config.json beside it, else from the table.

    Args:
        path: the file.
        texts: the texts within it.
        variant, layout, num_classes: what its tensors say.
        architecture: timm's name of the model as the user gave it, or None.

    Returns:
        The description and a sentence on the source.
    """
    if INFO_TEXT in texts:
        info = ModelInfo.from_json(texts[INFO_TEXT], path)
        if info.variant != variant or info.num_classes != num_classes:
            raise RunError(
                f"{path}: it says that it is {info.variant} with {info.num_classes} classes, but its tensors are those "
                f"of {variant} with {num_classes}"
            )
        return info, f"{layout.title}'s names, written by this project"
    if layout is not LAYOUTS["timm"]:
        if architecture:
            raise UsageError(f"--architecture is for timm's weights, but {path} has {layout.title}'s names")
        source = next(source for source in SOURCES.values() if source.layout is layout)
        return source.describe(variant, num_classes), source.title
    settings = read_timm_config(path)
    name = architecture or settings.get("architecture") or name_from_path(path)
    if name is None:
        raise UsageError(
            f"{path}: timm's efficientnet_{variant} and tf_efficientnet_{variant} have the same tensors but pad "
            f"differently; say which it is with --architecture"
        )
    match = ARCHITECTURE.match(name)
    if (architecture or settings) and match[2] != variant:
        where = "--architecture is" if architecture else f"{config_path(path)} says"
        raise RunError(f"{where} {name}, but the tensors in {path} are those of {variant}")
    source = SOURCES["timm_tf" if match[1] else "timm"]
    info = source.describe(variant, num_classes)
    if settings:
        info = dataclasses.replace(info, preprocess=timm_preprocess(settings, info.preprocess, config_path(path)))
    return info, f"timm's {match[0]}"


def name_from_path(path: str) -> Optional[str]:
    """timm's name of a model within a file's name, or within that of a folder of the hub's cache."""
    folders = [part for part in os.path.abspath(path).split(os.sep)[:-1] if part.startswith("models--timm--")]
    for part in [os.path.basename(path)] + folders[::-1]:
        match = ARCHITECTURE.search(part)
        if match:
            return match[0]
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
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise RunError(f"{source}: its settings of the images are broken ({error!r})") from None


def override(info: ModelInfo, parameters: Config) -> ModelInfo:
    """Put flags in the place of the source's image settings; a new size keeps the source's crop ratio."""
    given, before = parameters.given, info.preprocess
    settings = {name: getattr(parameters, name) for name in ("interpolation", "mean", "std") if name in given}
    if "image_size" in given or "crop_ratio" in given:
        size = parameters.image_size if "image_size" in given else before.image_size
        ratio = parameters.crop_ratio if "crop_ratio" in given else before.image_size / before.resize
        after = Preprocess.for_image_size(size, ratio)
        settings.update({"image_size": after.image_size, "resize": after.resize})
    return dataclasses.replace(info, preprocess=dataclasses.replace(before, **settings)) if settings else info


def new_classifier(info: ModelInfo) -> Weights:
    """A classifier as a new network starts with, the same every time."""
    width = scale_channels(HEAD_CHANNELS, VARIANTS[info.variant].width_coeff)
    bound = 1 / math.sqrt(info.num_classes)
    weight = np.random.default_rng(1).uniform(-bound, bound, (info.num_classes, width))
    return dict(zip(CLASSIFIER, (weight.astype(np.float32), np.zeros(info.num_classes, np.float32))))


def write_theirs(path: str, project: str, converted: Converted) -> str:
    """Write weights under another project's names.

    Returns:
        str, the call with which that project builds the network that computes the same.
    """
    info = converted.info
    tensors = to_theirs(LAYOUTS[project], info.variant, converted.weights)
    # PyTorch's loaders look for "format".
    write_safetensors(path, tensors, {"format": "pt", INFO_TEXT: info.to_json()})
    return peer_call(info, project)


def peer_call(info: ModelInfo, project: str) -> str:
    """How the other project builds the network of these weights; says so where it cannot."""
    member = list(VARIANTS).index(info.variant)
    source = SOURCES["torchvision"]
    if project == "timm":
        source = SOURCES["timm_tf" if info.padding == "same" else "timm"]
    prefix = "tf_" if source is SOURCES["timm_tf"] else ""
    settings: Dict[str, str] = {"num_classes": str(info.num_classes)}
    if source.norm_eps[member] != info.norm_eps:
        eps = f"{info.norm_eps:g}"
        name, value = (
            ("bn_eps", eps) if project == "timm" else ("norm_layer", f"partial(torch.nn.BatchNorm2d, eps={eps})")
        )
        settings[name] = value
    if source.padding != info.padding:
        print(
            f"warning: torchvision pads symmetrically, but these weights were trained with padding {info.padding}; it "
            "loads them and computes something else, timm computes the same",
            file=sys.stderr,
        )
    listed = ", ".join(f"{name}={value}" for name, value in settings.items())
    if project == "timm":
        return f"timm.create_model('{prefix}efficientnet_{info.variant}', {listed})"
    return f"torchvision.models.efficientnet_{info.variant}({listed})"
