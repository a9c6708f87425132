"""Write the labels of a folder of class folders: JSON, {"[class]/[file]": label, ...} by path below the folder."""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import json
import sys

from src.common.cli import ArgumentParser, run_cli
from src.common.files import atomic_write
from src.data.image_folder import read_image_folder


def main(argv=None) -> None:
    """List the folder, number its classes, write the file."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--img_path", required=True, help="folder of class folders")
    parser.add_argument("--label_path", default="imagenet_label.json", help="the file to write")
    arguments = parser.parse_args(argv)

    folder = read_image_folder(arguments.img_path)
    labels = dict(zip(folder.paths, folder.labels.tolist()))
    with atomic_write(arguments.label_path, "w") as file:
        json.dump(labels, file, indent=0)
    print(f"{arguments.label_path}: labels of {len(folder)} images in {len(folder.classes)} classes")


if __name__ == "__main__":
    sys.exit(run_cli(main))
