"""A list of labelled images in a text file: photos.csv or photos.tsv, with a line for each image.

A line is path, label, and where the images come in parts, the part: train, val or test. Paths are relative to the
list's folder. Labels are names, or numbers that count from 0. A header, such as path,label,split, may name the columns.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import RunError, describe_os_error, printable
from src.data.listing import ImageFolder

SUFFIXES = (".csv", ".tsv")
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path"),
    "label": ("label", "class", "class_name", "category"),
    "part": ("split", "part", "set", "subset"),
}
"""What a header may call the columns, in small letters; other columns are passed over."""
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
MAX_CLASSES = 100_000
LINES_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a list: its number in the file from 1, the image's path as it stands there, label, and part or ""."""

    line: int
    path: str
    label: str
    part: str


@dataclasses.dataclass(frozen=True)
class ListedImages(ImageFolder):
    """A listing of N images that a list names; `root` is the list, and `paths` are relative to its folder.

    Attributes:
        numbered: the labels are numbers in the list; the names of the classes are these numbers.
        parts: array of N times "train", "val" or "test", or of N times "" where the list has no parts.
        remarks: sentences on what is odd about the list.
    """

    numbered: bool
    parts: np.ndarray
    remarks: tuple[str, ...]

    def full_path(self, index: int) -> str:
        """The path of image number `index`."""
        return os.path.join(os.path.dirname(self.root), self.paths[index])

    def columns(self) -> tuple[str, ...]:
        """Names of the attributes that are arrays with a row for each image."""
        return (*super().columns(), "parts")


def is_list(path: str) -> bool:
    """Whether a path is a file with the suffix of a list."""
    return path.lower().endswith(SUFFIXES) and os.path.isfile(path)


def read_list(path: str) -> ListedImages:
    """List the images of a list, sorted by class and path as those of a labelled folder.

    Raises:
        RunError: naming the lines that are wrong: a file that is missing or has two labels, an unknown part, another
            number of columns, another encoding than UTF-8.
    """
    entries = list(parse_entries(path))
    if not entries:
        raise RunError(f"{path}: the list names no image")
    entries, remarks = drop_repeated(entries, path)
    base = os.path.dirname(path)
    missing = [entry for entry in entries if not os.path.isfile(os.path.join(base, entry.path))]
    if missing:
        raise RunError(
            f"{path}: {len(missing)} of its {len(entries)} files are missing ({name_lines(missing)}), the first is "
            f"'{printable(missing[0].path)}'; paths are relative to the list's folder"
        )
    classes, numbered = find_classes(entries, path)
    position = {name: label for label, name in enumerate(classes)}
    entries.sort(key=lambda entry: (position[entry.label], entry.path))
    return ListedImages(
        path,
        classes,
        [entry.path for entry in entries],
        np.array([position[entry.label] for entry in entries], np.int32),
        numbered=numbered,
        parts=np.array([entry.part for entry in entries]),
        remarks=remarks,
    )


def name_lines(entries: Sequence[Entry]) -> str:
    """ "line 3", or "lines 3, 4, 9 and 12 more"."""
    first = ", ".join(str(entry.line) for entry in entries[:LINES_NAMED])
    more = f" and {len(entries) - LINES_NAMED} more" if len(entries) > LINES_NAMED else ""
    return f"line{'s' if len(entries) > 1 else ''} {first}{more}"


def parse_entries(path: str) -> Iterator[Entry]:
    """The lines of a list, in order, each with a path and a label.

    Raises:
        RunError: if the file cannot be read, or naming the first line that is no such thing.
    """
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise RunError(f"{path}: the list is empty")
    line, cells = first
    columns = find_columns([cell.strip().lower() for cell in cells])
    header = columns is not None
    if not header:
        rows = itertools.chain([first], rows)
        columns = dict(zip(("path", "label", "part"), range(3 if len(cells) == 3 else 2)))
    if not header and len(cells) not in (2, 3):
        raise RunError(
            f"{path}: line {line} has {len(cells)} columns; expected path and label, or path, label and split, or a "
            "header with these names"
        )
    base = os.path.dirname(path)
    for number, row in rows:
        if len(row) != len(cells):
            raise RunError(
                f"{path}: line {number} has {len(row)} columns, not {len(cells)} as line {line}; a text with the "
                "separator in it stands in quotes"
            )
        name, label, part = (row[columns[column]] if column in columns else "" for column in COLUMNS)
        if "\\" in name and not os.path.exists(os.path.join(base, name)):
            name = name.replace("\\", "/")  # a list that was made on Windows
        label = label.strip()
        check_encoding(name, label, base, f"{path}: line {number}")
        if not name or not label:
            raise RunError(f"{path}: line {number} has no {'label' if name else 'path'}")
        if "part" in columns:
            part = find_part(part.strip(), f"{path}: line {number}")
        yield Entry(number, os.path.normpath(name), label, part)


