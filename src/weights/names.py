"""Parameter names of other projects' EfficientNets. NumPy only.

A layout is one project's way of naming the parameters. `to_ours` finds it from the names alone and translates,
`to_theirs` translates back. Arrays have the same shapes everywhere, so no value is ever changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Callable

import numpy as np

from src.common.cli import RunError
from src.models.family import HEAD_CHANNELS, STAGES, VARIANTS, scale_channels, scale_repeats

Weights = dict[str, np.ndarray]
Block = Callable[[int, int, bool], dict[str, str]]

TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
MINDSPORE_NORM = {name: name for name in TORCH_NORM}

CLASSIFIER = ("classifier.weight", "classifier.bias")

COUNTERS = "num_batches_tracked"
"""How many batches each of PyTorch's batch norms has seen. No network computes with it; it is kept for the way back."""


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


def parameter_names(layout: Layout, variant: str) -> dict[str, str]:
    """Our parameter names of a variant to the layout's, in the order of our network's layers."""
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


def add_norm(names: dict[str, str], layout: Layout, ours: str, theirs: tuple[str, str]) -> None:
    """Add the names of a convolution and its norm."""
    names[f"{ours}.conv.weight"] = f"{theirs[0]}.weight"
    names.update({f"{ours}.norm.{our}": f"{theirs[1]}.{their}" for our, their in layout.norm.items()})


@dataclasses.dataclass(frozen=True)
class Translated:
    """Another project's weights under our names.

    Attributes:
        layout: whose they were.
        variant: "b0" to "b7".
        weights: our names to float32 arrays; without the classifier where the file has none.
        counters: int64, one per batch norm from stem to head, see `COUNTERS`; None where the file has none.
        left_out: their names of the entries that the network does not compute with.
    """

    layout: Layout
    variant: str
    weights: Weights
    counters: np.ndarray | None
    left_out: list[str]

    @property
    def num_classes(self) -> int | None:
        """The width of the classifier, None without one."""
        return int(self.weights[CLASSIFIER[1]].size) if CLASSIFIER[1] in self.weights else None


def find_variant(layout: Layout, entries: Weights, source: str) -> str:
    """The member of the family: by the width of its head, and B0 from B1 by the number of blocks.

    Raises:
        RunError: if no member has these sizes.
    """
    head = entries.get(f"{layout.head[0]}.weight")
    width = head.shape[0] if np.ndim(head) == 4 else None
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


def to_ours(entries: Weights, source: str) -> Translated:
    """Recognise a file's entries and rename them to our parameters, each exactly once.

    Args:
        entries: their names to arrays.
        source: the file, for the error's sentence.

    Raises:
        RunError: if they are none of these networks, a parameter is missing or an entry is left over; the sentence
            names it.
    """
    layout = recognise(entries)
    if layout is None:
        raise RunError(
            f"{source}: it is no EfficientNet of timm, torchvision, the model zoo or MindCV; its names are like "
            f"{next(iter(entries), 'none at all')}"
        )
    variant = find_variant(layout, entries, source)
    reading = f"{source}: read as {layout.title}'s EfficientNet-{variant.upper()},"
    names = parameter_names(layout, variant)
    counters = counter_names(names)
    used = {*names.values(), *counters}
    left_out = [name for name in entries if name not in used]
    left_over = [name for name in left_out if not re.fullmatch(layout.unused, name)]
    if left_over:
        raise RunError(f"{reading} {count(left_over)} would be left over: {list_names(left_over)}")
    if not any(names[our] in entries for our in CLASSIFIER):
        names = {our: their for our, their in names.items() if our not in CLASSIFIER}
    missing = [their for their in names.values() if their not in entries]
    if missing:
        raise RunError(f"{reading} {count(missing)} missing: {list_names(missing)}")
    weights = {our: as_float32(entries[their], their, source) for our, their in names.items()}
    return Translated(layout, variant, weights, read_counters(entries, counters, source), left_out)


def to_theirs(layout: Layout, variant: str, weights: Weights, counters: np.ndarray | None = None) -> Weights:
    """Rename our parameters to a layout's.

    Args:
        layout, variant, weights, counters: as in `Translated`; counters that are not known are 0.
    """
    names = parameter_names(layout, variant)
    entries = {names[our]: value for our, value in weights.items()}
    theirs = counter_names(names)
    values = np.zeros(len(theirs), np.int64) if counters is None else counters
    entries.update(zip(theirs, (np.asarray(value, np.int64) for value in values)))
    return entries


def counter_names(names: dict[str, str]) -> list[str]:
    """The names of PyTorch's `COUNTERS` beside those of the running means; empty for layouts that are not PyTorch's."""
    ending = "running_mean"
    return [their[: -len(ending)] + COUNTERS for their in names.values() if their.endswith(f".{ending}")]


def read_counters(entries: Weights, names: list[str], source: str) -> np.ndarray | None:
    """The counters in the order of `names`, 0 for one that is missing; None without any."""
    if not any(name in entries for name in names):
        return None
    values = [np.asarray(entries.get(name, 0)) for name in names]
    for name, value in zip(names, values):
        if value.dtype.kind not in "iu" or value.size != 1:
            raise RunError(f"{source}: {name} is not one whole number")
    return np.array([int(value) for value in values], np.int64)


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


def count(names: list[str]) -> str:
    """`1 entry`, `2 entries`."""
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"


def list_names(names: list[str], shown: int = 10) -> str:
    """The names for a sentence; of very many the first."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} others" if len(names) > shown else "")
