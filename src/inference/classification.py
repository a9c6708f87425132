"""Many images through an ONNX file: reading, decoding, preprocessing and the network overlap in threads.

A thread takes a batch from the file names to the logits, and the network runs within that thread. On a CPU nothing is
handed from thread to thread and nobody waits for a partner: as many batches as threads are under way, some of them
being decoded while others are in the network, and the pixels stay in the core's cache. On a GPU or NPU the same threads
keep the device fed.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import UsageError
from src.common.parallel import map_in_order
from src.data.listing import Images, read_encoded
from src.images.bad_images import ImageError
from src.images.decode import open_image
from src.images.engine import describe_engine, find_engine
from src.images.preprocess import Preprocess, crop_encoded, crop_for_evaluation
from src.inference.session import OnnxModel

# On a CPU larger batches leave the cache: they are no faster and need much more memory.
CANDIDATES = {"CPU": (1, 2, 4), "GPU": (8, 16, 32, 64), "Ascend": (8, 16, 32, 64)}
"""Batch sizes that are tried where none is given."""
NO_BETTER = 1.02
MANY_IMAGES = 100
"""From so many on the compiled engine decodes; to compile it on its first use takes longer than a few images."""
AHEAD = 4
"""Batches for each thread that may be finished or waiting before the first of them is asked for; only logits wait."""


@dataclasses.dataclass(frozen=True)
class ClassifiedBatch:
    """What came out of some images in a row.

    Attributes:
        indices: numbers of the images that could be used.
        logits: float32 of shape (len(indices), classes).
        errors: numbers of the others, with the sentence on each.
    """

    indices: list[int]
    logits: np.ndarray
    errors: dict[int, ImageError]


class BatchSizes:
    """Chooses the sizes of the batches: the first few try each candidate, the others have the fastest one's.

    Args:
        candidates: sizes in rising order. One that is no better than the size before ends the trial, so that the
            memory of the larger ones is never taken.
        trials: batches of each size.
    """

    def __init__(self, candidates: Sequence[int], trials: int):
        self.lock = threading.Lock()
        self.candidates = tuple(candidates)
        self.trials = trials
        self.untried = collections.deque(candidates)
        self.current, self.left = candidates[0], 0
        self.seconds: dict[int, float] = {}

    def next(self) -> int:
        """Images that the next batch should have."""
        with self.lock:
            if self.left == 0 and self.untried:
                if self.is_past_best():
                    self.untried.clear()
                else:
                    self.current, self.left = self.untried.popleft(), self.trials
            if self.left == 0:
                return self.best
            self.left -= 1
            return self.current

    def record(self, size: int, seconds: float) -> None:
        """Note how long the network took for a batch. A size's first batch takes longer, so the best one counts."""
        with self.lock:
            if size in self.candidates:
                self.seconds[size] = min(seconds / size, self.seconds.get(size, float("inf")))

    def is_past_best(self) -> bool:
        """Whether the largest size measured is no better than a smaller one."""
        measured = sorted(self.seconds)
        return len(measured) > 1 and self.seconds[measured[-1]] * NO_BETTER > min(
            self.seconds[s] for s in measured[:-1]
        )

    @property
    def best(self) -> int:
        """The fastest size so far; of sizes that hardly differ the smallest."""
        if not self.seconds:
            return self.candidates[0]
        limit = min(self.seconds.values()) * NO_BETTER
        return min(size for size, seconds in self.seconds.items() if seconds <= limit)


def choose_sizes(model: OnnxModel, batch_size: int | None, threads: int) -> BatchSizes:
    """The batch size that the file or the user prescribes, else those to be tried.

    Raises:
        UsageError: if the two differ.
    """
    if batch_size and model.fixed_batch not in (None, batch_size):
        raise UsageError(f"--batch_size is {batch_size}, but {model.path} takes batches of {model.fixed_batch} only")
    prescribed = model.fixed_batch or batch_size
    # When the next size begins, `threads + 1` batches may still be under way: as many of this size are known then.
    return BatchSizes((prescribed,) if prescribed else CANDIDATES[model.target], 2 * threads + 2)


def classify(model: OnnxModel, images: Images, sizes: BatchSizes, threads: int) -> Iterator[ClassifiedBatch]:
    """Run images through a network, in order.

    Memory does not depend on their number: `threads` batches are under way, and a few batches of logits wait.

    Args:
        model: the network; each call of it is made by one of the threads.
        images: what can be read by number.
        sizes: of the batches; learns from each.
        threads: batches under way at once.

    Raises:
        RunError: if the network fails. An image that cannot be used is no failure; see `ClassifiedBatch.errors`.
    """
    if len(images) >= MANY_IMAGES:
        # Compiled here if it must be, not by every thread.
        find_engine()
    # One more than there are threads: the next batch is there when a thread gets free, and its size is chosen late.
    permits = threading.Semaphore(threads + 1)

    def work(indices: range) -> ClassifiedBatch:
        try:
            return classify_batch(model, images, indices, sizes)
        finally:
            permits.release()

    return map_in_order(work, spans(len(images), sizes, permits), threads, AHEAD * threads)


def spans(images: int, sizes: BatchSizes, permits: threading.Semaphore) -> Iterator[range]:
    """The images' numbers, a batch at a time."""
    start = 0
    while start < images:
        permits.acquire()
        indices = range(start, min(start + sizes.next(), images))
        yield indices
        start = indices.stop


def classify_batch(model: OnnxModel, images: Images, indices: Sequence[int], sizes: BatchSizes) -> ClassifiedBatch:
    """Read, decode, prepare and run some images."""
    batch = model.new_batch(len(indices))
    good: list[int] = []
    errors: dict[int, ImageError] = {}
    for index in indices:
        try:
            model.fill_row(batch[len(good)], read_crop(model, images, index))
            good.append(index)
        except ImageError as error:
            errors[index] = error
    if not good:
        return ClassifiedBatch(good, np.empty((0, model.info.num_classes), np.float32), errors)
    began = time.perf_counter()
    logits = model.run(batch if model.fixed_batch else batch[: len(good)])[: len(good)]
    sizes.record(len(good), time.perf_counter() - began)
    return ClassifiedBatch(good, logits, errors)


def read_crop(model: OnnxModel, images: Images, index: int) -> np.ndarray:
    """The pixels of an image that the network sees: uint8 of shape (S, S, 3).

    Raises:
        ImageError: if it cannot be read or decoded.
    """
    crop = crop_encoded if len(images) >= MANY_IMAGES else crop_by_pillow
    return crop(read_encoded(images, index), images.full_path(index), model.info.preprocess)


def crop_by_pillow(data: bytes, path: str, preprocess: Preprocess) -> np.ndarray:
    """What `crop_encoded` gives, without the compiled engine."""
    return crop_for_evaluation(open_image(data, path), preprocess, path)


def describe_decoder(images: Images) -> str:
    """Who decodes so many images."""
    return describe_engine() if len(images) >= MANY_IMAGES else "decoded by Pillow"
