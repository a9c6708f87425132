"""How other projects name the parameters of an EfficientNet: one `Layout` for each project."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Callable

from src.models.family import Block

TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """One project's names.

    Attributes:
        title: the project, as a sentence would call it.
        mark: a pattern of the stem's name, which no other layout has.
        stem, head: names of the convolution and of its norm.
        classifier: name of the dense layer.
        block: gives the names of a block's parts, ours to theirs; those of parts that the block lacks mean nothing.
        unused: a pattern of the entries that the network does not compute with.
        norm: our names within a batch norm to theirs, where these differ.
    """

    title: str
    mark: str
    stem: tuple[str, str]
    head: tuple[str, str]
    classifier: str
    block: Callable[[Block], dict[str, str]]
    unused: str
    norm: Mapping[str, str] = dataclasses.field(default_factory=dict)


def timm_block(block: Block) -> dict[str, str]:
    """timm's parts: `conv_pw` is the expansion, or the projection in a block that does not expand."""
    parts = (
        ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        if block.expands
        else (None, None, "conv_dw", "bn1", "conv_pw", "bn2")
    )
    return name_parts(f"blocks.{block.stage}.{block.repeat}", parts, "se.conv_reduce", "se.conv_expand")


def torchvision_block(block: Block) -> dict[str, str]:
    """torchvision's parts are numbered in order, so a block without expansion starts one lower."""
    first = 0 if block.expands else -1
    parts = tuple(f"{first + i}.{j}" for i in (0, 1, 3) for j in (0, 1))
    prefix = f"features.{block.stage + 1}.{block.repeat}.block"
    return name_parts(prefix, parts, f"{first + 2}.fc1", f"{first + 2}.fc2")


def zoo_block(block: Block) -> dict[str, str]:
    """The MindSpore model zoo's parts."""
    parts = tuple(f"{name}_conv.{j}" for name in ("expand", "depth_wise", "project") for j in (0, 1))
    return name_parts(f"blocks.{block.stage}.layers.{block.repeat}", parts, "se.se.1", "se.se.3")


def mindcv_block(block: Block) -> dict[str, str]:
    """MindCV's parts are numbered in order, activations counted."""
    first = 0 if block.expands else -3
    parts = tuple(str(first + i) for i in (0, 1, 3, 4, 7, 8))
    squeeze = f"{first + 6}.conv_"
    prefix = f"features.{block.stage + 3}.{block.repeat}.block"
    return name_parts(prefix, parts, squeeze + "reduce", squeeze + "expand")


def efficientnet_pytorch_block(block: Block) -> dict[str, str]:
    """EfficientNet-PyTorch's parts: flat, blocks are counted through all stages."""
    parts = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    return name_parts(f"_blocks.{block.number}", parts, "_se_reduce", "_se_expand")


def name_parts(prefix: str, parts: tuple, reduce: str, expand: str) -> dict[str, str]:
    """Our names of a block's parts to theirs.

    Args:
        prefix: of all their names.
        parts: their names of convolution and norm of the expansion, of the depthwise part and of the projection.
        reduce, expand: their names of squeeze-and-excitation's two convolutions.
    """
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
        unused="n_averaged",
        norm=TORCH_NORM,
    ),
    "torchvision": Layout(
        title="torchvision",
        mark=r"features\.0\.0\.weight",
        stem=("features.0.0", "features.0.1"),
        head=("features.8.0", "features.8.1"),
        classifier="classifier.1",
        block=torchvision_block,
        unused="n_averaged",
        norm=TORCH_NORM,
    ),
    "efficientnet_pytorch": Layout(
        title="EfficientNet-PyTorch",
        mark=r"_conv_stem\.weight",
        stem=("_conv_stem", "_bn0"),
        head=("_conv_head", "_bn1"),
        classifier="_fc",
        block=efficientnet_pytorch_block,
        unused="n_averaged",
        norm=TORCH_NORM,
    ),
    "zoo": Layout(
        title="the MindSpore model zoo",
        mark=r"stem\.0\.weight",
        stem=("stem.0", "stem.1"),
        head=("head.0", "head.1"),
        classifier="head.6",
        block=zoo_block,
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
        unused=TRAINING_ENTRIES,
    ),
}


def recognise(names: Iterable[str]) -> Layout | None:
    """The layout whose stem is among the names, or None."""
    for layout in LAYOUTS.values():
        if any(re.fullmatch(layout.mark, name) for name in names):
            return layout
    return None
