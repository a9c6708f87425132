"""The parameters as one value and as command-line flags; `config` has the defaults as attributes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from src.common.cli import UsageError, boolean, describe_os_error, nearest, printable
from src.images.preprocess import Preprocess
from src.parameters import FOUND, GONE, GROUPS, PARAMETERS


class Config:
    """The parameters as attributes.

    Attributes:
        given: names of the parameters that were set explicitly.
    """

    def __init__(self, **values):
        unknown = set(values) - set(PARAMETERS)
        if unknown:
            raise AttributeError(f"there is no parameter {sorted(unknown)[0]}")
        for parameter in PARAMETERS.values():
            setattr(self, parameter.name, values.get(parameter.name, parameter.default))
        self.given = frozenset(values)

    def as_dict(self) -> dict:
        """Name to value."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def part(self, kind: type, **others):
        """The small value that a room needs: a dataclass whose fields have parameters' names.

        Args:
            kind: the dataclass.
            others: fields that are no parameters, or have another value here.
        """
        names = [field.name for field in dataclasses.fields(kind) if field.name in PARAMETERS]
        return kind(**{**{name: getattr(self, name) for name in names}, **others})

    def to_json(self) -> str:
        """The resolved parameters as JSON text, for the file beside the checkpoints."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def replace(self, **values) -> Config:
        """A copy with other values; what was given stays given."""
        copy = Config(**{**self.as_dict(), **values})
        copy.given = self.given
        return copy

    @property
    def preprocess(self) -> Preprocess:
        """What evaluation does to an image."""
        return Preprocess.for_image_size(
            self.image_size, self.crop_ratio, interpolation=self.interpolation, mean=self.mean, std=self.std
        )

    def settled(self) -> Config:
        """A copy in which defaults that nobody gave have given way to what was given.

        Raises:
            UsageError: if values that were given contradict each other.
        """
        values = {}
        if self.warmup_epochs > self.epoch_size:
            values["warmup_epochs"] = self.epoch_size / 5
        values.update({name: self.lr_max for name in ("lr_init", "lr_end") if getattr(self, name) > self.lr_max})
        result = self.replace(**{name: value for name, value in values.items() if name not in self.given})
        result.check()
        return result

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            UsageError: with both names.
        """
        if self.warmup_epochs > self.epoch_size:
            raise UsageError(f"--warmup_epochs {self.warmup_epochs:g} is more than --epoch_size {self.epoch_size}")
        if self.lr_end > self.lr_max:
            raise UsageError(f"--lr_end {self.lr_end:g} is above --lr_max {self.lr_max:g}")
        if self.lr_init > self.lr_max:
            raise UsageError(f"--lr_init {self.lr_init:g} is above --lr_max {self.lr_max:g}")
        if min(self.std) <= 0:
            raise UsageError("--std must be above 0")

    def check_trained(self, trained: Mapping[str, Any], path: str, hint: str = "") -> None:
        """Refuse flags that contradict `trained`, the values of the checkpoint in `path`.

        Raises:
            UsageError: with both values, and at the end `hint`, what the user can do.
        """
        for name, before in trained.items():
            now = getattr(self, name)
            if name in self.given and now != before:
                raise UsageError(f"--{name} is {now}, but {path} was trained with {before}{hint}")


config = Config()
"""The defaults; scripts derive their own from flags."""


def add_parameters(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Give a parser a flag for each parameter, or for those named."""
    for title, group in GROUPS.items():
        wanted = [parameter for parameter in group if names is None or parameter.name in names]
        if not wanted:
            continue
        section = parser.add_argument_group(title)
        for parameter in wanted:
            shown = (
                "automatic" if parameter.name in FOUND else "none" if parameter.default is None else parameter.default
            )
            section.add_argument(
                f"--{parameter.name}",
                type=parameter.read,
                default=argparse.SUPPRESS,
                metavar=parameter.name.upper(),
                help=f"{parameter.help} (default: {shown})".replace("%", "%%"),
            )
    if names is None:
        for name in GONE:
            parser.add_argument(
                f"--{name}", action=GoneFlag, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )


class GoneFlag(argparse.Action):
    """A flag of an earlier version: using it is an error that says what became of it."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UsageError(f"{option_string} is gone: {GONE[self.dest]}")


def add_averaged_flag(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flag `--use_ema` of the scripts that read checkpoints; its destination is `averaged`.

    Training has a parameter of this name, which says whether an average is kept.
    """
    parser.add_argument(
        "--use_ema",
        dest="averaged",
        type=boolean,
        default=True,
        metavar="USE_EMA",
        help="take averaged weights where the file has them (default: True)",
    )


def take_parameters(arguments: argparse.Namespace) -> Config:
    """Move the parameters out of parsed arguments into a checked Config."""
    values = {name: value for name, value in vars(arguments).items() if name in PARAMETERS}
    for name in values:
        delattr(arguments, name)
    path = vars(arguments).pop("config", None)
    return Config(**{**(read_config_file(path) if path else {}), **values}).settled()


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flag `--config`, which `take_parameters` obeys."""
    parser.add_argument("--config", metavar="FILE", help="parameters in a YAML or JSON file; flags override them")


def read_config_file(path: str) -> dict[str, Any]:
    """The parameters in a YAML file, or in the config.json of a run; entries that are empty there count as left out.

    Raises:
        UsageError: if it is no such file, or an entry is unknown or has a value that its flag would refuse.
    """
    # Imported here: most runs have none, and inference does without.
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            entries = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"--config {describe_os_error(error)}") from None
    except Exception as error:
        # YAML's own errors, and all kinds of what is no date or number.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--config {path}: it is neither YAML nor JSON ({reason})") from None
    if not isinstance(entries, dict):
        raise UsageError(f"--config {path}: it holds no names of parameters with their values")
    values = {}
    for name, value in entries.items():
        if name in GONE:
            raise UsageError(f"--config {path}: {name} is gone: {GONE[name]}")
        if name not in PARAMETERS:
            near = nearest(str(name), list(PARAMETERS))
            hint = f"; did you mean {near}?" if near else ""
            raise UsageError(f"--config {path}: there is no parameter '{printable(str(name))}'{hint}")
        if value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, (list, tuple, dict, set)) for part in parts):
            # Which are never needed; a few lines may nest so many that their text fills the memory.
            raise UsageError(f"--config {path}: {name}: expected a value or a list of values")
        text = ",".join(map(str, parts))
        try:
            values[name] = PARAMETERS[name].read(text)
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise UsageError(f"--config {path}: {name}: {error}") from None
    return values
