"""What was taken under a name, and this project's notes of it, by which a name means the same the next time."""

from __future__ import annotations

import dataclasses
import json
import os

from src.common.cli import RunError, printable
from src.common.files import atomic_write
from src.common.native import CompileError, cache_folder


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where published weights come from; it stays with the model made of them.

    Attributes:
        name: timm's name of the weights.
        place: the hub's repository or the Python package, as a sentence would call it.
        revision: the commit of the repository, or the version of the package.
        sha256: of the file, in hexadecimal digits.
        licence: of the weights, as the hub writes it.
    """

    name: str
    place: str
    revision: str
    sha256: str
    licence: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise RunError(f"the {field.name} of the model's origin is no text")

    def describe(self) -> str:
        """A phrase for the log."""
        return printable(
            f"{self.name}, {self.licence}, from {self.place}, revision {self.revision}, SHA-256 {self.sha256[:16]}..."
        )


@dataclasses.dataclass(frozen=True)
class Taken:
    """A whole file on this machine whose digest has been compared with what its publisher states."""

    path: str
    origin: Origin


def note_path(name: str, revision: str | None) -> str:
    """Where the note of a name is kept: beside the compiled files, in a folder that only this user can write to.

    Raises:
        RunError: if there is no such folder.
    """
    try:
        folder = os.path.join(cache_folder(), "weights")
    except CompileError as error:
        raise RunError(str(error)) from None
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f"{name}@{revision}.json" if revision else f"{name}.json")


def read_note(path: str) -> Taken | None:
    """What `write_note` wrote; None where there is nothing that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
        return Taken(str(fields["path"]), Origin(**fields["origin"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, RunError):
        return None


def write_note(path: str, taken: Taken) -> None:
    """Note what was taken.

    Raises:
        OSError: if the note cannot be written.
    """
    with atomic_write(path, "w") as file:
        json.dump(dataclasses.asdict(taken), file, indent=2)
