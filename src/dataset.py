"""The labelled folder as a MindSpore data set: `create_dataset` for an epoch, `create_training_stream` for a run.

Training runs in MindSpore's threads: a random crop decoded straight from the JPEG, augmentation, batches. A file that
MindSpore would decode otherwise than Pillow, or not at all, is decoded by Pillow and handed on as an uncompressed
bitmap. Evaluation carries out `src/preprocess.py` itself, in threads of its own: the same bytes because the same code.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Callable

import mindspore.dataset as ds
import numpy as np
from mindspore.dataset import vision
from PIL import Image

from src.cli import RunError, describe_os_error
from src.image_folder import ImageFolder, printable, read_image_folder
from src.jpeg import plain_jpeg_size
from src.parallel import map_in_order
from src.preprocess import (
    ImageError,
    Preprocess,
    check_pixels,
    check_shape,
    crop_for_evaluation,
    normalise,
    open_image,
)

BAD_LABEL = -1
"""Label of an evaluation image that could not be decoded: it counts as wrong."""
MAX_DEVICES_ON_HOST = 8
READ_AHEAD = 64
"""Files that each reading thread may be ahead of the decoders."""


class BadImages:
    """Images that could not be decoded: each is named once on standard error, and too many end the run.

    Args:
        images: how many images there are.
        max_share: above this share of them the run fails; 1 never fails.
        skip: leave bad images out of an evaluation instead of counting them as wrong.
    """

    def __init__(self, images: int, max_share: float = 1.0, skip: bool = False):
        self.images = images
        self.max_share = max_share
        self.skip = skip
        self.sentences: dict[str, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.sentences)

    def add(self, path: str, error: Exception, consequence: str) -> None:
        """Count an image, say so, and fail where there are too many.

        Raises:
            RunError: see `check`.
        """
        with self.lock:
            if path not in self.sentences:
                self.sentences[path] = str(error)
                print(f"warning: {printable(str(error))}; {consequence}", file=sys.stderr, flush=True)
        self.check()

    def check(self) -> None:
        """Fail where there are too many.

        Raises:
            RunError: with how many, how many are allowed, and the first of them.
        """
        if len(self) > self.max_share * self.images:
            first = next(iter(self.sentences.values()))
            raise RunError(
                f"{len(self)} of {self.images} images cannot be used, more than the share of {self.max_share:g} that "
                f"--max_bad_images allows; the first: {first}"
            )

    @contextlib.contextmanager
    def as_sentence(self) -> Iterator[None]:
        """Turn the long error that MindSpore makes of a failed `check` in its threads back into its sentence."""
        try:
            yield
        except RuntimeError:
            self.check()
            raise


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
    every rank is left out, another one in each epoch. The same (seed, epoch, rank, number of workers) gives the same
    batches. Evaluation: every image once, in order; the last batch may be smaller; rank r takes images r,
    r + device_num and so on, so that ranks may differ by one image.

    Args:
        dataset_path: the folder, or its listing.
        do_train: augment and shuffle.
        batch_size: images a batch.
        device_num, rank: ranks that share the images.
        preprocess: size, interpolation, mean and std; the default's are those of B0.
        augment: keyword arguments of `training_operations` that differ from its defaults.
        seed, epoch: of the order and the augmentations.
        skip_batches: batches at the beginning that are passed over; the others are what they would have been.
        num_workers: threads; None follows the machine.
        bad: counts images that cannot be decoded, and says how many may be. In training another image takes the place
            of a bad one; in evaluation a bad one is black and labelled BAD_LABEL, or left out where `bad.skip`.
        normalised: float32 for the network; else the uint8 pixels, for a network that normalises them itself.

    Returns:
        data set with columns image, float32 (N, 3, S, S) or uint8 (N, S, S, 3), and label, int32 (N,).

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
        num_workers or count_workers(device_num),
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
        The others are those of `create_dataset`.
    """
    check_sharding(batch_size, device_num, rank)
    pipeline = TrainingPipeline(
        folder,
        batch_size,
        device_num,
        rank,
        preprocess or Preprocess(),
        augment or {},
        seed,
        num_workers or count_workers(device_num),
        bad if bad is not None else BadImages(len(folder)),
        normalised,
    )
    return as_dataset(TrainingBatches(pipeline, steps_per_epoch, epochs, first_step, mix))


