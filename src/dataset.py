"""The labelled folder as a MindSpore data set: `create_dataset` for an epoch, `create_training_stream` for a run.

Files are read in Python, in an order that is a function of seed and epoch; decoding and augmentation run in MindSpore's
threads. A file that MindSpore would decode otherwise than Pillow, or not at all, is decoded by Pillow and handed on as
an uncompressed bitmap: one pipeline, the same bytes as `src/preprocess.py`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator

import numpy as np

import src.device  # noqa: F401  sets the log level before MindSpore loads
import mindspore.dataset as ds
from mindspore.dataset import vision
from PIL import Image

from src.cli import RunError
from src.image_folder import ImageFolder, read_image_folder
from src.preprocess import (
    MAX_PIXELS,
    MAX_RESIZED_SIDE,
    ImageError,
    Preprocess,
    crop_for_evaluation,
    open_image,
    read_file,
    resized_size,
)

BAD_LABEL = -1
"""Label of an evaluation image that could not be decoded: it counts as wrong."""


class BadImages:
    """Images that could not be decoded: each is named once, and too many end the run.

    Args:
        images: how many images there are.
        max_share: above this share of them the run fails; 1 never fails.
    """

    def __init__(self, images: int, max_share: float = 1.0):
        self.images = images
        self.max_share = max_share
        self.names: dict[str, str] = {}
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.names)

    def add(self, path: str, error: ImageError, consequence: str) -> None:
        """Count an image and say so on standard error."""
        with self.lock:
            if path in self.names:
                return
            self.names[path] = str(error)
        print(f"warning: {error}; {consequence}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Fail where there are too many.

        Raises:
            RunError: with how many and the first of them.
        """
        if len(self) > self.max_share * self.images:
            first = next(iter(self.names.values()))
            raise RunError(
                f"{len(self)} of {self.images} images cannot be decoded, more than the share of {self.max_share:g} that "
                f"--max_bad_images allows; the first is {first}"
            )


class Files:
    """The source of a pipeline: (encoded image, label) by position.

    Args:
        folder: the listing.
        order: int array of the images' numbers in the order in which they are wanted.
        bad: counts what cannot be decoded.
        replace: give the next image in the place of a bad one (training) instead of a black one labelled BAD_LABEL.
        preprocess: for the size of the black one.
    """

    def __init__(self, folder: ImageFolder, order: np.ndarray, bad: BadImages, replace: bool, preprocess: Preprocess):
        self.folder = folder
        self.order = order
        self.bad = bad
        self.replace = replace
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.int32]:
        index = int(self.order[position])
        # A run of bad images ends at `max_bad_images`; this only keeps a folder of nothing else from looping for ever.
        for _ in range(min(len(self.folder), 1000)):
            path = self.folder.full_path(index)
            try:
                data = encoded_for_mindspore(read_file(path), path, self.preprocess)
                return np.frombuffer(data, np.uint8), self.folder.labels[index]
            except ImageError as error:
                if not self.replace:
                    self.bad.add(path, error, "it counts as wrong")
                    return black_image(self.preprocess.image_size), np.int32(BAD_LABEL)
                self.bad.add(path, error, "another image takes its place")
                self.bad.check()
                index = (index + 1) % len(self.folder)
        raise RunError(f"{self.folder.root}: a thousand images one after the other cannot be decoded")


def black_image(side: int) -> np.ndarray:
    """A black square as an encoded image."""
    return np.frombuffer(encode_bitmap(Image.new("RGB", (side, side))), np.uint8)


def encode_bitmap(image: Image.Image) -> bytes:
    """An image as an uncompressed bitmap, which MindSpore decodes to the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()


def encoded_for_mindspore(data: bytes, path: str, preprocess: Preprocess) -> bytes:
    """The file itself where MindSpore decodes it as Pillow does, else what Pillow decodes, as a bitmap.

    Raises:
        ImageError: if neither can.
    """
    size = plain_jpeg_size(data)
    if size is None:
        image = open_image(data, path)
        data, size = encode_bitmap(image), (image.height, image.width)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(f"{path}: the image has {size[1]} x {size[0]} pixels, more than {MAX_PIXELS} are refused")
    if max(resized_size(*size, preprocess.resize)) > MAX_RESIZED_SIDE:
        raise ImageError(f"{path}: an image of {size[1]} x {size[0]} pixels is too elongated")
    return data


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a whole greyscale or three-channel JPEG of 8 bits, or None for anything else.

    Only markers are looked at (ITU T.81, annex B). A file that does not end with the end-of-image marker may be
    truncated: MindSpore would fill the rest with grey, Pillow says so.
    """
    if data[:3] != b"\xff\xd8\xff" or data[-2:] != b"\xff\xd9":
        return None
    position, end = 2, len(data)
    while position + 9 < end:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits = data[position + 4]
            height, width = (int.from_bytes(data[position + i : position + i + 2], "big") for i in (5, 7))
            whole = marker in (0xC0, 0xC1, 0xC2) and bits == 8 and height > 0 and width > 0
            return (height, width) if whole and data[position + 9] in (1, 3) else None
        if length < 2 or marker == 0xDA:
            return None
        position += 2 + length
    return None


