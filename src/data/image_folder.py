"""Which files, which classes, which order: the one definition of a labelled folder.

A folder of class folders, as ImageNet comes: classes are its sub-folders in sorted order, labels their numbers from 0,
images the files with an image's suffix anywhere below a class folder, sorted by path. Names that begin with a dot are
passed over everywhere; symbolic links are followed. Sorting is by Unicode code points, the same on every machine. A
MindRecord that was made of such a folder stands for it, see `src/data/mindrecord.py`.

    python -m src.data.image_folder DIR    lists classes, counts, sizes and every file that will not decode
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import ArgumentParser, RunError, describe_os_error, positive_int, printable, run_cli
from src.common.machine import count_cores

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
PROGRESS_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A labelled folder's listing.

    Attributes:
        root: the folder as the caller named it.
        classes: names of the class folders, sorted; the position is the label.
        paths: images relative to root with "/" between folders, sorted by class and path.
        labels: int32 array, one label an image.
    """

    root: str
    classes: list[str]
    paths: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def full_path(self, index: int) -> str:
        """Where image number `index` lies."""
        return os.path.join(self.root, self.paths[index])

    def read(self, index: int) -> bytes:
        """The encoded image number `index`.

        Raises:
            OSError: if its file cannot be read.
        """
        with open(self.full_path(index), "rb", buffering=0) as file:
            return file.read()


def read_image_folder(root: str) -> ImageFolder:
    """List a folder of class folders, or the MindRecord that was made of one.

    Args:
        root: the folder; for a MindRecord its folder of shards, or one of them.

    Raises:
        RunError: if it is missing, unreadable, has no class folders, or they hold no image.
    """
    root = os.fspath(root)
    if not os.path.exists(root):
        raise RunError(f"{root}: there is no such folder")
    # Imported by what needs it: the programs that list a folder start in no time.
    from src.data.mindrecord import is_mindrecord, read_mindrecord

    if is_mindrecord(root):
        return read_mindrecord(root)
    if not os.path.isdir(root):
        raise RunError(f"{root}: it is a file, not a folder of class folders")
    try:
        with os.scandir(root) as entries:
            classes = sorted(entry.name for entry in entries if is_visible_folder(entry))
        if not classes:
            raise RunError(f"{root}: there are no class folders in it; expected one folder for each class")
        above = (identity(root),)
        paths: list[str] = []
        counts = []
        for name in classes:
            found = sorted(list_images(os.path.join(root, name), name, above))
            paths += found
            counts.append(len(found))
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    if not paths:
        raise RunError(f"{root}: its {len(classes)} class folders hold no image")
    return ImageFolder(root, classes, paths, np.repeat(np.arange(len(classes), dtype=np.int32), counts))


def is_visible_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one, that is not hidden."""
    return not entry.name.startswith(".") and is_folder(entry)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed as an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def identity(folder: str) -> tuple[int, int]:
    """What tells a folder from all others whatever links lead to it."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def list_images(folder: str, prefix: str, above: tuple) -> Iterator[str]:
    """Paths of the images below a folder, each beginning with `prefix`, in no particular order.

    Args:
        folder: where to look.
        prefix: its path from the root.
        above: identities of the folders above it; a link back to one of them is passed over.
    """
    here = identity(folder)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and not is_folder(entry):
                yield f"{prefix}/{entry.name}"
            elif is_visible_folder(entry):
                yield from list_images(entry.path, f"{prefix}/{entry.name}", (*above, here))


@dataclasses.dataclass
class Scan:
    """What the files of a labelled folder are.

    Attributes:
        bytes: of each class's files together.
        sizes: (width, height) of the images that decode, with how many have it.
        formats: Pillow's name of the format, with how many are of it.
        bad: sentences on the files that do not decode, in the order of the listing.
    """

    bytes: list[int]
    sizes: collections.Counter
    formats: collections.Counter
    bad: list[str]


def scan_image_folder(folder: ImageFolder, workers: int, terminal: bool) -> Scan:
    """Decode every image of a labelled folder."""
    # Pillow is imported by what opens images, not by what only lists them.
    from src.images.preprocess import ImageError, inspect_image

    def inspect(index: int):
        path = folder.full_path(index)
        try:
            return inspect_image(folder.read(index), path)
        except OSError as error:
            return describe_os_error(error)
        except ImageError as error:
            return str(error)

    scan = Scan([0] * len(folder.classes), collections.Counter(), collections.Counter(), [])
    shown = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(workers) as executor:
        for start in range(0, len(folder), 1024):
            indices = range(start, min(start + 1024, len(folder)))
            for index, result in zip(indices, executor.map(inspect, indices)):
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


def report(folder: ImageFolder, scan: Scan) -> Iterator[str]:
    """The lines that say what a scan found."""
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


def main(argv: Sequence[str] | None = None) -> int:
    """Scan a folder; exit code 1 where a file does not decode."""
    parser = ArgumentParser(prog="image_folder", description="List a labelled folder and every file that is broken.")
    parser.add_argument("folder", help="folder of class folders")
    parser.add_argument("--num_workers", type=positive_int, default=count_cores(), help="threads")
    arguments = parser.parse_args(argv)
    folder = read_image_folder(arguments.folder)
    scan = scan_image_folder(folder, arguments.num_workers, sys.stderr.isatty())
    for line in report(folder, scan):
        print(line)
    return 1 if scan.bad else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
