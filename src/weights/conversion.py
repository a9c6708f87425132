"""Convert weights: read those of any known project with what they expect, and write them as ours or as another's."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from src.common.cli import RunError, UsageError
from src.common.files import unchanged
from src.images.preprocess import Preprocess
from src.models.family import VARIANTS, classifier_bound
from src.published.table import Published, find_published, is_published_name
from src.published.take import take
from src.weights.checkpoint import INFO_ENTRY, Checkpoint, read_checkpoint, read_entries, write_checkpoint
from src.weights.layouts import LAYOUTS
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.names import CLASSIFIER, COUNTERS, Translated, WeightFile, Weights, to_ours, to_theirs
from src.weights.sources import SOURCES, Source, source_of
from src.weights.timm_settings import ARCHITECTURE, describe_timm
from src.weights.torch_files import read_pth, read_safetensors, without_wrapper, write_safetensors

TARGETS = ("timm", "torchvision", "efficientnet_pytorch")
"""The projects whose names weights can be written under."""


@dataclasses.dataclass(frozen=True)
class Converted:
    """Weights under our names.

    Attributes:
        weights: our names to float32 arrays, all parameters of the network.
        info: what they expect.
        origin: a phrase on where they came from.
        counters: see `names.COUNTERS`; None where they are not known.
        left_out: the source's names of entries that the network does not compute with.
    """

    weights: Weights
    info: ModelInfo
    origin: str
    counters: np.ndarray | None = None
    left_out: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What the user wants in place of a model's own image settings; None keeps the model's.

    Attributes:
        image_size, interpolation, mean, std: as in `Preprocess`.
        crop_ratio: `image_size` by the shorter side after resizing.
    """

    image_size: int | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def read_source(source: str, architecture: str | None, averaged: bool, class_num: int | None) -> Converted:
    """Read weights of any known project and translate them.

    Args:
        source: the file, or the name of published weights.
        architecture: timm's name of the network as the user gave it, or None.
        averaged: take averaged weights where the file has them.
        class_num: the number of classes as the user gave it, or None.

    Raises:
        RunError: if it cannot be read or is none of these networks.
        UsageError: if what it is cannot be told from the file and the flags, or they contradict each other.
    """
    if is_published_name(source):
        if architecture:
            raise UsageError(f"--architecture is for files, but '{source}' is the name of published weights")
        return read_by_name(source, class_num)
    file = read_weight_file(source, averaged)
    if isinstance(file.entries.get(INFO_ENTRY), str):
        return read_ours(source, architecture, averaged, class_num)
    path = file.path
    translated = to_ours(without_wrapper(file.entries, path), path)
    num_classes = settle_class_count(translated.num_classes, path, class_num)
    info, origin = describe_source(file, architecture, translated, num_classes)
    weights = translated.weights
    if translated.num_classes is None:
        weights = {**weights, **new_classifier(info)}
        info = dataclasses.replace(info, class_names=None)
        origin += f", without a classifier: it gets a new, untrained one for {num_classes} classes"
    return Converted(
        weights=weights, info=info, origin=origin, counters=translated.counters, left_out=translated.left_out
    )


def read_weight_file(path: str, averaged: bool) -> WeightFile:
    """All entries of a weight file of any known format."""
    if not os.path.isfile(path):
        raise RunError(f"{path}: there is no such file")
    if path.endswith((".safetensors", ".pth", ".pt", ".bin", ".tar")):
        with unchanged(path):
            return read_safetensors(path) if path.endswith(".safetensors") else read_pth(path, averaged)
    if path.endswith(".ckpt"):
        return WeightFile(path, read_entries(path))
    raise UsageError(f"--source {path}: the name of a weight file ends in .safetensors, .pth, .pt, .bin or .ckpt")


def read_by_name(text: str, class_num: int | None = None) -> Converted:
    """Published weights by their name, from this machine or from the net; see `src.published.take`.

    Args:
        text: the name, as `find_published` takes it.
        class_num: the number of classes as the user gave it, or None.
    """
    row, _ = find_published(text)
    taken = take(text)
    translated = to_ours(without_wrapper(read_weight_file(taken.path, averaged=True).entries, taken.path), taken.path)
    settle_class_count(translated.num_classes, taken.path, class_num)
    info = dataclasses.replace(describe_published(row), origin=taken.origin)
    if (translated.variant, translated.num_classes) != (info.variant, info.num_classes):
        raise RunError(
            f"{taken.path}: its tensors are those of {translated.variant} with {translated.num_classes} classes, but "
            f"{row.name} is {info.variant} with {info.num_classes}"
        )
    return Converted(
        weights=translated.weights,
        info=info,
        origin=taken.origin.describe(),
        counters=translated.counters,
        left_out=translated.left_out,
    )


def describe_published(row: Published) -> ModelInfo:
    """What published weights expect; timm's settings also hold for the same weights in another project's file."""
    match = ARCHITECTURE.match(row.name)
    return SOURCES["timm_tf" if match[1] else "timm"].describe(match[2], row.classes, row.name)


def read_pretrained(source: str) -> Checkpoint:
    """What a run starts from: a checkpoint, or published weights by their name."""
    if not is_published_name(source):
        return read_checkpoint(source)
    read = read_by_name(source)
    return Checkpoint(path=source, info=read.info, weights=read.weights, ema=None, training={}, state={})


