"""Weights of any known project to ours: what a file is, what it expects, and the same under another project's names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from src.common.cli import RunError, UsageError
from src.config import Config
from src.images.preprocess import Preprocess
from src.models.family import HEAD_CHANNELS, VARIANTS, classifier_bound, scale_channels
from src.weights.checkpoint import INFO_ENTRY, read_checkpoint, read_entries, write_checkpoint
from src.weights.layouts import LAYOUTS
from src.weights.model_info import ModelInfo
from src.weights.names import CLASSIFIER, COUNTERS, Translated, Weights, to_ours, to_theirs
from src.weights.sources import SOURCES, Source, source_of
from src.weights.timm_settings import describe_timm
from src.weights.torch_files import read_pth, read_safetensors, without_wrapper, write_safetensors

INFO_TEXT = "efficientnet"
"""The entry of a .safetensors file in which we describe the model."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights under our names.

    Attributes:
        weights: our names to float32 arrays, all parameters of the network.
        info: what they expect.
        origin: a phrase on where they came from.
        counters: see `weights.COUNTERS`; None where they are not known.
        left_out: the source's names of entries that the network does not compute with.
    """

    weights: Weights
    info: ModelInfo
    origin: str
    counters: np.ndarray | None = None
    left_out: Sequence[str] = ()


def read_source(path: str, architecture: str | None, averaged: bool, parameters: Config) -> Converted:
    """Read a weight file of any known project and translate it.

    Args:
        path: the file.
        architecture: timm's name of the network as the user gave it, or None.
        averaged: take averaged weights where the file has them.
        parameters: the flags.

    Raises:
        RunError: if it cannot be read or is none of these networks.
        UsageError: if what it is cannot be told from the file and the flags, or they contradict each other.
    """
    if not os.path.isfile(path):
        raise RunError(f"{path}: there is no such file")
    texts, name = {}, None
    if path.endswith(".safetensors"):
        entries, texts = read_safetensors(path)
    elif path.endswith((".pth", ".pt", ".bin", ".tar")):
        entries, name = read_pth(path, averaged)
    elif path.endswith(".ckpt"):
        entries = read_entries(path)
        if INFO_ENTRY in entries:
            return read_ours(path, architecture, averaged, parameters)
    else:
        raise UsageError(f"--source {path}: the name of a weight file ends in .safetensors, .pth, .pt, .bin or .ckpt")
    translated = to_ours(without_wrapper(entries, path), path)
    num_classes = count_classes(translated.num_classes, path, parameters)
    info, origin = describe_source(path, texts, translated, num_classes, architecture, name)
    weights = translated.weights
    if translated.num_classes is None:
        weights = {**weights, **new_classifier(info)}
        info = dataclasses.replace(info, class_names=None)
        origin += f", without a classifier: it gets a new, untrained one for {num_classes} classes"
    return Converted(weights, info, origin, translated.counters, translated.left_out)


def read_ours(path: str, architecture: str | None, averaged: bool, parameters: Config) -> Converted:
    """Read one of this project's own checkpoints."""
    if architecture:
        raise UsageError(f"--architecture is for timm's weights, but {path} is a checkpoint of this project")
    checkpoint = read_checkpoint(path)
    count_classes(checkpoint.info.num_classes, path, parameters)
    origin, weights = "a checkpoint of this project", checkpoint.weights
    if averaged and checkpoint.ema:
        origin, weights = f"{origin}, averaged weights", checkpoint.ema
    return Converted(weights, checkpoint.info, origin, checkpoint.training.get(COUNTERS))


def count_classes(classes: int | None, path: str, parameters: Config) -> int:
    """The classes of the file's classifier, or of the flag where the file has none.

    Raises:
        UsageError: if the two contradict each other.
    """
    if classes is None:
        return parameters.class_num
    if "class_num" in parameters.given and parameters.class_num != classes:
        raise UsageError(
            f"--class_num is {parameters.class_num}, but the classifier in {path} has {classes}; leave the flag out, "
            "training on other classes replaces the classifier by itself"
        )
    return classes


def describe_source(
    path: str,
    texts: Mapping[str, str],
    translated: Translated,
    num_classes: int,
    architecture: str | None,
    name: str | None,
) -> tuple[ModelInfo, str]:
    """What the weights expect: from the file's own text, from timm's config.json beside it, else from the table.

    Args:
        path: the file.
        texts: the texts within it.
        translated, num_classes: what its tensors say.
        architecture, name: timm's name of the network as the user gave it and as the file has it, or None.

    Returns:
        The description and a phrase on the source.
    """
    variant, layout = translated.variant, translated.layout
    if INFO_TEXT in texts:
        info = ModelInfo.from_json(texts[INFO_TEXT], path)
        if info.variant != variant or info.num_classes != num_classes:
            raise RunError(
                f"{path}: it says that it is {info.variant} with {info.num_classes} classes, but its tensors are those "
                f"of {variant} with {num_classes}"
            )
        return info, f"{layout.title}'s names, written by this project"
    if layout is LAYOUTS["timm"]:
        return describe_timm(path, variant, num_classes, architecture, name)
    if architecture:
        raise UsageError(f"--architecture is for timm's weights, but {path} has {layout.title}'s names")
    source = source_of(layout)
    return source.describe(variant, num_classes, os.path.basename(path)), source.title


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
    bound = classifier_bound(info.num_classes)
    weight = np.random.default_rng(1).uniform(-bound, bound, (info.num_classes, width))
    return dict(zip(CLASSIFIER, (weight.astype(np.float32), np.zeros(info.num_classes, np.float32))))


def write_ours(path: str, converted: Converted) -> None:
    """Write a checkpoint of this project."""
    counters = None if converted.counters is None else {COUNTERS: converted.counters}
    write_checkpoint(path, converted.weights, converted.info, training=counters)


def write_theirs(path: str, project: str, converted: Converted) -> None:
    """Write weights under another project's names."""
    info = converted.info
    tensors = to_theirs(LAYOUTS[project], info.variant, converted.weights, converted.counters)
    # PyTorch's loaders look for "format".
    write_safetensors(path, tensors, {"format": "pt", INFO_TEXT: info.to_json()})


def peer_call(info: ModelInfo, project: str) -> str:
    """Python lines with which the other project builds the network of these weights."""
    source = peer_source(info, project)
    eps = repr(info.norm_eps)
    differs = source.norm_eps[list(VARIANTS).index(info.variant)] != info.norm_eps
    if project == "timm":
        prefix = "tf_" if source is SOURCES["timm_tf"] else ""
        bn_eps = f", bn_eps={eps}" if differs else ""
        return (
            f"model = timm.create_model('{prefix}efficientnet_{info.variant}', num_classes={info.num_classes}{bn_eps})"
        )
    lines = [f"model = torchvision.models.efficientnet_{info.variant}(num_classes={info.num_classes})"]
    if differs:
        # Its functions for B5 to B7 take no other epsilon.
        lines.append(f"for norm in (part for part in model.modules() if hasattr(part, 'eps')): norm.eps = {eps}")
    return "\n".join(lines)


def peer_source(info: ModelInfo, project: str) -> Source:
    """The source whose network comes nearest to that of the weights."""
    if project == "timm":
        return SOURCES["timm_tf" if info.padding == "same" else "timm"]
    return SOURCES[project]
