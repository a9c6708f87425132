"""Labelled images as a MindSpore data set: `create_dataset` for an epoch, `create_training_stream` for a run.

Threads read, decode and augment into batches; what they do to an image is `src/images/augment.py` in training and
`src/images/preprocess.py` in evaluation, the same bytes as in every other program because it is the same code.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Callable

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision

from src.common.cli import RunError
from src.common.machine import count_cores
from src.common.parallel import map_in_order
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder, read_encoded
from src.images.augment import Augmentation, augment, change_colours, draw_numbers
from src.images.bad_images import BadImages, ImageError
from src.images.engine import find_engine
from src.images.preprocess import Preprocess, crop_encoded, normalise

BAD_LABEL = -1
"""Label of an evaluation image that could not be decoded: it counts as wrong."""
MAX_DEVICES_ON_HOST = 8
THREADS_PER_CORE = 2
"""Some wait for the disk while others decode."""
CHUNK = 8
"""Images that a thread prepares in one go: each handing over has its price."""
BATCHES_AHEAD = 2
"""Batches that are prepared before they are asked for, and again as many that MindSpore holds."""


def create_dataset(
    dataset_path: str | ImageFolder,
    do_train: bool,
    batch_size: int = 16,
    device_num: int = 1,
    rank: int = 0,
    *,
    preprocess: Preprocess | None = None,
    augment: dict | None = None,
    seed: int = 1,
    epoch: int = 0,
    skip_batches: int = 0,
    num_workers: int | None = None,
    bad: BadImages | None = None,
    normalised: bool = True,
) -> ds.Dataset:
    """An epoch of a labelled folder.

    Training: a shuffle of the images, of which rank r takes every device_num-th; the tail that does not fill a batch on
    every rank is left out, another one in each epoch. The same (seed, epoch, rank) gives the same batches; with
    auto_augment the number of workers must be the same too.

    Evaluation: every image once, in order; the last batch may be smaller; rank r takes images r, r + device_num and so
    on, so that ranks may differ by one image.

    Args:
        dataset_path: the folder, or its listing.
        do_train: augment and shuffle.
        batch_size: images a batch.
        device_num, rank: ranks that share the images.
        preprocess: size, interpolation, mean and std; the default's are those of B0.
        augment: fields of `Augmentation` that differ from its defaults.
        seed, epoch: of the order and the augmentations.
        skip_batches: batches at the beginning that are passed over; the others are what they would have been.
        num_workers: threads; None follows the machine.
        bad: counts images that cannot be decoded, and says how many may be. In training another image takes the place
            of a bad one; in evaluation a bad one is black and labelled BAD_LABEL, or left out where `bad.skip`.
        normalised: float32 for the network; else uint8, a quarter of the bytes, for a network that normalises itself.

    Returns:
        data set with columns image, float32 or uint8 (N, 3, S, S), and label, int32 (N,).

    Raises:
        RunError: if the folder cannot be listed, or has less than a batch to train on.
        ValueError: if batch_size, device_num, rank or skip_batches makes no sense.
    """
    folder = dataset_path if isinstance(dataset_path, ImageFolder) else read_image_folder(dataset_path)
    preprocess = preprocess or Preprocess()
    check_sharding(batch_size, device_num, rank)
    if do_train:
        steps = len(folder) // (batch_size * device_num)
        if steps == 0:
            raise RunError(
                f"{folder.root}: its {len(folder)} images do not fill a batch of {batch_size} on {device_num} devices"
            )
        if not 0 <= skip_batches < steps:
            raise ValueError(f"skip_batches is {skip_batches}, the epoch has {steps} batches")
        return create_training_stream(
            folder,
            steps_per_epoch=steps,
            epochs=epoch + 1,
            first_step=epoch * steps + skip_batches,
            batch_size=batch_size,
            device_num=device_num,
            rank=rank,
            preprocess=preprocess,
            augment=augment,
            seed=seed,
            num_workers=num_workers,
            bad=bad,
            normalised=normalised,
        )
    batches = EvaluationBatches(
        folder,
        np.arange(rank, len(folder), device_num)[skip_batches * batch_size :],
        batch_size,
        preprocess,
        num_workers or THREADS_PER_CORE * count_workers(device_num),
        bad if bad is not None else BadImages(len(folder)),
        normalised,
    )
    return as_dataset(batches)


def create_training_stream(
    folder: ImageFolder,
    *,
    steps_per_epoch: int,
    epochs: int,
    first_step: int = 0,
    mix: Callable | None = None,
    repeats: int = 1,
    bad: BadImages | None = None,
    batch_size: int = 16,
    device_num: int = 1,
    rank: int = 0,
    preprocess: Preprocess | None = None,
    augment: dict | None = None,
    seed: int = 1,
    num_workers: int | None = None,
    normalised: bool = True,
) -> ds.Dataset:
    """All batches of a run from `first_step` on as one data set: what data sink needs to see.

    Args:
        folder: the listing.
        steps_per_epoch, epochs: of the whole run.
        first_step: how many steps are done already.
        mix: function of (images, labels, epoch, batch number) to (images, labels), such as mixup; None leaves them.
        repeats: see `training_order`.
        The others are those of `create_dataset`.
    """
    check_sharding(batch_size, device_num, rank)
    pipeline = TrainingPipeline(
        folder,
        batch_size,
        device_num,
        rank,
        preprocess or Preprocess(),
        Augmentation(**(augment or {})),
        seed,
        num_workers or THREADS_PER_CORE * count_workers(device_num),
        bad if bad is not None else BadImages(len(folder)),
        normalised,
        repeats,
    )
    return as_dataset(TrainingBatches(pipeline, steps_per_epoch, epochs, first_step, mix))


def as_dataset(batches: Iterable) -> ds.Dataset:
    """Batches made in Python as a MindSpore data set; `len(batches)` is its size."""
    # Found, and compiled where needed, before threads ask for it.
    find_engine()
    # Read when an iterator is made. The default of 16 is meant for single images, not for gigabytes of batches.
    ds.config.set_prefetch_size(BATCHES_AHEAD)
    return ds.GeneratorDataset(
        batches, ["image", "label"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )


def check_sharding(batch_size: int, device_num: int, rank: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        ValueError: naming the number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, it must be at least 1")
    if not 0 <= rank < device_num:
        raise ValueError(f"rank is {rank}, it must be from 0 to device_num - 1 = {device_num - 1}")


def count_workers(devices: int = 1) -> int:
    """Cores that prepare images for one device: those that this process may use, shared among the host's devices.

    A process that is bound to some of the cores (as our launcher does) has them for itself.
    """
    cores = count_cores()
    if cores == os.cpu_count():
        cores //= max(1, min(devices, MAX_DEVICES_ON_HOST))
    return max(1, cores)


# Batches that threads fill


class Batch:
    """Images on their way.

    Args:
        indices: int array of shape (N,), their numbers in the listing.
        preprocess: its image_size is S.
        normalised: whether float images are wanted.

    Attributes:
        planes: uint8 array of shape (N, 3, S, S).
        images: float32 array of shape (N, 3, S, S), or the planes themselves.
        labels: int32 array of shape (N,).
        errors: for each image (path, ImageError) of the files that could not be used.
        numbers: for each image the random numbers of its augmentation, in training.
    """

    def __init__(self, indices: np.ndarray, preprocess: Preprocess, normalised: bool):
        shape = (len(indices), 3, preprocess.image_size, preprocess.image_size)
        self.indices = indices
        self.planes = np.empty(shape, np.uint8)
        self.images = np.empty(shape, np.float32) if normalised else self.planes
        self.labels = np.full(len(indices), BAD_LABEL, np.int32)
        self.errors: list[list[tuple[str, ImageError]]] = [[] for _ in indices]
        self.numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)


def fill_batches(batches: Iterable[Batch], fill_row: Callable[[Batch, int], None], workers: int) -> Iterator[Batch]:
    """Batches with every row filled by `fill_row(batch, row)` in threads, in order, a few ahead."""

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
        # The last chunk of a batch is handed on after the others, so the batch is whole.
        if batch is not None:
            yield batch


# Training


class TrainingBatches:
    """The batches of a run from any step on, as the source of one MindSpore data set.

    Args: those of `create_training_stream`.
    """

    def __init__(self, pipeline: TrainingPipeline, steps_per_epoch: int, epochs: int, first_step: int, mix):
        self.pipeline = pipeline
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.first_step = first_step
        self.mix = mix

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.first_step

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first_epoch, skipped = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            batches = self.pipeline.batches(epoch, skipped)
            # Accumulated updates may leave out a batch at the end that would not fill one.
            for number, (images, labels) in zip(range(skipped, self.steps_per_epoch), batches):
                yield self.mix(images, labels, epoch, number) if self.mix else (images, labels)
            skipped = 0


class TrainingPipeline:
    """The augmented batches of one rank, for any epoch.

    Args: those of `create_dataset` and `create_training_stream`.
    """

    def __init__(
        self,
        folder: ImageFolder,
        batch_size: int,
        device_num: int,
        rank: int,
        preprocess: Preprocess,
        augmentation: Augmentation,
        seed: int,
        workers: int,
        bad: BadImages,
        normalised: bool,
        repeats: int = 1,
    ):
        self.folder = folder
        self.batch_size = batch_size
        self.device_num = device_num
        self.rank = rank
        self.preprocess = preprocess
        self.augmentation = augmentation
        self.seed = seed
        self.workers = workers
        self.bad = bad
        self.normalised = normalised
        self.repeats = repeats
        # More bad ones in a row end the run anyhow.
        self.most_bad = min(len(folder), int(bad.max_share * len(folder)) + 1)

    def batches(self, epoch: int, skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images, labels) of an epoch's batches from number `skipped` on.

        Raises:
            RunError: if too many images are bad.
        """
        if self.augmentation.auto_augment == "none":
            batches = fill_batches(self.start(epoch, skipped), self.fill_row, self.workers)
        else:
            cropped = fill_batches(self.start(epoch, 0), self.crop_row, self.workers)
            batches = fill_batches(self.apply_policy(cropped, epoch, skipped), self.finish_row, self.workers)
        for batch in batches:
            self.report(batch)
            yield batch.images, batch.labels

    def start(self, epoch: int, skipped: int) -> Iterator[Batch]:
        """The batches of an epoch, empty."""
        order = training_order(len(self.folder), self.seed, epoch, self.device_num, self.rank, self.repeats)
        for number in range(skipped, len(order) // self.batch_size):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            batch = Batch(indices, self.preprocess, self.normalised)
            batch.numbers = draw_numbers(len(batch), self.seed, epoch, self.rank, number)
            yield batch

    def fill_row(self, batch: Batch, row: int) -> None:
        """All that is done to an image."""
        self.crop_row(batch, row)
        self.finish_row(batch, row)

    def crop_row(self, batch: Batch, row: int) -> None:
        """Read, decode, crop; the next good image takes the place of a bad one."""
        first = int(batch.indices[row])
        for turn in range(self.most_bad):
            index = (first + turn) % len(self.folder)
            path = self.folder.full_path(index)
            try:
                data = read_encoded(self.folder, index)
                augment(data, path, batch.numbers[row], self.augmentation, self.preprocess, batch.planes[row])
                batch.labels[row] = self.folder.labels[index]
                return
            except ImageError as error:
                batch.errors[row].append((path, error))

    def finish_row(self, batch: Batch, row: int) -> None:
        """Colours and, where wanted, floats."""
        change_colours(batch.planes[row], batch.numbers[row], self.augmentation)
        if self.normalised:
            normalise(batch.planes[row].transpose(1, 2, 0), self.preprocess, batch.images[row])

    def apply_policy(self, batches: Iterator[Batch], epoch: int, skipped: int) -> Iterator[Batch]:
        """Batches from number `skipped` on with MindSpore's augmentation policy applied to each image.

        MindSpore's random numbers depend on all that it has drawn, so that skipped images are prepared as well.
        """
        under_way: deque[Batch] = deque()

        def images() -> Iterator[tuple[np.ndarray]]:
            for batch in batches:
                under_way.append(batch)
                for planes in batch.planes:
                    yield (np.ascontiguousarray(planes.transpose(1, 2, 0)),)

        # Read when the iterator is made: MindSpore has no seed of a single pipeline; and it takes
        # no more threads than there are cores.
        ds.config.set_seed(epoch_seed(self.seed, epoch, self.rank))
        workers = min(self.workers, os.cpu_count() or 1)
        dataset = ds.GeneratorDataset(
            images, ["image"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
        )
        dataset = dataset.map(policy_operation(self.augmentation.auto_augment), "image", num_parallel_workers=workers)
        dataset = dataset.batch(self.batch_size, num_parallel_workers=1)
        rows = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
        for number, (pixels,) in enumerate(rows):
            batch = under_way.popleft()
            if number >= skipped:
                batch.planes[:] = pixels.transpose(0, 3, 1, 2)
                yield batch

    def report(self, batch: Batch) -> None:
        """Count what could not be used, in the order of the epoch.

        Raises:
            RunError: if that is too much, or no image is left.
        """
        for path, error in itertools.chain.from_iterable(batch.errors):
            self.bad.add(path, error, "another image takes its place")
        if (batch.labels == BAD_LABEL).any():
            self.bad.fail(f"{self.folder.root}: none of its {len(self.folder)} images can be decoded")


def policy_operation(auto_augment: str):
    """MindSpore's operation of RandAugment (Cubuk et al. 2020, two operations of magnitude 9) or AutoAugment (2019)."""
    if auto_augment == "randaugment":
        return vision.RandAugment(2, 9, interpolation=vision.Inter.BILINEAR, fill_value=128)
    policy = vision.AutoAugmentPolicy.IMAGENET
    return vision.AutoAugment(policy, interpolation=vision.Inter.BILINEAR, fill_value=128)


def training_order(images: int, seed: int, epoch: int, device_num: int, rank: int, repeats: int = 1) -> np.ndarray:
    """The images of a rank in an epoch: every device_num-th of a shuffle that all ranks share, equally many each.

    With `repeats` each image of the shuffle comes so many times in a row, on neighbouring ranks, and is augmented anew
    each time; the epoch keeps its length and leaves other images out (Hoffer et al. 2020, arXiv:1901.09335).
    """
    order = np.repeat(np.random.default_rng([seed, epoch]).permutation(images), repeats)
    return order[rank::device_num][: images // device_num]


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed of its own for every epoch and rank."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] & 0x7FFFFFFF)


# Evaluation


class EvaluationBatches:
    """The batches of an evaluation, prepared ahead in threads, as the source of a MindSpore data set.

    Args:
        order: int array of the images' numbers.
        The others are those of `create_dataset`.
    """

    def __init__(
        self,
        folder: ImageFolder,
        order: np.ndarray,
        batch_size: int,
        preprocess: Preprocess,
        workers: int,
        bad: BadImages,
        normalised: bool,
    ):
        self.folder = folder
        self.order = order
        self.batch_size = batch_size
        self.preprocess = preprocess
        self.workers = workers
        self.bad = bad
        self.normalised = normalised

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in fill_batches(self.start(), self.fill_row, self.workers):
            for path, error in itertools.chain.from_iterable(batch.errors):
                self.bad.add(path, error, "it is left out" if self.bad.skip else "it counts as wrong")
            good = batch.labels != BAD_LABEL
            if good.all() or not self.bad.skip:
                yield batch.images, batch.labels
            elif good.any():
                yield batch.images[good], batch.labels[good]

    def start(self) -> Iterator[Batch]:
        """The batches, empty."""
        for start in range(0, len(self.order), self.batch_size):
            yield Batch(self.order[start : start + self.batch_size], self.preprocess, self.normalised)

    def fill_row(self, batch: Batch, row: int) -> None:
        """An image for the network and its label; black with BAD_LABEL where it cannot be decoded."""
        index = int(batch.indices[row])
        path = self.folder.full_path(index)
        try:
            crop = crop_encoded(read_encoded(self.folder, index), path, self.preprocess)
            batch.labels[row] = self.folder.labels[index]
        except ImageError as error:
            batch.errors[row].append((path, error))
            crop = np.zeros((self.preprocess.image_size, self.preprocess.image_size, 3), np.uint8)
        if self.normalised:
            normalise(crop, self.preprocess, batch.images[row])
        else:
            batch.planes[row] = crop.transpose(2, 0, 1)
