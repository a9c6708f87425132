"""The listing of labelled images, whether they are in a folder of class folders or in a MindRecord made of one.

python -m src.data.image_folder DIR    lists classes, counts, sizes and every file that cannot be decoded
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.common.machine import count_cores
from src.data.listing import ImageFolder, list_class_folders
from src.data.mindrecord import is_mindrecord, read_mindrecord


def read_image_folder(root: str) -> ImageFolder:
    """List a folder of class folders, or the MindRecord that was made of one.

    Args:
        root: the folder; for a MindRecord its folder of shards, or one of the shards.

    Raises:
        RunError: if it is missing, unreadable, has no class folders, or they hold no image; for a MindRecord if shards
            are missing or damaged.
    """
    root = os.fspath(root)
    if not os.path.exists(root):
        raise RunError(f"{root}: there is no such folder")
    return read_mindrecord(root) if is_mindrecord(root) else list_class_folders(root)


def main(argv: Sequence[str] | None = None) -> int:
    """Decode every image of a folder and report on it; the exit code is 1 if one cannot be decoded."""
    parser = ArgumentParser(prog="image_folder", description="List a labelled folder and every file that is broken.")
    parser.add_argument("folder", help="folder of class folders")
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
