"""Labelled images in batches that threads fill, a few batches ahead: how, for which rank, and those of an evaluation.

The batches of training are in `src/data/training_batches.py`. What is done to an image is in `src/images`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Callable

import numpy as np

from src.common.machine import count_own_cores, map_in_order
from src.data.listing import ImageFolder, read_encoded
from src.images.bad_images import BadImages, ImageError
from src.images.preprocess import Preprocess, crop_encoded, normalise

BAD_LABEL = -1
"""Label of an evaluation image that could not be decoded: it counts as wrong."""
THREADS_PER_CORE = 2
"""Some threads wait for the disk while others decode."""
CHUNK = 8
"""Images that a thread prepares in one go, because each hand-over between threads takes time."""
BATCHES_AHEAD = 2
"""Batches that are prepared before they are asked for; MindSpore holds as many again."""


@dataclasses.dataclass(frozen=True)
class Sharding:
    """How ranks share the images.

    Attributes:
        batch_size: images in a batch of one rank.
        device_num: number of ranks.
        rank: this rank, 0 <= rank < device_num.

    Raises:
        ValueError: if a number is out of range.
    """

    batch_size: int = 16
    device_num: int = 1
    rank: int = 0

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, it must be at least 1")
        if not 0 <= self.rank < self.device_num:
            raise ValueError(f"rank is {self.rank}, it must be from 0 to device_num - 1 = {self.device_num - 1}")


@dataclasses.dataclass(frozen=True)
class Loading:
    """How image files become the network's input.

    Attributes:
        preprocess: size, interpolation, mean and std; the defaults are those of B0.
        normalised: True gives normalised float32. False gives uint8, a quarter of the bytes, for a network that
            normalises its input itself.
        num_workers: number of threads; None chooses it by the machine's cores.
        bad: counts the images that cannot be decoded and limits their number; None counts them without a limit.
    """

    preprocess: Preprocess = Preprocess()
    normalised: bool = True
    num_workers: int | None = None
    bad: BadImages | None = None

    def choose_threads(self, device_num: int) -> int:
        """Number of threads for one of so many devices."""
        return self.num_workers or THREADS_PER_CORE * count_own_cores(device_num)

    def choose_bad_images(self, folder: ImageFolder) -> BadImages:
        """The counter of a folder's bad images: `bad`, or a new one."""
        return BadImages(len(folder)) if self.bad is None else self.bad


class Batch:
    """A batch while threads fill it.

    Args:
        indices: int array of shape (N,), the images' numbers in the listing.
        loading: its image_size is S.

    Attributes:
        planes: uint8 array of shape (N, 3, S, S).
        images: float32 array of shape (N, 3, S, S) if `loading.normalised`, else `planes`.
        labels: int32 array of shape (N,), BAD_LABEL until a row is filled.
        errors: for each row the (path, error) of files that could not be used for it.
        numbers: in training, the random numbers of the augmentation: float64 array of shape (N, NUMBERS).
    """

    def __init__(self, indices: np.ndarray, loading: Loading):
        side = loading.preprocess.image_size
        shape = (len(indices), 3, side, side)
        self.indices = indices
        self.planes = np.empty(shape, np.uint8)
        self.images = np.empty(shape, np.float32) if loading.normalised else self.planes
        self.labels = np.full(len(indices), BAD_LABEL, np.int32)
        self.errors: list[list[tuple[str, ImageError]]] = [[] for _ in indices]
        self.numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def all_errors(self) -> Iterator[tuple[str, ImageError]]:
        """The errors of all rows, in order."""
        return itertools.chain.from_iterable(self.errors)


def fill_batches(batches: Iterable[Batch], fill_row: Callable[[Batch, int], None], workers: int) -> Iterator[Batch]:
    """Fill every row of each batch with `fill_row(batch, row)` in threads; yield the batches in order.

    A few batches are filled before they are asked for.
    """

    def fill(work: tuple[Batch, range]) -> Batch | None:
        batch, rows = work
        for row in rows:
            fill_row(batch, row)
        return batch if rows.stop == len(batch) else None

    def chunks() -> Iterator[tuple[Batch, range]]:
        for batch in batches:
            for start in range(0, len(batch), CHUNK):
                yield batch, range(start, min(start + CHUNK, len(batch)))

    first = next(iter(batches := iter(batches)), None)
    if first is None:
        return
    batches = itertools.chain([first], batches)
    ahead = BATCHES_AHEAD * -(-len(first) // CHUNK) + workers
    for batch in map_in_order(fill, chunks(), workers, ahead):
        # Chunks finish in order, so that a batch is whole when its last chunk comes.
        if batch is not None:
            yield batch


class EvaluationBatches:
    """The batches of an evaluation: rank r gets images r, r + device_num and so on, in order.

    Iterating yields images, float32 or uint8 array of shape (N, 3, S, S), and labels, int32 array of shape (N,). A bad
    image is black and labelled BAD_LABEL, or left out if `bad.skip`.

    Args:
        folder: the listing.
        sharding: batch size and rank; the last batch may be smaller.
        loading: preprocessing, threads, bad images.

    Raises:
        RunError: while iterating, if more images are bad than `loading.bad` allows.
    """

    def __init__(self, folder: ImageFolder, sharding: Sharding, loading: Loading):
        self.folder = folder
        self.order = np.arange(sharding.rank, len(folder), sharding.device_num)
        self.batch_size = sharding.batch_size
        self.loading = loading
        self.workers = loading.choose_threads(sharding.device_num)
        self.bad = loading.choose_bad_images(folder)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in fill_batches(self.empty_batches(), self.fill_row, self.workers):
            for path, error in batch.all_errors:
                self.bad.add(path, error, "it is left out" if self.bad.skip else "it counts as wrong")
            good = batch.labels != BAD_LABEL
            if good.all() or not self.bad.skip:
                yield batch.images, batch.labels
            elif good.any():
                yield batch.images[good], batch.labels[good]

    def empty_batches(self) -> Iterator[Batch]:
        """The batches before they are filled."""
        for start in range(0, len(self.order), self.batch_size):
            yield Batch(self.order[start : start + self.batch_size], self.loading)

    def fill_row(self, batch: Batch, row: int) -> None:
        """Fill in an image and its label."""
        index, preprocess = int(batch.indices[row]), self.loading.preprocess
        path = self.folder.full_path(index)
        try:
            crop = crop_encoded(read_encoded(self.folder, index), path, preprocess)
            batch.labels[row] = self.folder.labels[index]
        except ImageError as error:
            batch.errors[row].append((path, error))
            crop = np.zeros((preprocess.image_size, preprocess.image_size, 3), np.uint8)
        if self.loading.normalised:
            normalise(crop, preprocess, batch.images[row])
        else:
            batch.planes[row] = crop.transpose(2, 0, 1)
