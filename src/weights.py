"""Parameter names of other projects' EfficientNets, and what their files leave unsaid. NumPy only.

A layout is one project's way of naming the parameters. `recognise` finds it from the names alone, `to_ours` and
`to_theirs` translate. Arrays have the same shapes everywhere, so no value is ever changed.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Callable, Dict, List, Mapping, Optional, Tuple

import numpy as np

from src.cli import RunError
from src.imagenet import class_names_for
from src.model_info import ModelInfo
from src.models.scaling import HEAD_CHANNELS, STAGES, VARIANTS, scale_channels, scale_repeats
from src.preprocess import Preprocess

Weights = Dict[str, np.ndarray]
Block = Callable[[int, int, bool], Dict[str, str]]

TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
MINDSPORE_NORM = {name: name for name in TORCH_NORM}

CLASSIFIER = ("classifier.weight", "classifier.bias")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        title: the project, as a sentence would call it.
        mark: a pattern of the stem's name, which no other layout has.
        stem, head: names of the convolution and of its norm.
        classifier: name of the dense layer.
        block: stage number, number within the stage and whether the block expands, to the names of its parts.
        norm: our four names within a batch norm to theirs.
        unused: a pattern of entries that the evaluated network does not use.
    """

    title: str
    mark: str
    stem: Tuple[str, str]
    head: Tuple[str, str]
    classifier: str
    block: Block
    norm: Mapping[str, str]
    unused: str


def timm_block(stage: int, repeat: int, expands: bool) -> Dict[str, str]:
    """timm's parts: in the first stage `conv_pw` is the projection, elsewhere the expansion."""
    parts = (
        ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        if expands
        else (None, None, "conv_dw", "bn1", "conv_pw", "bn2")
    )
    return name_parts(f"blocks.{stage}.{repeat}", parts, "se.conv_reduce", "se.conv_expand")


def torchvision_block(stage: int, repeat: int, expands: bool) -> Dict[str, str]:
    """torchvision's parts are numbered in order, so a block without expansion starts one lower."""
    first = 0 if expands else -1
    parts = tuple(f"{first + i}.{j}" for i in (0, 1, 3) for j in (0, 1))
    return name_parts(f"features.{stage + 1}.{repeat}.block", parts, f"{first + 2}.fc1", f"{first + 2}.fc2")


def zoo_block(stage: int, repeat: int, expands: bool) -> Dict[str, str]:
    """The MindSpore model zoo's parts."""
    parts = tuple(f"{name}_conv.{j}" for name in ("expand", "depth_wise", "project") for j in (0, 1))
    return name_parts(f"blocks.{stage}.layers.{repeat}", parts, "se.se.1", "se.se.3")


def mindcv_block(stage: int, repeat: int, expands: bool) -> Dict[str, str]:
    """MindCV's parts are numbered in order, activations counted."""
    first = 0 if expands else -3
    parts = tuple(str(first + i) for i in (0, 1, 3, 4, 7, 8))
    squeeze = f"{first + 6}.conv_"
    return name_parts(f"features.{stage + 3}.{repeat}.block", parts, squeeze + "reduce", squeeze + "expand")


def name_parts(prefix: str, parts: tuple, reduce: str, expand: str) -> Dict[str, str]:
    """Our names of a block's parts to theirs, which come as convolution and norm of expand, depthwise, project."""
    ours = [f"{part}.{kind}" for part in ("expand", "depthwise", "project") for kind in ("conv", "norm")]
    names = dict(zip(ours, parts))
    names.update({"se.reduce": reduce, "se.expand": expand})
    return {our: f"{prefix}.{their}" for our, their in names.items()}


TRAINING_ENTRIES = (
    # Scalars, and MindSpore's optimiser states, which are named after the weight that they belong to.
    r"(learning_rate|global_step|epoch_num|step_num|batch_num|momentum|decay|loss_scale|scale_sense|current_iterator_step"
    r"|last_overflow_iterator_step|cur_epoch_num|cur_step_num|beta[12]_power|random_step)"
    r"|(mean_square|mean_gradients?|moments?|moment[12]|accum|stat|adam_[mv]|grad_accum)\..+"
)

