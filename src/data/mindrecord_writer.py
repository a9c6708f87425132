"""Writing a labelled folder as a MindRecord, shard by shard. A shard gets its name after it was read back.

A conversion that was stopped goes on with the shards that are missing. `src/data/mindrecord.py` reads the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from typing import Callable

import numpy as np
from mindspore.mindrecord import FileWriter

from src.common.cli import RunError, UsageError, describe_os_error
from src.common.files import check_space, locked_alone, new_file_mode, scratch_folder, sync_folder
from src.data import mindrecord
from src.data.listing import ImageFolder, read_encoded

SHARD_BYTES = 1 << 30
"""Bytes, about the size of a shard if the user does not choose the number of shards."""
SCHEMA = {
    "label": {"type": "int32"},
    "path": {"type": "string"},
    "checksum": {"type": "int64"},
    "image": {"type": "bytes"},
}
INDEX = ["label", "path", "checksum"]
# MindSpore's limits, in bytes, for the size of a page, which holds whole images, and for the size of a header.
MIN_PAGE, MAX_PAGE = 1 << 20, mindrecord.MAX_PAGE
MIN_HEADER = 1 << 16
PAGE_ENTRY = 300
"""Bytes in the header for each page: more than its entry takes."""
ASIDE = ".writing-"
"""Prefix of the name of the temporary folder in which a shard is written."""
INDEX_SHARE = 1.02
"""Space for the shards and their indices, by the bytes of the images."""
ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 1 << 25


def convert(folder: ImageFolder, out: str, shards: int | None = None, on_images: Callable | None = None) -> int:
    """Write a labelled folder's images, classes and order to shards in a folder.

    Args:
        folder: the listing.
        out: the folder, which is made if it is missing; shards of this listing that it already holds are kept.
        shards: number of shards; None makes them about SHARD_BYTES large.
        on_images: called with the number of images that are done since the last call, for progress.

    Returns:
        int, the number of shards.

    Raises:
        UsageError: if `out` lies within the listed folder, holds shards of another listing, or is in use.
        RunError: if an image cannot be read, or the shards cannot be written.
    """
    check_outside(folder.root, out)
    sizes = measure_images(folder)
    shards = min(len(folder), shards or -(-int(sizes.sum()) // SHARD_BYTES) or 1)
    bounds = np.linspace(0, len(folder), shards + 1).round().astype(int)
    listing = digest(folder, shards)
    os.makedirs(out, exist_ok=True)
    with locked_alone(out):
        for name in os.listdir(out):
            if name.startswith(ASIDE):  # of a conversion that was killed
                shutil.rmtree(os.path.join(out, name))
        done = find_done(out, listing)
        left = sum(int(sizes[bounds[n] : bounds[n + 1]].sum()) for n in range(shards) if n not in done)
        check_space(out, int(left * INDEX_SHARE), "the shards")
        for number in range(shards):
            indices = range(int(bounds[number]), int(bounds[number + 1]))
            if number not in done:
                description = describe_shard(folder, listing, number, shards)
                write_shard(folder, indices, description, sizes[indices.start : indices.stop], out)
            if on_images:
                on_images(len(indices))
    return shards


def check_outside(root: str, out: str) -> None:
    """Check that the shards do not go into the folder that they are made of, where they would look like a class.

    Raises:
        UsageError: naming both folders.
    """
    source, target = os.path.realpath(root), os.path.realpath(out)
    if os.path.commonpath([source, target]) == source:
        raise UsageError(f"{out} lies in {root}, whose class folders it would be among")


def measure_images(folder: ImageFolder) -> np.ndarray:
    """The size of each image in bytes: int64 array of shape (len(folder),).

    Raises:
        RunError: if an image is missing, is empty, or is too large for a page.
    """
    try:
        sizes = np.array([folder.size_of(index) for index in range(len(folder))], np.int64)
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise RunError(
            f"{folder.full_path(empty[0])}: the image file is empty, one of {len(empty)}, and a MindRecord holds no "
            "empty images; remove them"
        )
    largest = int(sizes.argmax())
    if sizes[largest] > MAX_PAGE // 2:
        raise RunError(f"{folder.full_path(largest)}: its {sizes[largest]} bytes do not fit in a MindRecord")
    return sizes


def digest(folder: ImageFolder, shards: int) -> str:
    """A digest that differs between listings and between numbers of shards."""
    text = json.dumps([folder.classes, shards]) + "\0" + "\0".join(map(mindrecord.encode_path, folder.paths))
    return hashlib.sha256(text.encode()).hexdigest()


def find_done(out: str, listing: str) -> set[int]:
    """The numbers of the shards of a listing that a folder already holds.

    Raises:
        UsageError: if it holds shards of another listing.
    """
    done = set()
    for name in sorted(filter(mindrecord.is_shard_name, os.listdir(out))):
        description = mindrecord.read_shard(os.path.join(out, name)).description
        if description["listing"] != listing:
            raise UsageError(f"{out} holds shards of other images, or of another number of shards; name another folder")
        done.add(description["shard"])
    return done


def describe_shard(folder: ImageFolder, listing: str, number: int, shards: int) -> dict:
    """The description that a shard carries in its header."""
    return {
        "format": mindrecord.FORMAT,
        "listing": listing,
        "shard": number,
        "shards": shards,
        "images": len(folder),
        "classes": folder.classes,
    }


def write_shard(folder: ImageFolder, indices: range, description: dict, sizes: np.ndarray, out: str) -> None:
    """Write some images to a shard, read them back, and give the shard its name.

    Raises:
        RunError: if it cannot be written, or what was read back differs.
    """
    name = f"images_{description['shard'] + 1:05}_of_{description['shards']:05}{mindrecord.SUFFIX}"
    with scratch_folder(prefix=ASIDE, dir=out) as aside:
        path = os.path.join(aside, name)
        checksums = write_images(folder, indices, description, sizes, path)
        verify_shard(folder, indices, checksums, path)
        # The index comes first: once the shard has its name, both files are there.
        for suffix in (".db", ""):
            with open(path + suffix, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(path + suffix, new_file_mode())
            os.replace(path + suffix, os.path.join(out, name + suffix))
    sync_folder(out)


def write_images(folder: ImageFolder, indices: range, description: dict, sizes: np.ndarray, path: str) -> list[int]:
    """Write a shard's two files.

    Returns:
        list[int], the CRC-32 of each image.

    Raises:
        RunError: if an image cannot be read or the files cannot be written.
    """
    text = json.dumps(description)
    page = round_up(2 * int(sizes.max(initial=0)), MIN_PAGE)
    pages = 2 + 2 * int(sizes.sum()) // page + len(sizes) * 600 // page
    checksums: list[int] = []
    try:
        writer = FileWriter(path, 1)
        writer.set_page_size(page)
        writer.set_header_size(round_up(4 * len(text) + PAGE_ENTRY * pages, MIN_HEADER))
        writer.add_schema(SCHEMA, text)
        writer.add_index(INDEX)
        for rows in group_rows(folder, indices, sizes):
            checksums += [row["checksum"] for row in rows]
            writer.write_raw_data(rows)
        writer.commit()
    except RuntimeError as error:
        # MindSpore does not give the reason. The disk was full if what is still to be written does not fit on it.
        left = int(sizes.sum()) - sum(entry.stat().st_size for entry in os.scandir(os.path.dirname(path)))
        full = shutil.disk_usage(os.path.dirname(path)).free < max(left, page)
        reason = "there is no space left on the device" if full else first_line(error)
        raise RunError(f"{path}: the shard could not be written ({reason})") from None
    return checksums


def group_rows(folder: ImageFolder, indices: range, sizes: np.ndarray) -> Iterator[list[dict]]:
    """Rows for MindSpore's writer, in groups of at most ROWS_AT_ONCE rows and about BYTES_AT_ONCE bytes.

    Raises:
        RunError: if an image cannot be read, or has changed its size.
    """
    rows: list[dict] = []
    held = 0
    for index, size in zip(indices, sizes):
        data = read_encoded(folder, index)
        if len(data) != size:
            raise RunError(f"{folder.full_path(index)}: the image changed while it was packed; start again")
        rows.append(
            {
                "label": int(folder.labels[index]),
                "path": mindrecord.encode_path(folder.paths[index]),
                "checksum": zlib.crc32(data),
                "image": data,
            }
        )
        held += int(size)
        if len(rows) == ROWS_AT_ONCE or held > BYTES_AT_ONCE:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def round_up(value: int, least: int) -> int:
    """The smallest power of two that is not below `value` and `least`, itself a power of two."""
    return max(least, 1 << max(0, value - 1).bit_length())


def first_line(error: Exception) -> str:
    """The first sentence of MindSpore's error, without the stack that follows."""
    lines = [line.strip("- ") for line in str(error).splitlines()]
    useful = [line for line in lines if line and "Dataset Pipeline Error Message" not in line]
    return useful[0] if useful else type(error).__name__


def verify_shard(folder: ImageFolder, indices: range, checksums: list[int], path: str) -> None:
    """Read a shard back and compare it with the listing and the checksums.

    Raises:
        RunError: if it differs.
    """
    shard = mindrecord.read_shard(path)
    written = join_alone(shard, len(indices))
    expected = [folder.paths[index] for index in indices]
    if written.paths != expected or not np.array_equal(written.labels, folder.labels[indices.start : indices.stop]):
        raise RunError(f"{path}: the shard that was written lists other images")
    for index, checksum in enumerate(checksums):
        mindrecord.check_image(written, index, checksum)


def join_alone(shard: mindrecord.Shard, images: int) -> mindrecord.MindRecordFolder:
    """The listing of one shard alone, without the others of its conversion."""
    alone = mindrecord.Shard(shard.path, {**shard.description, "images": images}, shard.header_size, shard.page_size)
    return mindrecord.join(shard.path, [alone])
