"""Labelled images as a MindSpore data set: `create_dataset` for an epoch, `create_training_stream` for a whole run.

The batches are made by threads in `src/data/batches.py` and `src/data/training_batches.py`, without MindSpore. They
hold the same bytes as in every other program, which all run the same code in `src/images`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Callable

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision

from src.common.cli import RunError
from src.data.batches import BATCHES_AHEAD, EvaluationBatches, Loading, Sharding
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder
from src.data.training_batches import Sampling, Steps, TrainingBatches
from src.images.engine import find_engine


def create_dataset(
    dataset_path: str | ImageFolder,
    do_train: bool,
    batch_size: int = 16,
    device_num: int = 1,
    rank: int = 0,
    *,
    epoch: int = 0,
    loading: Loading | None = None,
    sampling: Sampling | None = None,
) -> ds.Dataset:
    """An epoch of a labelled folder.

    Training: a shuffle of the images, of which rank r takes every device_num-th. Images that do not fill a batch on
    every rank are left out, other ones in each epoch. The same seed, epoch and rank give the same batches; with
    auto_augment the number of threads must be the same too.

    Evaluation: every image once, in order; the last batch may be smaller. Rank r takes images r, r + device_num and so
    on, so that some ranks may have one image more than others.

    Args:
        dataset_path: the folder, or its listing.
        do_train: True shuffles and augments, False prepares an evaluation.
        batch_size: images in a batch.
        device_num: number of ranks that share the images.
        rank: this rank, 0 <= rank < device_num.
        epoch: number of the epoch, from 0, on which order and augmentation depend.
        loading: preprocessing, threads and bad images; the defaults of `Loading` if None. In training another image
            takes the place of a bad one; in evaluation a bad one is black and labelled BAD_LABEL, or left out.
        sampling: order and augmentation in training; the defaults of `Sampling` if None.

    Returns:
        data set with columns image, float32 or uint8 of shape (N, 3, S, S), and label, int32 of shape (N,).

    Raises:
        RunError: if the folder cannot be listed, or its images do not fill a batch to train on.
        ValueError: if batch_size, device_num or rank is out of range.
    """
    folder = dataset_path if isinstance(dataset_path, ImageFolder) else read_image_folder(dataset_path)
    sharding = Sharding(batch_size, device_num, rank)
    if not do_train:
        return as_dataset(EvaluationBatches(folder, sharding, loading or Loading()))
    steps = len(folder) // (batch_size * device_num)
    if steps == 0:
        raise RunError(
            f"{folder.root}: its {len(folder)} images do not fill a batch of {batch_size} on {device_num} devices"
        )
    return create_training_stream(folder, sharding, Steps(steps, epoch + 1, epoch * steps), loading, sampling)


def create_training_stream(
    folder: ImageFolder,
    sharding: Sharding,
    steps: Steps,
    loading: Loading | None = None,
    sampling: Sampling | None = None,
    mix: Callable | None = None,
) -> ds.Dataset:
    """The batches of a run, from any step to its end, as one data set: a data sink needs to see them all.

    Args:
        folder: the listing.
        sharding: batch size and rank.
        steps: which steps of the run.
        loading, sampling: see `create_dataset`.
        mix: function of (images, labels, epoch, number of the batch in the epoch) that returns (images, labels), such
            as mixup; None leaves them.
    """
    loading, sampling = loading or Loading(), sampling or Sampling()
    return as_dataset(
        TrainingBatches(folder, sharding, steps, loading, sampling=sampling, mix=mix, run_policy=run_policy)
    )


def as_dataset(batches: Iterable) -> ds.Dataset:
    """Batches made in Python as a MindSpore data set; `len(batches)` is its size."""
    # Found, and compiled where needed, before threads ask for it.
    find_engine()
    # Read when an iterator is made. The default of 16 is meant for single images, not for gigabytes of batches.
    ds.config.set_prefetch_size(BATCHES_AHEAD)
    return ds.GeneratorDataset(
        batches, ["image", "label"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )


def run_policy(
    images: Callable[[], Iterator[tuple[np.ndarray]]], auto_augment: str, batch_size: int, seed: int, workers: int
) -> Iterator[np.ndarray]:
    """Apply one of MindSpore's augmentation policies to images.

    Args:
        images: generator function of (uint8 array of shape (S, S, 3),).
        auto_augment: "randaugment" or "autoaugment".
        batch_size: images in a batch that is yielded.
        seed: with the number of threads it decides all random numbers.
        workers: number of threads.

    Yields:
        uint8 array of shape (batch_size, S, S, 3).
    """
    # Read when the iterator is made: MindSpore has no seed of a single pipeline; and it takes no more threads than
    # there are cores.
    ds.config.set_seed(seed)
    workers = min(workers, os.cpu_count() or 1)
    dataset = ds.GeneratorDataset(
        images, ["image"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
    dataset = dataset.map(policy_operation(auto_augment), "image", num_parallel_workers=workers)
    dataset = dataset.batch(batch_size, num_parallel_workers=1)
    for (pixels,) in dataset.create_tuple_iterator(num_epochs=1, output_numpy=True):
        yield pixels


def policy_operation(auto_augment: str):
    """MindSpore's operation of RandAugment (Cubuk et al. 2020, two operations of magnitude 9) or AutoAugment (2019)."""
    if auto_augment == "randaugment":
        return vision.RandAugment(2, 9, interpolation=vision.Inter.BILINEAR, fill_value=128)
    policy = vision.AutoAugmentPolicy.IMAGENET
    return vision.AutoAugment(policy, interpolation=vision.Inter.BILINEAR, fill_value=128)
