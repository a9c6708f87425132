"""Writing a labelled folder as a MindRecord: shard by shard, each verified before it gets its name.

A conversion that is stopped goes on with the shards that are not there. `src/data/mindrecord.py` reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from typing import Callable

import numpy as np
from mindspore.mindrecord import FileWriter

from src.common.cli import RunError, UsageError, describe_os_error
from src.common.files import locked, new_file_mode, sync_folder
from src.data.listing import ImageFolder
from src.data.mindrecord import (
    FORMAT,
    SUFFIX,
    MindRecordFolder,
    Shard,
    check_image,
    encode_path,
    is_shard_name,
    join,
    read_shard,
)

SHARD_BYTES = 1 << 30
"""About how large a shard is."""
SCHEMA = {
    "label": {"type": "int32"},
    "path": {"type": "string"},
    "checksum": {"type": "int64"},
    "image": {"type": "bytes"},
}
INDEX = ["label", "path", "checksum"]
# MindSpore's bounds of a page, which holds whole images, and of a header.
MIN_PAGE, MAX_PAGE = 1 << 20, 1 << 28
MIN_HEADER = 1 << 16
PAGE_ENTRY = 300
"""Bytes, more than a page's entry in the header takes."""
ASIDE = ".writing-"
"""What the name of a folder begins with in which a shard is made."""
ROWS_AT_ONCE = 64
BYTES_AT_ONCE = 1 << 25


