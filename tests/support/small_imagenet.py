"""scripts/prepare_imagenet.py on the official archives of a small ImageNet, which `write` makes.

python tests/support/small_imagenet.py DOWNLOADS OUT [further flags]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from scripts import prepare_imagenet
from src.common.cli import run_cli
from tests.support.hard_images import draw, encode
from tests.support.imagenet_files import CLASSES, release_of, tar_of, train_archive, write_devkit

TRAIN = {wnid: [f"{wnid}_{number}.JPEG" for number in range(700)] for wnid in CLASSES}
VAL = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 301)]


def write(folder: Path) -> None:
    """Write the three archives: 2,100 images to train on, 300 to validate."""
    images = [encode(draw(60 + number, 50, number), "JPEG") for number in range(20)]
    folder.mkdir()
    train = {wnid: {name: images[len(name) * i % 20] for i, name in enumerate(names)} for wnid, names in TRAIN.items()}
    tar_of(train_archive(train), folder / "ILSVRC2012_img_train.tar")
    tar_of({name: images[i % 20] for i, name in enumerate(VAL)}, folder / "ILSVRC2012_img_val.tar")
    write_devkit(folder / "ILSVRC2012_devkit_t12.tar.gz", {name: CLASSES[i % 3] for i, name in enumerate(VAL)})


if __name__ == "__main__":
    release = release_of(Path(sys.argv[1]), TRAIN, VAL)
    sys.exit(run_cli(lambda argv: prepare_imagenet.main(argv, release), sys.argv[1:]))
