"""Make ImageNet's training and validation folders of what was downloaded: the official archives, or Kaggle's files.

python scripts/prepare_imagenet.py downloads /data/imagenet

If the command is stopped or killed, the same command goes on where it was. A part gets its name, OUT/train or OUT/val,
when all of its images are there and the archive's MD5 sum is the published one.
"""

from __future__ import annotations

import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

from tqdm import tqdm

from src.common.cli import ArgumentParser, UsageError, choice, positive_int, run_cli
from src.preparation.class_folders import write_class_folders
from src.preparation.imagenet import (
    PARTS,
    Part,
    check_outside_source,
    describe_odd_images,
    find_parts,
    prepare_part,
)
from src.preparation.imagenet_release import Release, imagenet_2012


def parse_arguments(argv=None):
    """Read the flags."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    downloads = (
        "folder of the archives under their published names; or Kaggle's zip, or the folder it was unpacked into"
    )
    parser.add_argument("downloads", help=downloads)
    parser.add_argument("out", help="folder in which train and val are made")
    parser.add_argument("--form", type=choice("folders", "mindrecord"), default="folders", help="folders or mindrecord")
    parser.add_argument("--part", type=choice(*PARTS, "both"), default="both", help="train, val or both")
    labels = "classes of the validation images: development kit, LOC_val_solution.csv, or a list; found when left out"
    parser.add_argument("--labels", metavar="FILE", help=labels)
    parser.add_argument(
        "--shards", type=positive_int, help="how many in a MindRecord; of about 1 GB each when left out"
    )
    arguments = parser.parse_args(argv)
    if arguments.shards and arguments.form != "mindrecord":
        raise UsageError("--shards goes with --form mindrecord only")
    check_outside_source(arguments.downloads, arguments.out)
    return arguments


def main(argv=None, release: Release | None = None) -> None:
    """Look through all parts, then write one after the other."""
    arguments = parse_arguments(argv)
    names = PARTS if arguments.part == "both" else (arguments.part,)
    print(f"looking through {arguments.downloads}", flush=True)
    parts = find_parts(arguments.downloads, names, arguments.labels, release or imagenet_2012())
    write = write_class_folders
    if arguments.form == "mindrecord":
        # Imported late: with it comes MindSpore.
        from src.data.mindrecord_writer import convert

        write = functools.partial(convert, shards=arguments.shards)
    for part in parts:
        write_part(part, arguments.out, write, arguments.form)


def write_part(part: Part, out: str, write, form: str) -> None:
    """Write a part with two bars, of the images and of the archive's MD5 sum, and say what came of it."""
    bars = functools.partial(tqdm, disable=None, leave=False)
    size = os.path.getsize(part.archive.name) if part.archive else 0
    with bars(total=len(part.folder), unit="image", desc=part.name) as images:
        with bars(total=size, unit="B", unit_scale=True, desc="MD5", position=1) as hashed:
            written = prepare_part(part, out, write, form, images.update, hashed.update)
    what = f"{len(part.folder)} images in {len(part.folder.classes)} classes"
    how = "were there" if not written else "written" + (", and the archive's MD5 sum is right" if part.archive else "")
    print(f"{os.path.join(out, part.name)}: {what} {how}")
    odd = describe_odd_images(part.folder)
    if odd:
        print(f"{part.name}: {odd}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
