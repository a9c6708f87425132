"""Many images through an ONNX file: reading, decoding, preprocessing and the network overlap in threads.

A thread takes some images from the file names to the logits, and the network runs within that thread. On a CPU nothing
is handed from thread to thread and nobody waits for a partner: some threads decode while others are in the network. On
a GPU or NPU the same threads keep the device fed; an NPU's batches are run by a thread of its own.
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
TURN = 8
"""Images that a thread decodes before the network sees the first: decoder and network take each other's caches."""
AHEAD = 4
"""Turns of each thread that may be finished or waiting before the first of them is asked for; only logits wait."""


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

    Memory does not depend on their number: each thread has one turn under way, and the logits of a few turns wait.

    Args:
        model: the network; each call of it is made by one of the threads.
        images: what can be read by number.
        batch_size: images that one call takes, but for the last.
        threads: calls at once.

    Yields:
        ClassifiedBatch, of one turn.

    Raises:
        RunError: if the network fails. An image that cannot be used is no failure; see `ClassifiedBatch.errors`.
    """
    if len(images) >= MANY_IMAGES:
        # Compiled here if it must be, not by every thread.
        find_engine()

    def work(indices: range) -> ClassifiedBatch:
        return classify_turn(model, images, indices, batch_size)

    return map_in_order(work, take_turns(len(images), batch_size, threads), threads, AHEAD * threads)


def take_turns(images: int, batch_size: int, threads: int) -> Iterator[range]:
    """Numbers of images in turns of whole batches, smaller ones towards the end, so that all threads end together."""
    start = 0
    while start < images:
        batches = min(TURN, (images - start) // (2 * threads)) // batch_size
        stop = min(images, start + max(1, batches) * batch_size)
        yield range(start, stop)
        start = stop


def classify_turn(model: OnnxModel, images: Images, indices: Sequence[int], batch_size: int) -> ClassifiedBatch:
    """Read, decode, prepare and run some images."""
    crops: dict[int, np.ndarray] = {}
    errors: dict[int, ImageError] = {}
    for index in indices:
        try:
            crops[index] = read_crop(model, images, index)
        except ImageError as error:
            errors[index] = error
    pixels = list(crops.values())
    logits = [run_crops(model, pixels[i : i + batch_size]) for i in range(0, len(pixels), batch_size)]
    none = np.empty((0, model.info.num_classes), np.float32)
    return ClassifiedBatch(list(crops), np.concatenate([none, *logits]), errors)


def run_crops(model: OnnxModel, crops: Sequence[np.ndarray]) -> np.ndarray:
    """Logits of a batch of crops."""
    batch = model.new_batch(len(crops))
    for row, crop in zip(batch, crops):
        model.fill_row(row, crop)
    return model.run(batch)[: len(crops)]


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