def convert(folder: ImageFolder, out: str, shards: int | None = None, on_images: Callable | None = None) -> int:
    """Write a labelled folder's images, classes and order to shards in a folder.

    Args:
        folder: the listing.
        out: the folder, made where missing; shards of this listing that it holds are kept.
        shards: how many; None makes them about SHARD_BYTES large.
        on_images: called with the number of images that are done, for progress.

    Returns:
        int, the number of shards.

    Raises:
        UsageError: if `out` lies within the listed folder, or holds shards of something else.
        RunError: if an image cannot be read, or the shards cannot be written.
    """
    check_outside(folder.root, out)
    sizes = measure(folder)
    shards = min(len(folder), shards or -(-int(sizes.sum()) // SHARD_BYTES) or 1)
    bounds = np.linspace(0, len(folder), shards + 1).round().astype(int)
    listing = digest(folder, shards)
    os.makedirs(out, exist_ok=True)
    with locked_for_writing(out):
        done = find_done(out, listing)
        check_space(out, int(sum(sizes[bounds[n] : bounds[n + 1]].sum() for n in range(shards) if n not in done)))
        for number in range(shards):
            indices = range(int(bounds[number]), int(bounds[number + 1]))
            if number not in done:
                description = describe_shard(folder, listing, number, shards)
                write_shard(folder, indices, description, sizes[indices.start : indices.stop], out)
            if on_images:
                on_images(len(indices))
    return shards


def check_outside(root: str, out: str) -> None:
    """Refuse a place where the shards would become a class of what they are made of.

    Raises:
        UsageError: naming both.
    """
    source, target = os.path.realpath(root), os.path.realpath(out)
    if os.path.commonpath([source, target]) == source:
        raise UsageError(f"{out} lies in {root}, whose class folders it would be among")


def measure(folder: ImageFolder) -> np.ndarray:
    """int64 array of the images' sizes in bytes.

    Raises:
        RunError: if one is missing, or longer than a page can be.
    """
    try:
        sizes = np.array([os.stat(folder.full_path(index)).st_size for index in range(len(folder))], np.int64)
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    largest = int(sizes.argmax())
    if sizes[largest] > MAX_PAGE // 2:
        raise RunError(f"{folder.full_path(largest)}: its {sizes[largest]} bytes do not fit in a MindRecord")
    return sizes


def digest(folder: ImageFolder, shards: int) -> str:
    """What tells a listing, cut into this many shards, from others."""
    text = json.dumps([folder.classes, shards]) + "\0" + "\0".join(map(encode_path, folder.paths))
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def locked_for_writing(out: str) -> Iterator[None]:
    """Keep a second conversion out of a folder, and remove what a killed one left.

    Raises:
        RunError: if one is under way.
    """
    try:
        with locked(out):
            for name in os.listdir(out):
                if name.startswith(ASIDE):
                    shutil.rmtree(os.path.join(out, name))
            yield
    except BlockingIOError:
        raise RunError(f"{out}: another conversion is writing to it") from None


def find_done(out: str, listing: str) -> set[int]:
    """The numbers of the shards of a listing that a folder holds.

    Raises:
        UsageError: if it holds shards of another.
    """
    done = set()
    for name in sorted(filter(is_shard_name, os.listdir(out))):
        description = read_shard(os.path.join(out, name)).description
        if description["listing"] != listing:
            raise UsageError(f"{out} holds shards of other images, or of another number of shards; name another folder")
        done.add(description["shard"])
    return done


def check_space(out: str, needed: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        RunError: with the space that is needed and there.
    """
    free = shutil.disk_usage(out).free
    if needed * 1.02 > free:
        raise RunError(f"{out}: the shards need {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free")


def describe_shard(folder: ImageFolder, listing: str, number: int, shards: int) -> dict:
    """What a shard says of itself beside MindSpore's header."""
    return {
        "format": FORMAT,
        "listing": listing,
        "shard": number,
        "shards": shards,
        "images": len(folder),
        "classes": folder.classes,
    }


def write_shard(folder: ImageFolder, indices: range, description: dict, sizes: np.ndarray, out: str) -> None:
    """Write some images to a shard, read them back, and give the shard its name.

    Raises:
        RunError: if it cannot be written or is not what was meant.
    """
    name = f"images_{description['shard'] + 1:05}_of_{description['shards']:05}{SUFFIX}"
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=out) as aside:
        path = os.path.join(aside, name)
        checksums = write_images(folder, indices, description, sizes, path)
        verify(folder, indices, checksums, path)
        # The index first: a shard that has its name is whole.
        for suffix in (".db", ""):
            with open(path + suffix, "rb") as file:
                os.fsync(file.fileno())
            os.chmod(path + suffix, new_file_mode())
            os.replace(path + suffix, os.path.join(out, name + suffix))
    sync_folder(out)


def write_images(folder: ImageFolder, indices: range, description: dict, sizes: np.ndarray, path: str) -> list[int]:
    """Write a shard's two files; returns the images' checksums.

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
        for rows in batches(folder, indices, sizes):
            checksums += [row["checksum"] for row in rows]
            writer.write_raw_data(rows)
        writer.commit()
    except RuntimeError as error:
        # MindSpore does not say why. What it wrote before it failed is still there.
        left = int(sizes.sum()) - sum(entry.stat().st_size for entry in os.scandir(os.path.dirname(path)))
        full = shutil.disk_usage(os.path.dirname(path)).free < max(left, page)
        reason = "there is no space left on the device" if full else first_line(error)
        raise RunError(f"{path}: the shard could not be written ({reason})") from None
    return checksums


def batches(folder: ImageFolder, indices: range, sizes: np.ndarray) -> Iterator[list[dict]]:
    """Rows for MindSpore's writer, as many at once as need little memory.

    Raises:
        RunError: if an image cannot be read.
    """
    rows: list[dict] = []
    held = 0
    for index, size in zip(indices, sizes):
        try:
            data = folder.read(index)
        except OSError as error:
            raise RunError(describe_os_error(error)) from None
        rows.append(
            {
                "label": int(folder.labels[index]),
                "path": encode_path(folder.paths[index]),
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
    """The next power of two, at least `least`."""
    return max(least, 1 << max(0, value - 1).bit_length())


def first_line(error: Exception) -> str:
    """MindSpore's sentence, without the stack that it adds."""
    lines = [line.strip("- ") for line in str(error).splitlines()]
    useful = [line for line in lines if line and "Dataset Pipeline Error Message" not in line]
    return useful[0] if useful else type(error).__name__


def verify(folder: ImageFolder, indices: range, checksums: list[int], path: str) -> None:
    """Read a shard back.

    Raises:
        RunError: if it does not hold the images that it should.
    """
    shard = read_shard(path)
    written = join_alone(shard, len(indices))
    expected = [folder.paths[index] for index in indices]
    if written.paths != expected or not np.array_equal(written.labels, folder.labels[indices.start : indices.stop]):
        raise RunError(f"{path}: the shard that was written lists other images")
    for index, checksum in enumerate(checksums):
        check_image(written, index, checksum)


def join_alone(shard: Shard, images: int) -> MindRecordFolder:
    """The listing of one shard of many."""
    alone = Shard(shard.path, {**shard.description, "images": images}, shard.header_size, shard.page_size)
    return join(shard.path, [alone])
