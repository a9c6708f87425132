"""Reading a MindRecord of labelled images: the same classes, labels, order and bytes as in the folder it was made of.

A shard is a file of encoded images. Beside it is MindSpore's index, an SQLite file that says where in the shard each
image lies, so that images are read one by one, without MindSpore. `src/data/mindrecord_writer.py` writes such shards,
and MindSpore's own readers read them as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sqlite3
import struct
import urllib.parse
import zlib
from typing import Callable

import numpy as np

from src.common.cli import RunError, describe_os_error, printable
from src.data.listing import PackedImages, read_encoded

SUFFIX = ".mindrecord"
FORMAT = "labelled images 1"
"""Version of the layout, in the description of every shard."""
MAX_HEADER = 1 << 27
MAX_PAGE = 1 << 28
STEPS_PER_BYTE = 10
"""SQLite's steps that an index may take for each of its bytes; reading one takes less than one."""
LENGTH_BYTES = 8
"""Each image is preceded by its length, which the index counts as a part of it."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard and the description in its header.

    Attributes:
        path: the file.
        description: the classes, and which part of which listing the shard holds; see `describe_shard`.
        header_size: bytes, after which the pages begin.
        page_size: bytes of each page.
    """

    path: str
    description: dict
    header_size: int
    page_size: int


@dataclasses.dataclass(frozen=True)
class MindRecordFolder(PackedImages):
    """A listing of N images that lie in shards.

    Attributes:
        checksums: int64 array of shape (N,), the CRC-32 of each image.
    """

    checksums: np.ndarray

    def columns(self) -> tuple[str, ...]:
        """Names of the attributes that are arrays with a row for each image."""
        return (*super().columns(), "checksums")


def is_mindrecord(path: str) -> bool:
    """Whether a path is a shard, or a folder that holds shards."""
    if os.path.isfile(path):
        return path.endswith(SUFFIX)
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return any(is_shard_name(entry.name) for entry in entries)
    return False


def is_shard_name(name: str) -> bool:
    """Whether a file of this name is listed as a shard."""
    return name.endswith(SUFFIX) and not name.startswith(".")


def read_mindrecord(path: str) -> MindRecordFolder:
    """List the images of a MindRecord.

    Args:
        path: a folder of shards, or one of its shards.

    Raises:
        RunError: if shards are missing, damaged, or not of labelled images.
    """
    folder = os.path.dirname(path) if os.path.isfile(path) else path
    try:
        names = sorted(name for name in os.listdir(folder or ".") if is_shard_name(name))
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    shards = [read_shard(os.path.join(folder, name)) for name in names]
    if os.path.isfile(path):
        listing = read_shard(path).description["listing"]
        shards = [shard for shard in shards if shard.description["listing"] == listing]
    check_complete(shards, path)
    return join(path, sorted(shards, key=lambda shard: shard.description["shard"]))


def read_shard(path: str) -> Shard:
    """Read a shard's header.

    Raises:
        RunError: if the file cannot be read, or is not a shard of labelled images.
    """
    try:
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > MAX_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        schema = header["schema"][0]
        fields = schema["schema"].keys()
        sizes = header["header_size"], header["page_size"]
        if not all(type(size) is int and 0 < size <= MAX_PAGE for size in sizes):
            raise ValueError(f"its sizes are {sizes}")
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise RunError(f"{path}: it is not a MindRecord, or damaged ({error})") from None
    try:
        description = json.loads(schema["desc"])
        known = description["format"] == FORMAT and schema["blob_fields"] == ["image"]
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise RunError(
            f"{path}: it is a MindRecord of {', '.join(map(printable, sorted(fields)))}, not one of labelled images as "
            "scripts/convert_to_mindrecord.py writes it"
        )
    if not is_description(description):
        raise RunError(f"{path}: its description is damaged")
    return Shard(path, description, *sizes)


def is_description(fields: dict) -> bool:
    """Whether a shard's description has what `describe_shard` writes, each of its kind."""
    classes, counts = fields.get("classes"), [fields.get(name) for name in ("shard", "shards", "images")]
    return (
        isinstance(fields.get("listing"), str)
        and all(type(count) is int for count in counts)
        and 0 <= counts[0] < counts[1] <= counts[2]
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
    )


def check_complete(shards: list[Shard], path: str) -> None:
    """Check that all shards of one conversion are there, and none of another.

    Raises:
        RunError: naming the first shard that is missing, or the number of conversions.
    """
    listings = {shard.description["listing"] for shard in shards}
    if len(listings) > 1:
        raise RunError(f"{path}: its shards are of {len(listings)} conversions; each needs a folder of its own")
    count = shards[0].description["shards"]
    there = {shard.description["shard"] for shard in shards}
    if len(there) < count:
        first = next(number for number in range(count) if number not in there)
        raise RunError(
            f"{path}: {count - len(there)} of its {count} shards are missing, the first is number {first + 1}; the "
            "conversion was stopped, the same command completes it"
        )


