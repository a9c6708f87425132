"""Parameter names of other projects' EfficientNets. NumPy only.

A layout is one project's way of naming the parameters. `to_ours` finds it from the names alone and translates,
`to_theirs` translates back. Arrays have the same shapes everywhere, so no value is ever changed.
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from src.common.cli import RunError
from src.models.family import HEAD_CHANNELS, STAGES, VARIANTS, scale_channels, scale_repeats
from src.weights.layouts import Layout, recognise

Weights = dict[str, np.ndarray]

CLASSIFIER = ("classifier.weight", "classifier.bias")

COUNTERS = "num_batches_tracked"
"""How many batches each of PyTorch's batch norms has seen. No network computes with it; it is kept for the way back."""


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
