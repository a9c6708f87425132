"""Images that cannot be used: the error on one of them, and what a program does about all of them.

Training and eval.py count them in a `BadImages`, which ends the run at once when there are too many. infer_onnx.py
counts them in an `UnusableImages`: it works through all images and fails at the end.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from typing import NoReturn

from src.common.cli import RunError, printable

ALWAYS_ALLOWED = 3
"""So many bad images end no run, however small its folder, unless the share is 0: a folder of 44 has one, too."""


class ImageError(RunError):
    """An image that cannot be used; the sentence names the file."""


def warn(error: Exception, consequence: str = "") -> None:
    """Name an image that cannot be used on standard error, and say what happens to it."""
    sentence = printable(str(error)) + (f"; {consequence}" if consequence else "")
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


class BadImages:
    """Images of a data set that cannot be decoded: each is named once, and too many of them end the run.

    Args:
        images: number of images in the data set.
        max_share: largest share of them that may be bad, 0 to 1; at 1 the run never fails. Above 0 it allows
            ALWAYS_ALLOWED images at least.
        skip: True leaves bad images out of an evaluation, False counts them as wrong; training replaces them anyway.
        root: the folder, for the error's advice.

    Attributes:
        allowed: how many images may be bad.
    """

    def __init__(self, images: int, max_share: float = 1.0, skip: bool = False, root: str = "DIR"):
        self.images = images
        self.max_share = max_share
        self.allowed = max(ALWAYS_ALLOWED if max_share > 0 else 0, int(max_share * images))
        self.skip = skip
        self.root = root
        self.sentences: dict[str, str] = {}
        self.failure: RunError | None = None

    def __len__(self) -> int:
        return len(self.sentences)

    def add(self, path: str, error: Exception, consequence: str) -> None:
        """Count an image, name it the first time, and end the run if there are too many.

        Raises:
            RunError: with how many are bad, how many may be, and the first of them.
        """
        if path not in self.sentences:
            self.sentences[path] = str(error)
            warn(error, consequence)
        if len(self) > self.allowed:
            first = next(iter(self.sentences.values()))
            few = f" and more than the {ALWAYS_ALLOWED} that are always allowed" if self.allowed else ""
            self.fail(
                f"{len(self)} of {self.images} images cannot be used, more than the share of {self.max_share:g} that "
                f"--max_bad_images allows{few}; `python -m src.data.image_folder {shlex.quote(self.root)}` lists them "
                f"all; the first: {first}"
            )

    def check(self) -> None:
        """Fail at the end of an evaluation if an image was bad, unless bad images are left out.

        Raises:
            RunError: with their number.
        """
        if len(self) and not self.skip:
            raise RunError(f"{len(self)} of {self.images} images could not be used; each is named above")

    def among(self, images) -> dict[int, str]:
        """The numbers of those that were added, within a listing, with the sentence on each."""
        found = ((index, self.sentences.get(images.full_path(index))) for index in range(len(images)))
        return {index: sentence for index, sentence in found if sentence is not None}

    def fail(self, sentence: str) -> NoReturn:
        """End the run.

        Raises:
            RunError: always.
        """
        self.failure = RunError(sentence)
        raise self.failure

    @contextlib.contextmanager
    def as_sentence(self) -> Iterator[None]:
        """Raise the error of `add` again, where MindSpore's threads swallow it or wrap it in one of their own."""
        try:
            yield
        except Exception:
            if self.failure:
                raise self.failure from None
            raise
        if self.failure:
            raise self.failure


class UnusableImages:
    """Images that infer_onnx.py cannot use: each is named on standard error, and the run fails at its end.

    Args:
        images: number of images that the program was given.
        skip: the user allows for unusable images (--skip_bad_images): the run succeeds without them.
    """

    def __init__(self, images: int, skip: bool):
        self.images = images
        self.skip = skip
        self.errors: list[ImageError] = []

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, error: ImageError, consequence: str = "") -> None:
        """Count an image and name it. Where it is the only one, `check` names it, as the run's error."""
        self.errors.append(error)
        if self.images > 1 or self.skip:
            warn(error, consequence)

    def check(self) -> None:
        """Fail if an image was unusable, unless the user allows for that.

        Raises:
            RunError: with their number, or with the error on the only image.
        """
        if self.errors and not self.skip:
            if self.images == 1:
                raise self.errors[0]
            raise RunError(f"{len(self)} of {self.images} images could not be used; each is named above")