LAYOUTS = {
    "timm": Layout(
        title="timm",
        mark=r"conv_stem\.weight",
        stem=("conv_stem", "bn1"),
        head=("conv_head", "bn2"),
        classifier="classifier",
        block=timm_block,
        norm=TORCH_NORM,
        unused=r"(.+\.num_batches_tracked|n_averaged)",
    ),
    "torchvision": Layout(
        title="torchvision",
        mark=r"features\.0\.0\.weight",
        stem=("features.0.0", "features.0.1"),
        head=("features.8.0", "features.8.1"),
        classifier="classifier.1",
        block=torchvision_block,
        norm=TORCH_NORM,
        unused=r"(.+\.num_batches_tracked|n_averaged)",
    ),
    "zoo": Layout(
        title="the MindSpore model zoo",
        mark=r"stem\.0\.weight",
        stem=("stem.0", "stem.1"),
        head=("head.0", "head.1"),
        classifier="head.6",
        block=zoo_block,
        norm=MINDSPORE_NORM,
        # The published first stage carries an expansion that its network never calls.
        unused=rf"blocks\.0\.layers\.\d+\.expand_conv\..+|{TRAINING_ENTRIES}",
    ),
    "mindcv": Layout(
        title="MindCV",
        mark=r"features\.0\.weight",
        stem=("features.0", "features.1"),
        head=("features.10", "features.11"),
        classifier="mlp_head",
        block=mindcv_block,
        norm=MINDSPORE_NORM,
        unused=TRAINING_ENTRIES,
    ),
}


def recognise(names) -> Optional[Layout]:
    """The layout whose stem is among the names, or None."""
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    return None


def parameter_names(layout: Layout, variant: str) -> Dict[str, str]:
    """Our parameter names of a variant to the layout's, in our network's order."""
    names = {}
    add_norm(names, layout, "stem", layout.stem)
    number = 0
    for stage_number, stage in enumerate(STAGES):
        expands = stage.expand_ratio != 1
        for repeat in range(scale_repeats(stage.repeats, VARIANTS[variant].depth_coeff)):
            theirs = layout.block(stage_number, repeat, expands)
            for part in ("expand", "depthwise", "se", "project"):
                ours = f"blocks.{number}.{part}"
                if part == "se":
                    for gate in ("reduce", "expand"):
                        for kind in ("weight", "bias"):
                            names[f"{ours}.{gate}.{kind}"] = f"{theirs[f'se.{gate}']}.{kind}"
                elif expands or part != "expand":
                    add_norm(names, layout, ours, (theirs[f"{part}.conv"], theirs[f"{part}.norm"]))
            number += 1
    add_norm(names, layout, "head", layout.head)
    names.update({our: f"{layout.classifier}.{our.rpartition('.')[2]}" for our in CLASSIFIER})
    return names


def add_norm(names: Dict[str, str], layout: Layout, ours: str, theirs: Tuple[str, str]) -> None:
    """Add the names of a convolution and its norm."""
    names[f"{ours}.conv.weight"] = f"{theirs[0]}.weight"
    names.update({f"{ours}.norm.{our}": f"{theirs[1]}.{their}" for our, their in layout.norm.items()})


def find_variant(layout: Layout, entries: Weights, source: str) -> str:
    """The member of the family: by the width of its head, and B0 from B1 by the number of blocks.

    Raises:
        RunError: if no member has these sizes.
    """
    head = entries.get(f"{layout.head[0]}.weight")
    width = head.shape[0] if head is not None and head.ndim == 4 else None
    fitting = [
        name for name, variant in VARIANTS.items() if scale_channels(HEAD_CHANNELS, variant.width_coeff) == width
    ]
    if not fitting:
        found = "no head" if width is None else f"a head of {width} channels"
        raise RunError(f"{source}: it has {layout.title}'s names and {found}; it is none of EfficientNet B0 to B7")
    # Of several, the deepest whose last block exists; with none complete the first names what is missing.
    complete = [name for name in fitting if has_last_blocks(layout, entries, name)]
    return complete[-1] if complete else fitting[0]


