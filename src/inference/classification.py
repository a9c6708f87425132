"""Many images through an ONNX file: reading, decoding, preprocessing and the network overlap in threads.

A thread takes a batch from the file names to the logits, and the network runs within that thread. On a CPU nothing is
handed from thread to thread and nobody waits for a partner: as many batches as threads are under way, some of them
being decoded while others are in the network, and the pixels stay in the core's cache. On a GPU or NPU the same threads
keep the device fed; an NPU's batches are run by a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from src.common.cli import UsageError
from src.common.machine import map_in_order
from src.data.listing import Images, read_encoded
from src.images.bad_images import ImageError
from src.images.decode import open_image
from src.images.engine import describe_engine, find_engine
from src.images.preprocess import Preprocess, crop_encoded, crop_for_evaluation
from src.inference.model import OnnxModel
from src.inference.predictions import ClassifiedBatch

BATCH_SIZES = {"CPU": 1, "GPU": 32, "Ascend": 32}
"""Images a batch where neither the user nor the file prescribes it. On a CPU larger ones leave the cache."""
OPENVINO_BATCH = 4
"""OpenVINO's batches, in which its threads hand over less often."""
MANY_IMAGES = 100
"""From so many on the compiled engine decodes; to compile it on its first use takes longer than a few images."""
AHEAD = 4
"""Batches for each thread that may be finished or waiting before the first of them is asked for; only logits wait."""


def choose_batch_size(model: OnnxModel, batch_size: int | None) -> int:
    """The batch size that the file or the user prescribes, else the device's.

    Raises:
        UsageError: if the two differ.
    """
    if batch_size and model.fixed_batch not in (None, batch_size):
        raise UsageError(f"--batch_size is {batch_size}, but {model.path} takes batches of {model.fixed_batch} only")
    usual = OPENVINO_BATCH if model.engine == "openvino" else BATCH_SIZES[model.target]
    return model.fixed_batch or batch_size or usual


def classify(model: OnnxModel, images: Images, batch_size: int, threads: int) -> Iterator[ClassifiedBatch]:
    """Run images through a network, in order.

    Memory does not depend on their number: `threads` batches are under way, and a few batches of logits wait.

    Args:
        model: the network; each call of it is made by one of the threads.
        images: what can be read by number.
        batch_size: images a batch, but for the last.
        threads: batches under way at once.

    Raises:
        RunError: if the network fails. An image that cannot be used is no failure; see `ClassifiedBatch.errors`.
    """
    if len(images) >= MANY_IMAGES:
        # Compiled here if it must be, not by every thread.
        find_engine()

    def work(start: int) -> ClassifiedBatch:
        return classify_batch(model, images, range(start, min(start + batch_size, len(images))))

    return map_in_order(work, range(0, len(images), batch_size), threads, AHEAD * threads)


def classify_batch(model: OnnxModel, images: Images, indices: Sequence[int]) -> ClassifiedBatch:
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
    logits = model.run(batch if model.fixed_batch else batch[: len(good)])[: len(good)]
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