def read_ours(path: str, architecture: str | None, averaged: bool, class_num: int | None) -> Converted:
    """Read one of this project's own checkpoints."""
    if architecture:
        raise UsageError(f"--architecture is for timm's weights, but {path} is a checkpoint of this project")
    checkpoint = read_checkpoint(path)
    settle_class_count(checkpoint.info.num_classes, path, class_num)
    origin, weights = "a checkpoint of this project", checkpoint.weights
    if averaged and checkpoint.ema:
        origin, weights = f"{origin}, averaged weights", checkpoint.ema
    return Converted(weights, checkpoint.info, origin, checkpoint.training.get(COUNTERS))


def settle_class_count(found: int | None, path: str, given: int | None) -> int:
    """The number of classes: of the file's classifier; where it has none the user's, or else ImageNet's.

    Raises:
        UsageError: if the user's contradicts the file's.
    """
    if found is None:
        return ModelInfo.num_classes if given is None else given
    if given not in (None, found):
        raise UsageError(
            f"--class_num is {given}, but the classifier in {path} has {found}; leave the flag out, "
            "training on other classes replaces the classifier by itself"
        )
    return found


def describe_source(
    file: WeightFile, architecture: str | None, translated: Translated, num_classes: int
) -> tuple[ModelInfo, str]:
    """What the weights expect: from the file's own text, from timm's config.json beside it, else from the table.

    Args:
        file: the weights.
        architecture: timm's name of the network as the user gave it, or None.
        translated, num_classes: what the tensors say.

    Returns:
        The description and a phrase on the source.
    """
    path, variant, layout = file.path, translated.variant, translated.layout
    if METADATA_KEY in file.texts:
        info = ModelInfo.from_json(file.texts[METADATA_KEY], path)
        if info.variant != variant or info.num_classes != num_classes:
            raise RunError(
                f"{path}: it says that it is {info.variant} with {info.num_classes} classes, but its tensors are those "
                f"of {variant} with {num_classes}"
            )
        return info, f"{layout.title}'s names, written by this project"
    if layout is LAYOUTS["timm"]:
        return describe_timm(file, architecture, variant, num_classes)
    if architecture:
        raise UsageError(f"--architecture is for timm's weights, but {path} has {layout.title}'s names")
    source = source_of(layout)
    return source.describe(variant, num_classes, os.path.basename(path)), source.title


def override(info: ModelInfo, wanted: ImageSettings) -> ModelInfo:
    """Put what the user wants in the place of a model's image settings; a new size keeps the model's crop ratio."""
    before = info.preprocess
    settings = {name: getattr(wanted, name) for name in ("interpolation", "mean", "std")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if wanted.image_size is not None or wanted.crop_ratio is not None:
        size = before.image_size if wanted.image_size is None else wanted.image_size
        ratio = before.image_size / before.resize if wanted.crop_ratio is None else wanted.crop_ratio
        after = Preprocess.for_image_size(size, ratio)
        settings.update({"image_size": after.image_size, "resize": after.resize})
    return dataclasses.replace(info, preprocess=dataclasses.replace(before, **settings)) if settings else info


def new_classifier(info: ModelInfo) -> Weights:
    """A classifier like that of a new network, the same every time."""
    width = VARIANTS[info.variant].head_width
    bound = classifier_bound(info.num_classes)
    weight = np.random.default_rng(1).uniform(-bound, bound, (info.num_classes, width))
    return dict(zip(CLASSIFIER, (weight.astype(np.float32), np.zeros(info.num_classes, np.float32))))


def write_ours(path: str, converted: Converted) -> None:
    """Write converted weights as a checkpoint of this project."""
    counters = None if converted.counters is None else {COUNTERS: converted.counters}
    write_checkpoint(path, converted.weights, converted.info, training=counters)


def write_theirs(path: str, project: str, converted: Converted) -> None:
    """Write converted weights under another project's names, as .safetensors.

    Args:
        project: one of TARGETS.

    Raises:
        RunError: if the project has no such network.
    """
    info = converted.info
    if info.variant not in peer_source(info, project).members:
        raise RunError(f"{path}: {LAYOUTS[project].title} has no {VARIANTS[info.variant].title}")
    tensors = to_theirs(LAYOUTS[project], info.variant, converted.weights, converted.counters)
    # PyTorch's loaders look for "format".
    write_safetensors(path, tensors, {"format": "pt", METADATA_KEY: info.to_json()})


def peer_call(info: ModelInfo, project: str) -> str:
    """Python lines with which the other project builds the network of these weights."""
    source = peer_source(info, project)
    eps = repr(info.norm_eps)
    differs = source.members[info.variant].norm_eps != info.norm_eps
    if project == "timm":
        prefix = "tf_" if source is SOURCES["timm_tf"] else ""
        bn_eps = f", bn_eps={eps}" if differs else ""
        return (
            f"model = timm.create_model('{prefix}efficientnet_{info.variant}', num_classes={info.num_classes}{bn_eps})"
        )
    if project == "efficientnet_pytorch":
        package = "efficientnet_pytorch" if VARIANTS[info.variant].squeeze_ratio else "efficientnet_lite_pytorch"
        batch_norm_epsilon = f", batch_norm_epsilon={eps}" if differs else ""
        # Without an image size it pads images of any size like TensorFlow, with one those of that size.
        return (
            f"model = {package}.EfficientNet.from_name('efficientnet-{info.variant}', "
            f"num_classes={info.num_classes}, image_size=None{batch_norm_epsilon})"
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
