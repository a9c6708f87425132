"""Write scikit-learn's handwritten digits as 64x64 JPEGs into class folders: OUT/train (1,437) and OUT/val (360)."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

from src.common.cli import ArgumentParser, run_cli
from src.preparation.digits import SPLITS, write_digits


def main(argv=None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder to write; a complete one that is there already is kept")
    out = parser.parse_args(argv).out
    counts = ", ".join(f"{count} images in {os.path.join(out, split)}" for split, count in SPLITS.items())
    print(f"digits: {'wrote' if write_digits(out) else 'found, reusing'} {counts}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