def has_last_blocks(layout: Layout, entries: Weights, variant: str) -> bool:
    """Whether every stage is as deep as the variant's."""
    depth = VARIANTS[variant].depth_coeff
    last = (layout.block(i, scale_repeats(s.repeats, depth) - 1, s.expand_ratio != 1) for i, s in enumerate(STAGES))
    return all(f"{names['depthwise.conv']}.weight" in entries for names in last)


def to_ours(layout: Layout, variant: str, entries: Weights, source: str) -> Weights:
    """Rename a file's entries to our parameters, each exactly once.

    Args:
        entries: their names to arrays. A missing classifier is left missing.
        source: the file, for the error's sentence.

    Returns:
        dict, our names to the same arrays as float32.

    Raises:
        RunError: if a parameter is missing or an entry is left over; the sentence names it.
    """
    names = parameter_names(layout, variant)
    left_over = [name for name in entries if name not in set(names.values()) and not re.fullmatch(layout.unused, name)]
    if left_over:
        raise RunError(
            f"{source}: {count(len(left_over), 'entry', 'entries')} would be left over as {layout.title}'s "
            f"EfficientNet-{variant.upper()}, {list_names(left_over)}"
        )
    headless = not any(names[our] in entries for our in CLASSIFIER)
    wanted = {our: their for our, their in names.items() if not (headless and our in CLASSIFIER)}
    missing = [their for their in wanted.values() if their not in entries]
    if missing:
        raise RunError(
            f"{source}: {count(len(missing), 'entry is', 'entries are')} missing for {layout.title}'s EfficientNet-"
            f"{variant.upper()}, {list_names(missing)}"
        )
    return {our: as_float32(entries[their], their, source) for our, their in wanted.items()}


def to_theirs(layout: Layout, variant: str, weights: Weights) -> Weights:
    """Rename our parameters to a layout's; PyTorch's batch counters, which evaluation does not use, are 0."""
    names = parameter_names(layout, variant)
    entries = {names[our]: value for our, value in weights.items()}
    if layout.norm is TORCH_NORM:
        means = [name for name in entries if name.endswith(".running_mean")]
        entries.update({name[: -len("running_mean")] + "num_batches_tracked": np.int64(0) for name in means})
    return {name: np.asarray(value) for name, value in entries.items()}


def as_float32(value, name: str, source: str) -> np.ndarray:
    """An entry's numbers, from any floating type."""
    value = np.asarray(value)
    # ml_dtypes' bfloat16 is no subtype of np.floating, and reports kind 'V'.
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        raise RunError(f"{source}: {name} holds {value.dtype} instead of floating-point numbers")
    value = np.ascontiguousarray(value, dtype=np.float32).reshape(value.shape)
    if not np.isfinite(value).all():
        raise RunError(f"{source}: {name} holds numbers that are not finite")
    return value


def count(number: int, one: str, many: str) -> str:
    """`1 entry`, `2 entries`."""
    return f"{number} {one if number == 1 else many}"


def list_names(names: List[str], shown: int = 3) -> str:
    """The first few names, for a sentence."""
    return ", ".join(names[:shown]) + (" and others" if len(names) > shown else "")


