"""A check of a labelled folder: it decodes every image and reports sizes, formats and the files that are broken."""

from __future__ import annotations

import collections
import dataclasses
import sys
import time
from collections.abc import Iterator

import numpy as np

from src.common.cli import printable
from src.common.machine import map_in_order
from src.data.listing import ImageFolder, read_encoded
from src.images.bad_images import ImageError
from src.images.decode import decode
from src.images.preprocess import Preprocess, check_shape

PROGRESS_SECONDS = 0.5
AHEAD = 1024
"""Images that may be inspected before the first of them is counted; only what was found in them waits."""


@dataclasses.dataclass
class Scan:
    """What was found in the files of a labelled folder.

    Attributes:
        bytes: for each class the total size of the images that can be decoded.
        sizes: how many images have each (width, height).
        formats: how many images have each format, by Pillow's name of it.
        bad: for each file that cannot be decoded an error that names it, in the order of the listing.
    """

    bytes: list[int]
    sizes: collections.Counter
    formats: collections.Counter
    bad: list[str]


def scan_images(folder: ImageFolder, workers: int, terminal: bool) -> Scan:
    """Decode every image of a labelled folder.

    Args:
        folder: the listing.
        workers: number of threads.
        terminal: standard error is a terminal, on which progress is shown.
    """

    def inspect(index: int) -> tuple[int, str, tuple[int, int]] | str:
        path = folder.full_path(index)
        try:
            data = read_encoded(folder, index)
            kind, image = decode(data, path)
            check_shape(*image.size, Preprocess(), path)
        except ImageError as error:
            return str(error)
        return len(data), kind, image.size

    scan = Scan([0] * len(folder.classes), collections.Counter(), collections.Counter(), [])
    shown = time.monotonic()
    for index, result in enumerate(map_in_order(inspect, range(len(folder)), workers, AHEAD)):
        if isinstance(result, str):
            scan.bad.append(result)
        else:
            length, kind, size = result
            scan.bytes[folder.labels[index]] += length
            scan.formats[kind] += 1
            scan.sizes[size] += 1
        if terminal and time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"\r{index + 1} of {len(folder)} images, {len(scan.bad)} bad", end="", file=sys.stderr)
    if terminal:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return scan


def describe_scan(folder: ImageFolder, scan: Scan) -> Iterator[str]:
    """The lines of the report on a scan."""
    counts = np.bincount(folder.labels, minlength=len(folder.classes))
    yield f"{'label':>6} {'images':>8} {'MB':>10}  class"
    for label, name in enumerate(folder.classes):
        note = "  (empty)" if counts[label] == 0 else ""
        yield f"{label:>6} {counts[label]:>8} {scan.bytes[label] / 1e6:>10.2f}  {printable(name)}{note}"
    yield f"{len(folder.classes)} classes, {len(folder)} images, {sum(scan.bytes) / 1e6:.2f} MB"
    if scan.sizes:
        for position, side in enumerate(("width", "height")):
            lengths = np.repeat([size[position] for size in scan.sizes], list(scan.sizes.values()))
            yield f"{side}: {lengths.min()} to {lengths.max()} pixels, median {np.median(lengths):.0f}"
        yield "formats: " + ", ".join(f"{kind} {count}" for kind, count in scan.formats.most_common())
    yield f"cannot be decoded: {len(scan.bad)}"
    for sentence in scan.bad:
        yield f"  {printable(sentence)}"
