"""The listing of labelled images: a folder of class folders, a MindRecord made of one, or a list of files.

python -m src.data.image_folder DIR    lists classes, counts, sizes and every file that cannot be decoded
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import ArgumentParser, RunError, UsageError, positive_int, printable, run_cli
from src.common.machine import count_cores
from src.data.label_list import PARTS, ListedImages, is_list, read_list
from src.data.listing import ImageFolder, is_image_name, list_class_folders
from src.data.mindrecord import is_mindrecord, read_mindrecord

NAMED = 3
"""Classes that a sentence names at most."""


def read_image_folder(root: str) -> ImageFolder:
    """List labelled images, all that are there.

    Args:
        root: a folder of class folders; for a MindRecord its folder of shards, or one of the shards; or a list, which
            ends in .csv or .tsv.

    Raises:
        RunError: if it is missing, unreadable, has no class folders, or they hold no image; for a MindRecord if shards
            are missing or damaged; for a list if a line is wrong.
    """
    root = os.fspath(root)
    if not os.path.exists(root):
        raise RunError(f"{root}: there is no such folder")
    if is_list(root):
        return read_list(root)
    return read_mindrecord(root) if is_mindrecord(root) else list_class_folders(root)


def read_training_folder(root: str) -> ImageFolder:
    """List the images to train on, and say on standard error what is odd about them.

    Of a list with parts these are the images of "train".

    Raises:
        RunError: see `read_image_folder`; or if they are all of one class.
    """
    folder = read_image_folder(root)
    if isinstance(folder, ListedImages):
        folder = take_part(folder, "train")
    counts = np.bincount(folder.labels, minlength=len(folder.classes))
    if np.count_nonzero(counts) == 1:
        name = folder.classes[int(counts.argmax())]
        listed = isinstance(folder, ListedImages)
        nested = not listed and all(path.count("/") > 1 for path in folder.paths)
        advice = f"name the folder whose folders are the classes: {root}/{name}?" if nested else "add a second one"
        if listed and len(counts) > 1:
            advice = f"give images of the other classes ({len(counts) - 1}) to the split train"
        raise RunError(f"{root}: there is one class only, '{printable(name)}', and nothing to tell apart; {advice}")
    say_remarks(folder, counts)
    return folder


def read_evaluation_folder(root: str) -> ImageFolder:
    """List the images to evaluate on, and say on standard error what is odd about them.

    Of a list with parts these are the images of "val", or else those of "test".

    Raises:
        RunError: see `read_image_folder`.
    """
    folder = read_image_folder(root)
    if isinstance(folder, ListedImages):
        folder = take_part(folder, "val")
    say_remarks(folder)
    return folder


def read_held_out(root: str | None, training: ImageFolder) -> ImageFolder | None:
    """The images to evaluate on while training.

    Args:
        root: what the user named, or None for those that the list of the training images holds out.
        training: the images to train on.

    Returns:
        ImageFolder, or None if there are none.

    Raises:
        RunError: see `read_image_folder`.
        UsageError: if they have other classes.
    """
    if root is None:
        if not isinstance(training, ListedImages) or not training.parts[0]:
            return None
        listed = read_list(training.root)
        return take_part(listed, "val") if np.any(listed.parts == "val") else None
    held_out = fit_classes(read_evaluation_folder(root), training.classes, len(training.classes))
    if held_out.classes != training.classes:
        raise UsageError(f"{held_out.root} has other class folders than {training.root}")
    return held_out


def take_part(folder: ListedImages, part: str) -> ListedImages:
    """The images of a list to train on ("train"), or to evaluate on ("val": its part val, or else test).

    Raises:
        RunError: if there are none.
    """
    counts = {name: int(np.count_nonzero(folder.parts == name)) for name in PARTS}
    if not sum(counts.values()):
        return folder
    if part == "val" and not counts["val"]:
        part = "test"
    if not counts[part]:
        what = "train" if part == "train" else "val or test"
        raise RunError(f"{folder.root}: none of its {len(folder)} images is of the split {what}")
    rest = " and ".join(f"{count} of {name}" for name, count in counts.items() if name != part and count)
    remark = f"{folder.root}: the {counts[part]} images of its split {part} are used" + (
        f", not the {rest}" * bool(rest)
    )
    taken = folder.take(np.flatnonzero(folder.parts == part))
    return dataclasses.replace(taken, remarks=(*folder.remarks, remark))


def fit_classes(folder: ImageFolder, names: Sequence[str] | None, number: int) -> ImageFolder:
    """A list's labels in the classes of a model, or of other images; another listing as it is.

    A list may lack classes, which a folder shows as empty ones. Its labels are found by name; labels that are numbers
    and no names are taken as they are.

    Args:
        folder: the listing.
        names: the names of the classes; None stands for their numbers.
        number: of classes.
    """
    if not isinstance(folder, ListedImages):
        return folder
    names = list(names or map(str, range(number)))
    position = {name: label for label, name in enumerate(names)}
    used = [folder.classes[label] for label in np.unique(folder.labels)]
    if all(name in position for name in used):
        labels = np.array([position[folder.classes[label]] for label in folder.labels], np.int32)
        return dataclasses.replace(folder, classes=names, labels=labels)
    if folder.numbered and len(folder.classes) <= number:
        return dataclasses.replace(folder, classes=names)
    return folder


def say_remarks(folder: ImageFolder, counts: np.ndarray | None = None) -> None:
    """Write the remarks on a listing to standard error."""
    for remark in describe_oddities(folder, counts):
        print(f"warning: {printable(remark)}", file=sys.stderr, flush=True)


def describe_oddities(folder: ImageFolder, counts: np.ndarray | None) -> Iterator[str]:
    """Sentences on what is odd about a listing, though it can be used.

    Args:
        folder: the listing.
        counts: int array of shape (classes,), the images of each class, to be trained on; None for an evaluation, in
            which a class may be empty.
    """
    if isinstance(folder, ListedImages):
        yield from folder.remarks
    elif type(folder) is ImageFolder:
        with os.scandir(folder.root) as entries:
            stray = sum(is_image_name(entry.name) and entry.is_file() for entry in entries)
        if stray:
            yield f"{folder.root}: {stray} images lie beside the class folders and are passed over"
    if counts is None:
        return
    for number, words in (0, "no image, and keep their numbers"), (1, "one image only"):
        names = [printable(folder.classes[label]) for label in np.flatnonzero(counts == number)]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            listed = ", ".join(f"'{name}'" for name in names[:NAMED]) + more
            yield f"{folder.root}: {len(names)} of its {len(folder.classes)} classes have {words}: {listed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Decode every image of a folder and report on it; the exit code is 1 if one cannot be decoded."""
    parser = ArgumentParser(prog="image_folder", description="List a labelled folder and every file that is broken.")
    parser.add_argument("folder", help="folder of class folders, MindRecord, or list (.csv, .tsv)")
    parser.add_argument("--num_workers", type=positive_int, default=count_cores(), help="threads")
    arguments = parser.parse_args(argv)
    # Imported here: it needs Pillow, which programs that only list a folder do without.
    from src.data.scan import describe_scan, scan_images

    folder = read_image_folder(arguments.folder)
    scan = scan_images(folder, arguments.num_workers, sys.stderr.isatty())
    for line in describe_scan(folder, scan):
        print(line)
    return 1 if scan.bad else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