@dataclasses.dataclass(frozen=True)
class Source:
    """A published family of weights: what its files leave unsaid.

    Attributes:
        title: the family, as a sentence would call it.
        layout: its names.
        padding: "same" or "symmetric".
        norm_eps: batch-norm epsilon of B0 to B7.
        images: for B0 to B7 the side of the network's input and the shorter side before the crop, in pixels.
        interpolation, mean, std: as in `Preprocess`, for those members that `special` does not name.
        special: member to further arguments of `Preprocess`.
    """

    title: str
    layout: Layout
    padding: str
    norm_eps: Tuple[float, ...]
    images: Tuple[Tuple[int, int], ...]
    interpolation: str = "bicubic"
    mean: Tuple[float, ...] = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std: Tuple[float, ...] = (0.229 * 255, 0.224 * 255, 0.225 * 255)
    special: Mapping[str, dict] = dataclasses.field(default_factory=dict)

    def describe(self, variant: str, num_classes: int) -> ModelInfo:
        """What weights of this source expect, if the file itself says no more than its names."""
        member = list(VARIANTS).index(variant)
        image_size, resize = self.images[member]
        settings = {"interpolation": self.interpolation, "mean": self.mean, "std": self.std}
        preprocess = Preprocess(image_size, resize, **{**settings, **self.special.get(variant, {})})
        names = class_names_for(num_classes)
        return ModelInfo(variant, num_classes, names, self.padding, self.norm_eps[member], preprocess)


HALF = (127.5, 127.5, 127.5)
SIZES = tuple(variant.image_size for variant in VARIANTS.values())
TF_CROPS = (0.875, 0.882, 0.890, 0.904, 0.922, 0.934, 0.942, 0.949)

SOURCES = {
    # timm's default weights of each member.
    "timm": Source(
        "timm's efficientnet_*",
        LAYOUTS["timm"],
        "symmetric",
        (1e-5,) * 8,
        ((224, 256), (240, 266), (256, 292), (288, 329), (320, 365), (448, 448), (528, 560), (600, 632)),
        special={"b1": {"mean": HALF, "std": HALF}},
    ),
    # Google's weights; timm rounds the shorter side down.
    "timm_tf": Source(
        "timm's tf_efficientnet_*",
        LAYOUTS["timm"],
        "same",
        (1e-3,) * 8,
        tuple((size, int(size / crop)) for size, crop in zip(SIZES, TF_CROPS)),
    ),
    "torchvision": Source(
        "torchvision",
        LAYOUTS["torchvision"],
        "symmetric",
        (1e-5,) * 5 + (1e-3,) * 3,
        ((224, 256), (240, 255), (288, 288), (300, 320), (380, 384), (456, 456), (528, 528), (600, 600)),
        special={"b1": {"interpolation": "bilinear"}},
    ),
    # The zoo's evaluation resizes to 255 for 224 pixels, with OpenCV's linear interpolation.
    "zoo": Source(
        "the MindSpore model zoo",
        LAYOUTS["zoo"],
        "same",
        (1e-3,) * 8,
        tuple((size, size * 255 // 224) for size in SIZES),
        "bilinear",
        HALF,
        HALF,
    ),
    "mindcv": Source(
        "MindCV",
        LAYOUTS["mindcv"],
        "same",
        (1e-5,) * 5 + (1e-3,) * 3,
        tuple((size, int(size / 0.875)) for size in SIZES),
    ),
}


def is_model_zoo(entries: Weights) -> bool:
    """Whether a checkpoint's entries have the model zoo's names."""
    return recognise(entries) is LAYOUTS["zoo"]


def from_model_zoo(entries: Weights, source: str) -> Tuple[Weights, ModelInfo]:
    """Understand a checkpoint that the model zoo published: the weights under our names, and what they expect.

    Args:
        entries: the checkpoint's names to arrays, optimiser states and the like among them.
        source: the file, for the error's sentence.

    Raises:
        RunError: if it is none of EfficientNet B0 to B7, or incomplete.
    """
    variant = find_variant(LAYOUTS["zoo"], entries, source)
    weights = to_ours(LAYOUTS["zoo"], variant, entries, source)
    if CLASSIFIER[0] not in weights:
        raise RunError(f"{source}: it has no classifier; convert_weights.py can give it a new one")
    return weights, SOURCES["zoo"].describe(variant, weights[CLASSIFIER[0]].shape[0])
