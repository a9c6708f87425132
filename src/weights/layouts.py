"""How other projects name the parameters of an EfficientNet: one `Layout` for each project."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Callable

TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
MINDSPORE_NORM = {name: name for name in TORCH_NORM}
Block = Callable[[int, int, bool], dict[str, str]]


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
        unused: a pattern of entries that the network does not compute with.
    """

    title: str
    mark: str
    stem: tuple[str, str]
    head: tuple[str, str]
    classifier: str
    block: Block
    norm: Mapping[str, str]
    unused: str


def timm_block(stage: int, repeat: int, expands: bool) -> dict[str, str]:
    """timm's parts: in the first stage `conv_pw` is the projection, elsewhere the expansion."""
    parts = (
        ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        if expands
        else (None, None, "conv_dw", "bn1", "conv_pw", "bn2")
    )
    return name_parts(f"blocks.{stage}.{repeat}", parts, "se.conv_reduce", "se.conv_expand")


def torchvision_block(stage: int, repeat: int, expands: bool) -> dict[str, str]:
    """torchvision's parts are numbered in order, so a block without expansion starts one lower."""
    first = 0 if expands else -1
    parts = tuple(f"{first + i}.{j}" for i in (0, 1, 3) for j in (0, 1))
    return name_parts(f"features.{stage + 1}.{repeat}.block", parts, f"{first + 2}.fc1", f"{first + 2}.fc2")


def zoo_block(stage: int, repeat: int, expands: bool) -> dict[str, str]:
    """The MindSpore model zoo's parts."""
    parts = tuple(f"{name}_conv.{j}" for name in ("expand", "depth_wise", "project") for j in (0, 1))
    return name_parts(f"blocks.{stage}.layers.{repeat}", parts, "se.se.1", "se.se.3")


def mindcv_block(stage: int, repeat: int, expands: bool) -> dict[str, str]:
    """MindCV's parts are numbered in order, activations counted."""
    first = 0 if expands else -3
    parts = tuple(str(first + i) for i in (0, 1, 3, 4, 7, 8))
    squeeze = f"{first + 6}.conv_"
    return name_parts(f"features.{stage + 3}.{repeat}.block", parts, squeeze + "reduce", squeeze + "expand")


def name_parts(prefix: str, parts: tuple, reduce: str, expand: str) -> dict[str, str]:
    """Our names of a block's parts to theirs, which come as convolution and norm of expand, depthwise, project."""
    ours = [f"{part}.{kind}" for part in ("expand", "depthwise", "project") for kind in ("conv", "norm")]
    names = dict(zip(ours, parts))
    names.update({"se.reduce": reduce, "se.expand": expand})
    return {our: f"{prefix}.{their}" for our, their in names.items()}


TRAINING_ENTRIES = (
    # Scalars, and MindSpore's optimiser states, which are named after the weight that they belong to.
    r"(learning_rate|global_step|epoch_num|step_num|batch_num|momentum|decay|loss_scale|scale_sense|current_iterator_step"
    r"|last_overflow_iterator_step|cur_epoch_num|cur_step_num|beta[12]_power|random_step)"
    r"|(mean_square|mean_grad|moments?|moment[12]|vhat|accum|accum_update|stat|exp_avg|prev|step_size|(adam|lamb)_[mv]"
    r"|accu_grads|grad_accum)\..+"
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
        unused="n_averaged",
    ),
    "torchvision": Layout(
        title="torchvision",
        mark=r"features\.0\.0\.weight",
        stem=("features.0.0", "features.0.1"),
        head=("features.8.0", "features.8.1"),
        classifier="classifier.1",
        block=torchvision_block,
        norm=TORCH_NORM,
        unused="n_averaged",
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


def recognise(names) -> Layout | None:
    """The layout whose stem is among the names, or None."""
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    return None