def read_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """(number of the line from 1, cells) of each line that is not empty.

    Raises:
        RunError: if the file cannot be read, is no text, or has a quote that is not closed.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    # Bytes that are no UTF-8 may still be the name of a file; see check_encoding.
    text = data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")
    if "\0" in text:
        raise RunError(f"{path}: it is not a list in UTF-8 (it contains zero bytes)")
    begin = next((line for line in text.splitlines() if line.strip()), "")
    tabs = path.lower().endswith(".tsv")
    delimiter = "\t" if tabs else next((sign for sign in ",;\t" if sign in begin), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RunError(f"{path}: line {number} cannot be read, perhaps a quote is not closed ({error})") from None
        if any(cell.strip() for cell in row):
            yield number, row


def find_columns(names: list[str]) -> dict[str, int] | None:
    """The columns' positions by a header's words; None if they are no header."""
    found = {
        column: next((names.index(word) for word in words if word in names), None) for column, words in COLUMNS.items()
    }
    if found["path"] is None or found["label"] is None:
        return None
    return {column: place for column, place in found.items() if place is not None}


def check_encoding(name: str, label: str, base: str, where: str) -> None:
    """Refuse bytes that are no UTF-8, unless they are the name of a file, which may consist of any bytes.

    Raises:
        RunError: if they are not.
    """
    odd = [text for text in (name, label) if re.search("[\udc80-\udcff]", text)]
    if odd and (label in odd or not os.path.exists(os.path.join(base, name))):
        raise RunError(
            f"{where} is not UTF-8; save the list in this encoding (spreadsheets call it 'CSV UTF-8'), or convert it "
            "with iconv"
        )


def find_part(word: str, where: str) -> str:
    """train, val or test.

    Raises:
        RunError: if it is none of the words for them.
    """
    part = next((part for part, words in PARTS.items() if word.lower() in words), None)
    if part is None:
        raise RunError(f"{where} is of the split '{printable(word)}', expected train, val or test")
    return part


def drop_repeated(entries: list[Entry], path: str) -> tuple[list[Entry], tuple[str, ...]]:
    """Each file once, and remarks on those that are named several times in the same way.

    Raises:
        RunError: if a file has two labels, or is in two parts.
    """
    first: dict[str, Entry] = {}
    repeated = []
    for entry in entries:
        before = first.setdefault(entry.path, entry)
        if (before.label, before.part) != (entry.label, entry.part):
            if before.label != entry.label:
                what, here, there = "labels", printable(before.label), printable(entry.label)
            else:
                what, here, there = "splits", before.part, entry.part
            raise RunError(
                f"{path}: '{printable(entry.path)}' has two {what}, '{here}' on line {before.line} and '{there}' on "
                f"line {entry.line}"
            )
        if before is not entry:
            repeated.append(entry)
    if not repeated:
        return entries, ()
    return list(first.values()), (f"{path}: {name_lines(repeated)} name files again; each counts once",)


def find_classes(entries: list[Entry], path: str) -> tuple[list[str], bool]:
    """The names of the classes in the order of their labels, and whether they are numbers.

    Where all labels are whole numbers, they count from 0, and those that do not occur are empty classes. Otherwise the
    sorted names are numbered from 0.

    Raises:
        RunError: if a number is negative or too large.
    """
    names = {entry.label for entry in entries}
    if not all(re.fullmatch("-?(0|[1-9][0-9]*)", name) for name in names):
        return sorted(names), False
    digits = len(str(MAX_CLASSES - 1))
    wrong = next((entry for entry in entries if entry.label.startswith("-") or len(entry.label) > digits), None)
    if wrong:
        raise RunError(f"{path}: line {wrong.line} has the label {wrong.label[:20]}; numbers count classes from 0")
    return [str(label) for label in range(1 + max(map(int, names)))], True