def count_workers(devices_on_host: int = 1) -> int:
    """Threads that prepare images for one device: this machine's cores shared among its devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, devices_on_host))


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed of its own for every epoch and rank."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] & 0x7FFFFFFF)


def training_order(images: int, seed: int, epoch: int, device_num: int, rank: int) -> np.ndarray:
    """The images of a rank in an epoch: every device_num-th of a shuffle that all ranks share."""
    order = np.random.default_rng([seed, epoch]).permutation(images)
    return order[rank::device_num][: images // device_num]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Give operations created in the block their random numbers from `seed`."""
    before = ds.config.get_seed()
    ds.config.set_seed(seed)
    try:
        yield
    finally:
        ds.config.set_seed(before)


def training_operations(
    preprocess: Preprocess,
    random_crop: bool = True,
    crop_scale_min: float = 0.08,
    crop_aspect_max: float = 4 / 3,
    flip: bool = True,
    color_jitter: float = 0.4,
    auto_augment: str = "none",
) -> list:
    """From an encoded image to the network's input, with augmentation.

    Args:
        preprocess: size, mean and std.
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
    return [*operations, vision.Normalize(list(preprocess.mean), list(preprocess.std)), vision.HWC2CHW()]


def evaluation_operations(preprocess: Preprocess) -> list:
    """From an encoded image to the network's input, bit for bit as `src/preprocess.py` does it."""
    if preprocess.interpolation == "bicubic":
        crop = [
            vision.Decode(),
            vision.Resize(preprocess.resize, vision.Inter.PILCUBIC),
            vision.CenterCrop(preprocess.image_size),
        ]
    else:
        # MindSpore's bilinear does not smooth when it shrinks and differs from Pillow's by up to 85 of 255.
        crop = [lambda data: crop_for_evaluation(open_image(data.tobytes(), "the image"), preprocess)]
    return [*crop, vision.Normalize(list(preprocess.mean), list(preprocess.std)), vision.HWC2CHW()]


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
) -> ds.Dataset:
    """An epoch of a labelled folder.

    Training: a shuffle of the images, of which rank r takes every device_num-th; the tail that does not fill a batch on
    every rank is left out, another one in each epoch. The same (seed, epoch, rank) gives the same batches.
    Evaluation: every image once, in order; the last batch may be smaller; rank r takes images r, r + device_num, ...

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
        bad: counts images that cannot be decoded.

    Returns:
        data set with columns image, float32 (N, 3, S, S), and label, int32 (N,).

    Raises:
        RunError: if the folder cannot be listed.
    """
    folder = dataset_path if isinstance(dataset_path, ImageFolder) else read_image_folder(dataset_path)
    preprocess = preprocess or Preprocess()
    bad = bad if bad is not None else BadImages(len(folder))
    workers = min(num_workers or count_workers(device_num), os.cpu_count() or 1)
    if do_train:
        order = training_order(len(folder), seed, epoch, device_num, rank)
        operations_seed = epoch_seed(seed, epoch, rank)
    else:
        order = np.arange(rank, len(folder), device_num)
        operations_seed = seed
    source = Files(folder, order, bad, do_train, preprocess)
    with seeded(operations_seed):
        if do_train:
            operations = training_operations(preprocess, **(augment or {}))
        else:
            operations = evaluation_operations(preprocess)
        dataset = ds.GeneratorDataset(
            source, ["image", "label"], shuffle=False, num_parallel_workers=workers, python_multiprocessing=False
        )
        dataset = dataset.map(operations, "image", num_parallel_workers=workers)
        dataset = dataset.batch(batch_size, drop_remainder=do_train, num_parallel_workers=workers)
        return dataset.skip(skip_batches) if skip_batches else dataset


class TrainingBatches:
    """The batches of a run from any step on, as the source of one MindSpore data set.

    Each epoch has a pipeline of its own, made when the epoch before has been handed on, so that a run that is resumed
    in epoch e sees in it what the undisturbed run saw. A single pipeline over many epochs cannot start in the middle:
    its random numbers depend on all it has drawn.

    Args:
        folder: the listing.
        steps_per_epoch, epochs: of the whole run.
        first_step: how many steps are done already.
        mix: function of (images, labels, epoch, batch number) to (images, labels), such as mixup; None leaves them.
        settings: of `create_dataset`.
    """

    def __init__(self, folder: ImageFolder, steps_per_epoch: int, epochs: int, first_step: int, mix, settings: dict):
        self.folder = folder
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.first_step = first_step
        self.mix = mix
        self.settings = settings

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.first_step

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first_epoch, skipped = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            dataset = create_dataset(self.folder, True, epoch=epoch, skip_batches=skipped, **self.settings)
            batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
            # Accumulated updates may leave out a batch at the end that would not fill one.
            for number, (images, labels) in zip(range(skipped, self.steps_per_epoch), batches):
                yield self.mix(images, labels, epoch, number) if self.mix else (images, labels)
            skipped = 0


def create_training_stream(
    folder: ImageFolder,
    *,
    steps_per_epoch: int,
    epochs: int,
    first_step: int = 0,
    mix=None,
    **settings,
) -> ds.Dataset:
    """All batches of a run from `first_step` on as one data set: what data sink needs to see.

    Args: those of `TrainingBatches`; `settings` are the keyword arguments of `create_dataset`.
    """
    source = TrainingBatches(folder, steps_per_epoch, epochs, first_step, mix, settings)
    return ds.GeneratorDataset(
        source, ["image", "label"], shuffle=False, num_parallel_workers=1, python_multiprocessing=False
    )