def join(root: str, shards: list[Shard]) -> MindRecordFolder:
    """The listing of the images of some shards.

    Raises:
        RunError: if a shard is cut short, or an index is missing or damaged.
    """
    paths: list[str] = []
    columns = []
    files = []
    for number, shard in enumerate(shards):
        names, rows = read_index(shard)
        paths += names
        columns.append(np.vstack([np.full(len(names), number), rows]))
        try:
            files.append(open(shard.path, "rb", buffering=0))
        except OSError as error:
            raise RunError(describe_os_error(error)) from None
    table = np.hstack(columns)
    classes = shards[0].description["classes"]
    if not len(paths) == shards[0].description["images"] or not 0 <= table[1].min() <= table[1].max() < len(classes):
        raise RunError(f"{root}: the index of its shards is damaged")
    shard_of, labels, offsets, lengths, checksums = table
    return MindRecordFolder(
        root,
        classes,
        paths,
        labels.astype(np.int32),
        files=files,
        file_of=shard_of.astype(np.int32),
        offsets=offsets,
        lengths=lengths,
        checksums=checksums,
    )


def read_index(shard: Shard) -> tuple[list[str], np.ndarray]:
    """The paths of a shard's images, and int64 rows of their labels, offsets, lengths and checksums.

    Raises:
        RunError: if the index is missing or damaged, or leads beyond the shard's end.
    """
    path = f"{shard.path}.db"
    if not os.path.isfile(path):
        raise RunError(f"{path}: the shard's index is missing")
    query = (
        "SELECT path_0, label_0, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END, checksum_0 FROM INDEXES "
        "ORDER BY ROW_ID"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"{file_uri(path)}?mode=ro", uri=True)) as index:
            limit_work(index, os.path.getsize(path))
            names, *numbers = zip(*index.execute(query))
        label, page, begin, end, checksum = (np.array(column, np.int64) for column in numbers)
        paths = [decode_path(name) for name in names]
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise RunError(f"{path}: the shard's index is damaged ({error})") from None
    length = end - begin - LENGTH_BYTES
    if min(page.min(), begin.min(), length.min()) < 0 or end.max() > MAX_PAGE:
        raise RunError(f"{path}: the shard's index is damaged (an image lies outside of its page)")
    offset, size = shard.header_size + page * shard.page_size + begin + LENGTH_BYTES, os.path.getsize(shard.path)
    # Pages first: the product may wrap around.
    if page.max() > size // shard.page_size or (offset + length).max() > size:
        raise RunError(f"{shard.path}: the shard is cut short")
    return paths, np.stack([label, offset, length, checksum])


def limit_work(index: sqlite3.Connection, size: int) -> None:
    """End a query that takes more than a table in a file of so many bytes can, such as one on an endless view."""
    steps = itertools.count(step=10_000)
    index.set_progress_handler(lambda: next(steps) > STEPS_PER_BYTE * size, 10_000)
    if hasattr(index, "setlimit"):  # from Python 3.11 on
        index.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_HEADER)


def check_images(path: str, on_images: Callable | None = None) -> MindRecordFolder:
    """Read every image of a MindRecord and compare its checksum.

    Args:
        path: a folder of shards, or one of its shards.
        on_images: called with the number of images that were checked since the last call, for progress.

    Returns:
        MindRecordFolder, the listing.

    Raises:
        RunError: naming the first image that is damaged.
    """
    written = read_mindrecord(path)
    for index, checksum in enumerate(written.checksums):
        check_image(written, index, int(checksum))
        if on_images:
            on_images(1)
    return written


def check_image(written: MindRecordFolder, index: int, checksum: int) -> None:
    """Read an image and compare its checksum.

    Raises:
        RunError: if it differs, or the image cannot be read.
    """
    if zlib.crc32(read_encoded(written, index)) != checksum:
        raise RunError(f"{written.full_path(index)}: the image in the shard is damaged")


def file_uri(path: str) -> str:
    """A path as a URI, the form in which SQLite takes options with it."""
    return "file:" + urllib.parse.quote(os.fsencode(os.path.abspath(path)))


def encode_path(path: str) -> str:
    """A path in ASCII, whatever bytes it consists of."""
    return urllib.parse.quote(os.fsencode(path), safe="/ ")


def decode_path(text: str) -> str:
    """The path that `encode_path` was given.

    Raises:
        TypeError: if it is no text.
        ValueError: if the path does not lie below a folder.
    """
    path = os.fsdecode(urllib.parse.unquote_to_bytes(text)) if "%" in text else text
    if path.startswith("/") or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(f"'{printable(path)}' is no path below a folder")
    return path
