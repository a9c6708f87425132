"""What a terminal sees while many images are worked on: how far it is, and which of them could not be used."""

from __future__ import annotations

import sys
import time

from src.common.cli import RunError, printable
from src.images.preprocess import ImageError

PROGRESS_SECONDS = 0.5


class Progress:
    """Images done and images/s on a terminal's last line; nothing where standard error is no terminal.

    Args:
        images: how many there are.
    """

    def __init__(self, images: int):
        self.images = images
        self.done = 0
        self.began = self.shown = time.perf_counter()
        self.terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Images/s since the beginning."""
        return self.done / max(self.seconds, 1e-9)

    def add(self, images: int) -> None:
        """Count images."""
        self.done += images
        if self.terminal and time.perf_counter() - self.shown > PROGRESS_SECONDS:
            self.shown = time.perf_counter()
            text = f"\r{self.done} of {self.images} images, {self.rate:.1f} images/s "
            print(text, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Free the line for what is printed next."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class Failures:
    """Images that could not be used: each is named on standard error, and the run ends with exit code 1.

    Args:
        images: how many there are.
        skip: whether they may fail.
    """

    def __init__(self, images: int, skip: bool):
        self.images = images
        self.skip = skip
        self.errors: list[ImageError] = []

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, error: ImageError, consequence: str = "") -> None:
        """Count an image and name it; the sentence on the only image is the run's, it comes at the end."""
        self.errors.append(error)
        if self.images > 1 or self.skip:
            print(f"warning: {printable(str(error))}{consequence}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Fail where there are any, unless they may.

        Raises:
            RunError: with their number.
        """
        if self.errors and not self.skip:
            if self.images == 1:
                raise self.errors[0]
            raise RunError(f"{len(self)} of {self.images} images could not be used; each is named above")
