"""The line on a terminal that says how many of the images are done."""

from __future__ import annotations

import sys
import time

PROGRESS_SECONDS = 0.5


class ProgressLine:
    """Images done and images/s on a terminal's last line; nothing where standard error is no terminal.

    Args:
        images: number of images to work on.
    """

    def __init__(self, images: int):
        self.images = images
        self.done = 0
        self.began = self.shown = time.perf_counter()
        self.terminal = sys.stderr.isatty()

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self.began

    @property
    def rate(self) -> float:
        """Mean images/s since the beginning."""
        return self.done / max(self.seconds, 1e-9)

    def add(self, images: int) -> None:
        """Count images as done, and show the new count."""
        self.done += images
        if self.terminal and time.perf_counter() - self.shown > PROGRESS_SECONDS:
            self.shown = time.perf_counter()
            text = f"\r{self.done} of {self.images} images, {self.rate:.1f} images/s "
            print(text, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Erase the line, so that other output can be printed."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