def as_dataset(batches: Iterable) -> ds.Dataset:
    """Batches made in Python as a MindSpore data set; `len(batches)` is its size."""
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
    """Threads that prepare images for one device: the cores that this process may use, shared among the host's devices.

    A process that is bound to some of the cores (as our launcher does) has them for itself.
    """
    all_cores = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else all_cores
    if cores == all_cores:
        cores //= max(1, min(devices, MAX_DEVICES_ON_HOST))
    return max(1, cores)


# Training


class TrainingBatches:
    """The batches of a run from any step on, as the source of one MindSpore data set.

    Each epoch has a pipeline of its own, made when the epoch before has been handed on, so that a run that is resumed
    in epoch e sees in it what the undisturbed run saw. A single pipeline over many epochs cannot start in the middle:
    its random numbers depend on all it has drawn.

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
    """MindSpore's pipeline over the files of one rank, for any epoch.

    Args: those of `create_dataset`.
    """

    def __init__(
        self,
        folder: ImageFolder,
        batch_size: int,
        device_num: int,
        rank: int,
        preprocess: Preprocess,
        augment: dict,
        seed: int,
        workers: int,
        bad: BadImages,
        normalised: bool,
    ):
        self.folder = folder
        self.batch_size = batch_size
        self.device_num = device_num
        self.rank = rank
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        # MindSpore refuses more threads than the machine has cores.
        self.workers = min(workers, os.cpu_count() or 1)
        self.bad = bad
        self.normalised = normalised

    def batches(self, epoch: int, skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(images, labels) of an epoch's batches from number `skipped` on.

        Raises:
            RunError: if too many images are bad.
        """
        order = training_order(len(self.folder), self.seed, epoch, self.device_num, self.rank)
        with self.bad.as_sentence():
            expected = skipped * self.batch_size
            for images, labels, indices in self.start(order, epoch_seed(self.seed, epoch, self.rank), skipped):
                self.name_replaced(order[expected : expected + len(indices)], indices)
                expected += len(indices)
                yield images, labels

    def start(self, order: np.ndarray, seed: int, skipped: int) -> Iterator[list[np.ndarray]]:
        """Iterator over (images, labels, indices) of the batches of an order."""
        files = OrderedFiles(lambda index: self.read(index), order, self.workers)
        # Both are read while the iterator is created: MindSpore has no seed or policy of a single pipeline.
        ds.config.set_seed(seed)
        ds.config.set_error_samples_mode(ds.config.ErrorSamplesMode.REPLACE)
        dataset = ds.GeneratorDataset(
            files, ["image", "label", "index"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
        )
        operations = training_operations(self.preprocess, **self.augment)
        if self.normalised:
            operations += [vision.Normalize(list(self.preprocess.mean), list(self.preprocess.std)), vision.HWC2CHW()]
        dataset = dataset.map(operations, "image", num_parallel_workers=self.workers)
        dataset = dataset.batch(self.batch_size, drop_remainder=True, num_parallel_workers=self.workers)
        if skipped:
            dataset = dataset.skip(skipped)
        return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    def read(self, index: int) -> tuple[np.ndarray, np.int32, np.int64]:
        """Image number `index`, or the next good one, for MindSpore to decode: (encoded image, label, index)."""
        for candidate in itertools.islice(itertools.cycle(range(len(self.folder))), index, index + len(self.folder)):
            path = self.folder.full_path(candidate)
            try:
                data = encoded_for_mindspore(read_data(self.folder, candidate), path, self.preprocess)
                return np.frombuffer(data, np.uint8), self.folder.labels[candidate], np.int64(index)
            except ImageError as error:
                self.bad.add(path, error, "another image takes its place")
        raise RunError(f"{self.folder.root}: none of its {len(self.folder)} images can be decoded")

    def name_replaced(self, expected: np.ndarray, indices: np.ndarray) -> None:
        """Count images whose headers looked well and that MindSpore could not decode: it put others in their place."""
        for index in expected[indices != expected]:
            path = self.folder.full_path(int(index))
            error = ImageError(f"{path}: it is not an image that can be decoded (its data are damaged)")
            self.bad.add(path, error, "another image takes its place")


class OrderedFiles:
    """Items of `read(index)` for an order of indices, read ahead in threads."""

    def __init__(self, read: Callable, order: np.ndarray, workers: int):
        self.read = read
        self.order = order
        self.workers = workers

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator:
        return map_in_order(self.read, self.order.tolist(), self.workers, self.workers * READ_AHEAD)


def training_order(images: int, seed: int, epoch: int, device_num: int, rank: int) -> np.ndarray:
    """The images of a rank in an epoch: every device_num-th of a shuffle that all ranks share, equally many each."""
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return order[rank::device_num][: images // device_num]


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed of its own for every epoch and rank."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] & 0x7FFFFFFF)


def training_operations(
    preprocess: Preprocess,
    random_crop: bool = True,
    crop_scale_min: float = 0.08,
    crop_aspect_max: float = 4 / 3,
    flip: bool = True,
    color_jitter: float = 0.4,
    auto_augment: str = "none",
) -> list:
    """From an encoded image to the pixels that the network trains on, uint8 (S, S, 3).

    Args:
        preprocess: its image_size.
        random_crop: random resized crop (Szegedy et al. 2015), straight from the JPEG; else the whole image, resized.
        crop_scale_min: smallest share of the area that a crop takes.
        crop_aspect_max: width by height or height by width of the most elongated crop.
        flip: horizontally, half of the images.
        color_jitter: strength for brightness, contrast and saturation; 0 is off.
        auto_augment: "none", "randaugment" (Cubuk et al. 2020, two operations of magnitude 9) or "autoaugment"
            (Cubuk et al. 2019, the ImageNet policy).
    """
    side = preprocess.image_size
    if random_crop:
        scale, ratio = (crop_scale_min, 1.0), (1 / crop_aspect_max, crop_aspect_max)
        operations = [vision.RandomCropDecodeResize(side, scale, ratio)]
    else:
        operations = [vision.Decode(), vision.Resize((side, side))]
    if flip:
        operations.append(vision.RandomHorizontalFlip())
    if auto_augment == "randaugment":
        operations.append(vision.RandAugment(2, 9, interpolation=vision.Inter.BILINEAR, fill_value=128))
    elif auto_augment == "autoaugment":
        policy = vision.AutoAugmentPolicy.IMAGENET
        operations.append(vision.AutoAugment(policy, interpolation=vision.Inter.BILINEAR, fill_value=128))
    if color_jitter:
        operations.append(vision.RandomColorAdjust(color_jitter, color_jitter, color_jitter))
    return operations


def read_data(folder: ImageFolder, index: int) -> bytes:
    """The encoded image number `index`.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        return folder.read(index)
    except OSError as error:
        raise ImageError(describe_os_error(error)) from None


def encoded_for_mindspore(data: bytes, path: str, preprocess: Preprocess) -> bytes:
    """The file itself where MindSpore decodes it as Pillow does, else what Pillow decodes, as a bitmap.

    Raises:
        ImageError: if neither can.
    """
    size = plain_jpeg_size(data)
    if size is None:
        image = open_image(data, path)
        check_shape(*image.size, preprocess, path)
        return encode_bitmap(image)
    height, width = size
    check_pixels(width, height, path)
    check_shape(width, height, preprocess, path)
    return data


def encode_bitmap(image: Image.Image) -> bytes:
    """An image as an uncompressed bitmap, which MindSpore decodes to the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


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
        ahead = 2 * max(self.batch_size, self.workers)
        rows = map_in_order(self.prepare, self.order.tolist(), self.workers, ahead)
        good = (row for row in rows if row is not None)
        while batch := list(itertools.islice(good, self.batch_size)):
            yield np.stack([image for image, _ in batch]), np.array([label for _, label in batch], np.int32)

    def prepare(self, index: int) -> tuple[np.ndarray, int] | None:
        """An image for the network and its label; black with BAD_LABEL, or None, where it cannot be decoded."""
        path = self.folder.full_path(index)
        side = self.preprocess.image_size
        try:
            image = open_image(read_data(self.folder, index), path)
            crop, label = crop_for_evaluation(image, self.preprocess, path), int(self.folder.labels[index])
        except ImageError as error:
            self.bad.add(path, error, "it is left out" if self.bad.skip else "it counts as wrong")
            if self.bad.skip:
                return None
            crop, label = np.zeros((side, side, 3), np.uint8), BAD_LABEL
        return (normalise(crop, self.preprocess) if self.normalised else crop), label
