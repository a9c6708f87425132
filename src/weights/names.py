"""Names and shapes of a network's parameters, and the same parameters under other projects' names. NumPy only.

`to_ours` finds a file's layout from the names alone and translates, `to_theirs` translates back. Arrays have the same
shapes everywhere, so no value is ever changed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from src.common.cli import RunError, printable
from src.models.family import VARIANTS, Architecture
from src.weights.layouts import LAYOUTS, Layout, recognise

Weights = dict[str, np.ndarray]

NORM_PARTS = ("moving_mean", "moving_variance", "gamma", "beta")
"""Of a batch norm, in the order in which MindSpore's holds them."""

CLASSIFIER = ("classifier.weight", "classifier.bias")

COUNTERS = "num_batches_tracked"
"""How many batches each of PyTorch's batch norms has seen. No network computes with it; it is kept for the way back."""


def parameter_shapes(architecture: Architecture, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's parameters in their own order, batch-norm statistics included.

    The position in the random numbers is none of them: it is no weight.
    """
    shapes = {}

    def add_layer(name: str, out_channels: int, in_channels: int, kernel_size: int = 1) -> None:
        shapes[f"{name}.conv.weight"] = (out_channels, in_channels, kernel_size, kernel_size)
        shapes.update({f"{name}.norm.{part}": (out_channels,) for part in NORM_PARTS})

    add_layer("stem", architecture.stem_width, 3, 3)
    for number, block in enumerate(architecture.blocks):
        prefix, hidden, squeezed = f"blocks.{number}", block.hidden_channels, block.squeezed_channels
        if block.expands:
            add_layer(f"{prefix}.expand", hidden, block.in_channels)
        add_layer(f"{prefix}.depthwise", hidden, 1, block.kernel_size)
        if squeezed:
            for part, out_channels, in_channels in (("reduce", squeezed, hidden), ("expand", hidden, squeezed)):
                shapes[f"{prefix}.se.{part}.weight"] = (out_channels, in_channels, 1, 1)
                shapes[f"{prefix}.se.{part}.bias"] = (out_channels,)
        add_layer(f"{prefix}.project", block.out_channels, hidden)
    add_layer("head", architecture.head_width, architecture.blocks[-1].out_channels)
    shapes.update(zip(CLASSIFIER, ((num_classes, architecture.head_width), (num_classes,))))
    return shapes


def parameter_names(layout: Layout, architecture: Architecture) -> dict[str, str]:
    """Our names of a network's parameters to the layout's, in the order of `parameter_shapes`."""
    modules = {"stem.conv": layout.stem[0], "stem.norm": layout.stem[1]}
    for number, block in enumerate(architecture.blocks):
        modules.update({f"blocks.{number}.{our}": their for our, their in layout.block(block).items()})
    modules.update({"head.conv": layout.head[0], "head.norm": layout.head[1], "classifier": layout.classifier})
    names = {}
    for our in parameter_shapes(architecture, 1):
        module, _, part = our.rpartition(".")
        names[our] = f"{modules[module]}.{layout.norm.get(part, part)}"
    return names


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A weight file of another project, as it was read.

    Attributes:
        path: the file.
        entries: its names to arrays.
        texts: the texts within it.
        timm_name: that of the network, where the file says it.
    """

    path: str
    entries: Weights
    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    timm_name: str | None = None


@dataclasses.dataclass(frozen=True)
class Translated:
    """Another project's weights under our names.

    Attributes:
        layout: whose they were.
        variant: the member of the family, a key of `VARIANTS`.
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


def find_architecture(layout: Layout, entries: Weights, source: str) -> Architecture:
    """The member of the family whose weights these are: by the width of its head, then by its blocks.

    Raises:
        RunError: if no member has a head of this width.
    """
    head = entries.get(f"{layout.head[0]}.weight")
    width = head.shape[0] if np.ndim(head) == 4 else None
    fitting = [row for row in VARIANTS.values() if row.head_width == width]
    if not fitting:
        found = "no head" if width is None else f"a head of {width} channels"
        raise RunError(
            f"{source}: it has {layout.title}'s names and {found}; it is none of EfficientNet {describe_family()}"
        )
    fitting = [row for row in fitting if has_its_gates(layout, entries, row)] or fitting
    # Of several, the deepest whose last blocks exist; with none complete the first names what is missing.
    fitting = [row for row in fitting if has_last_blocks(layout, entries, row)] or fitting[:1]
    fitting = [row for row in fitting if has_its_widths(layout, entries, row)] or fitting
    return fitting[-1]


def has_its_gates(layout: Layout, entries: Weights, architecture: Architecture) -> bool:
    """Whether there is squeeze-and-excitation exactly where the member has it."""
    found = any(f"{layout.block(block)['se.reduce']}.weight" in entries for block in architecture.blocks)
    return found == (architecture.squeeze_ratio > 0)


def has_last_blocks(layout: Layout, entries: Weights, architecture: Architecture) -> bool:
    """Whether every stage is at least as deep as the member's."""
    last = {block.stage: block for block in architecture.blocks}.values()
    return all(f"{layout.block(block)['depthwise.conv']}.weight" in entries for block in last)


def has_its_widths(layout: Layout, entries: Weights, architecture: Architecture) -> bool:
    """Whether every block of the member has its number of output channels."""
    found = [entries.get(f"{layout.block(block)['project.conv']}.weight") for block in architecture.blocks]
    return [np.shape(weight)[:1] for weight in found] == [(block.out_channels,) for block in architecture.blocks]


def describe_family() -> str:
    """The members for a sentence: `B0 to B7`."""
    series = {}
    for name in VARIANTS:
        series.setdefault(name.rstrip("0123456789"), []).append(name.capitalize())
    return " or ".join(f"{names[0]} to {names[-1]}" for names in series.values())


def list_projects() -> str:
    """The projects whose names are known, for a sentence."""
    *titles, last = (layout.title for layout in LAYOUTS.values())
    return f"{', '.join(titles)} or {last}"


def to_ours(entries: Weights, source: str) -> Translated:
    """Find out which network a file's entries are the weights of, and give each of them our name.

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
            f"{source}: it is no EfficientNet of {list_projects()}; its names are like "
            f"{next(iter(entries), 'none at all')}"
        )
    architecture = find_architecture(layout, entries, source)
    reading = f"{source}: read as {layout.title}'s {architecture.title},"
    names = parameter_names(layout, architecture)
    counters = counter_names(names)
    used = {*names.values(), *counters}
    left_out = [name for name in entries if name not in used]
    left_over = [name for name in left_out if not re.fullmatch(layout.unused, name)]
    if left_over:
        raise RunError(f"{reading} {count_entries(left_over)} would be left over: {list_names(left_over)}")
    if not any(names[our] in entries for our in CLASSIFIER):
        names = {our: their for our, their in names.items() if our not in CLASSIFIER}
    missing = [their for their in names.values() if their not in entries]
    if missing:
        raise RunError(f"{reading} {count_entries(missing)} missing: {list_names(missing)}")
    weights = {our: as_float32(entries[their], their, source) for our, their in names.items()}
    return Translated(
        layout=layout,
        variant=architecture.name,
        weights=weights,
        counters=read_counters(entries, counters, source),
        left_out=left_out,
    )


def to_theirs(layout: Layout, variant: str, weights: Weights, counters: np.ndarray | None = None) -> Weights:
    """Rename our parameters to a layout's.

    Args:
        layout, variant, weights, counters: as in `Translated`; counters that are not known are 0.
    """
    names = parameter_names(layout, VARIANTS[variant])
    entries = {names[our]: value for our, value in weights.items()}
    theirs = counter_names(names)
    values = np.zeros(len(theirs), np.int64) if counters is None else counters
    entries.update(zip(theirs, (np.asarray(value, np.int64) for value in values)))
    return entries


def counter_names(names: dict[str, str]) -> list[str]:
    """The names of the `COUNTERS`, in the order of the batch norms; empty for layouts that are not PyTorch's."""
    ending = "running_mean"
    return [their[: -len(ending)] + COUNTERS for their in names.values() if their.endswith(f".{ending}")]


def read_counters(entries: Weights, names: list[str], source: str) -> np.ndarray | None:
    """The counters in the order of `names`, 0 where one is missing; None where all are.

    Raises:
        RunError: if one is not a whole number.
    """
    if not any(name in entries for name in names):
        return None
    values = [np.asarray(entries.get(name, 0)) for name in names]
    for name, value in zip(names, values):
        if value.dtype.kind not in "iu" or value.size != 1:
            raise RunError(f"{source}: {name} is not one whole number")
    return np.array([int(value) for value in values], np.int64)


def as_float32(value, name: str, source: str) -> np.ndarray:
    """An entry of any floating type as float32.

    Raises:
        RunError: if it holds something else, or numbers that are not finite in float32.
    """
    value = np.asarray(value)
    # ml_dtypes' bfloat16 is no subtype of np.floating, and reports kind 'V'.
    if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
        raise RunError(f"{source}: {name} holds {value.dtype} instead of floating-point numbers")
    with np.errstate(over="ignore"):
        value = np.ascontiguousarray(value, dtype=np.float32).reshape(value.shape)
    if not np.isfinite(value).all():
        raise RunError(f"{source}: {name} holds numbers that are not finite")
    return value


def count_entries(names: list[str]) -> str:
    """`1 entry`, `2 entries`."""
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"


def list_names(names: list[str], shown: int = 10) -> str:
    """The names for a sentence; only the first `shown` of more."""
    return ", ".join(map(printable, names[:shown])) + (
        f" and {len(names) - shown} others" if len(names) > shown else ""
    )
