"""Pack a folder of class folders into a MindRecord, a few large files that every program takes as --dataset_path.

If the command is stopped or killed, the same command goes on with the shards that are missing. A shard gets its name
after it was read back.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

from tqdm import tqdm

from src.common.cli import ArgumentParser, UsageError, positive_int, run_cli
from src.data.image_folder import read_image_folder
from src.data.mindrecord import MindRecordFolder, check_images


def main(argv=None) -> None:
    """Convert, or check what was converted."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset_path", help="folder of class folders, or a list; with --check the MindRecord")
    parser.add_argument("out", nargs="?", help="folder for the shards")
    parser.add_argument("--shards", type=positive_int, help="how many; of about 1 GB each when left out")
    parser.add_argument("--check", action="store_true", help="read a MindRecord and compare every image's checksum")
    arguments = parser.parse_args(argv)
    if arguments.check == (arguments.out is not None):
        raise UsageError("name a folder and one for the shards, or --check and a MindRecord")
    folder = read_image_folder(arguments.dataset_path)
    packed = isinstance(folder, MindRecordFolder)
    if packed != arguments.check:
        what = "already a MindRecord" if packed else "a folder of class folders or a list, not a MindRecord"
        raise UsageError(f"{arguments.dataset_path} is {what}")
    with tqdm(total=len(folder), unit="image", disable=None) as bar:
        if arguments.check:
            check_images(arguments.dataset_path, bar.update)
        else:
            # Imported late: with it comes MindSpore.
            from src.data.mindrecord_writer import convert

            shards = convert(folder, arguments.out, arguments.shards, bar.update)
    images = f"{len(folder)} images in {len(folder.classes)} classes"
    if arguments.check:
        print(f"{images}: all are what was packed")
    else:
        print(f"{images}: packed into {shards} shards in {arguments.out}, and read back")


if __name__ == "__main__":
    sys.exit(run_cli(main))
