"""The batches of training: their order, their augmentation, and the place in a run from which they go on.

The same (seed, epoch, rank) gives the same batches, so that a resumed run sees what an undisturbed one sees. The number
of threads changes nothing, except with auto_augment, whose random numbers MindSpore draws.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Callable

import numpy as np

from src.data.batches import BAD_LABEL, Batch, Loading, Sharding, fill_batches
from src.data.listing import ImageFolder, read_encoded
from src.images.augment import Augmentation, augment, change_colours, draw_numbers
from src.images.bad_images import ImageError
from src.images.preprocess import normalise


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How training draws its images, and changes them, at random.

    Attributes:
        seed: seed of the order and of the augmentation.
        augmentation: the random changes to each image.
        repeats: how often an image comes in an epoch; see `training_order`.
    """

    seed: int = 1
    augmentation: Augmentation = Augmentation()
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a run that are still to be done; a step takes one batch.

    Attributes:
        per_epoch: steps of an epoch.
        epochs: epochs of the whole run.
        first: number of the first step to do, counted from the run's beginning at 0.

    Raises:
        ValueError: if the run has no such step.
    """

    per_epoch: int
    epochs: int
    first: int = 0

    def __post_init__(self):
        if not 0 <= self.first < self.per_epoch * self.epochs:
            raise ValueError(f"first is {self.first}, but the run has {self.per_epoch * self.epochs} steps")

    def __len__(self) -> int:
        return self.per_epoch * self.epochs - self.first


@dataclasses.dataclass(eq=False)
class TrainingBatches:
    """The batches of one rank, from any step of a run to its end.

    Iterating yields images, float32 or uint8 array of shape (N, 3, S, S), and labels, int32 array of shape (N,), or
    what `mix` makes of the two.

    Args:
        folder: the listing.
        sharding: batch size and rank.
        steps: which steps of the run.
        loading: preprocessing, threads, bad images. The next good image takes the place of a bad one.
        sampling: order and augmentation.
        mix: function of (images, labels, epoch, number of the batch in the epoch) that returns (images, labels), such
            as `src.images.mix.create_mix` gives; None leaves them.
        run_policy: function of (images, auto_augment, batch_size, seed, workers) that applies MindSpore's augmentation
            policies; see `src.dataset.run_policy`.

    Raises:
        RunError: while iterating, if more images are bad than `loading.bad` allows, or all are.
    """

    folder: ImageFolder
    sharding: Sharding
    steps: Steps
    loading: Loading
    sampling: Sampling
    mix: Callable | None
    run_policy: Callable[..., Iterator[np.ndarray]]

    def __post_init__(self):
        self.workers = self.loading.choose_threads(self.sharding.device_num)
        self.bad = self.loading.choose_bad_images(self.folder)
        # More bad images in a row end the run in any case.
        self.most_bad = min(len(self.folder), self.bad.allowed + 1)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first_epoch, skipped = divmod(self.steps.first, self.steps.per_epoch)
        for epoch in range(first_epoch, self.steps.epochs):
            # Where several batches make an update, an epoch ends before those that would not fill one.
            for number, batch in zip(range(skipped, self.steps.per_epoch), self.epoch_batches(epoch, skipped)):
                self.report(batch)
                images, labels = batch.images, batch.labels
                yield self.mix(images, labels, epoch, number) if self.mix else (images, labels)
            skipped = 0

    def epoch_batches(self, epoch: int, skipped: int) -> Iterator[Batch]:
        """The filled batches of an epoch, from number `skipped` on."""
        if self.sampling.augmentation.auto_augment == "none":
            return fill_batches(self.empty_batches(epoch, skipped), self.fill_row, self.workers)
        cropped = fill_batches(self.empty_batches(epoch, 0), self.crop_row, self.workers)
        return fill_batches(self.apply_policy(cropped, epoch, skipped), self.finish_row, self.workers)

    def empty_batches(self, epoch: int, skipped: int) -> Iterator[Batch]:
        """The batches of an epoch before they are filled, from number `skipped` on."""
        seed, size, rank = self.sampling.seed, self.sharding.batch_size, self.sharding.rank
        order = training_order(len(self.folder), seed, epoch, self.sharding.device_num, rank, self.sampling.repeats)
        for number in range(skipped, len(order) // size):
            batch = Batch(order[number * size : (number + 1) * size], self.loading)
            batch.numbers = draw_numbers(len(batch), seed, epoch, rank, number)
            yield batch

    def fill_row(self, batch: Batch, row: int) -> None:
        """Do everything to an image in one go: no policy comes between crop and colours."""
        self.crop_row(batch, row)
        self.finish_row(batch, row)

    def crop_row(self, batch: Batch, row: int) -> None:
        """Read, decode and crop an image; the next good one takes the place of a bad one."""
        first = int(batch.indices[row])
        for turn in range(self.most_bad):
            index = (first + turn) % len(self.folder)
            path = self.folder.full_path(index)
            try:
                data = read_encoded(self.folder, index)
                augmentation, preprocess = self.sampling.augmentation, self.loading.preprocess
                augment(data, path, batch.numbers[row], augmentation, preprocess, batch.planes[row])
                batch.labels[row] = self.folder.labels[index]
                return
            except ImageError as error:
                batch.errors[row].append((path, error))

    def finish_row(self, batch: Batch, row: int) -> None:
        """Change an image's colours and normalise it, where floats are wanted."""
        change_colours(batch.planes[row], batch.numbers[row], self.sampling.augmentation)
        if self.loading.normalised:
            normalise(batch.planes[row].transpose(1, 2, 0), self.loading.preprocess, batch.images[row])

    def apply_policy(self, batches: Iterator[Batch], epoch: int, skipped: int) -> Iterator[Batch]:
        """Apply MindSpore's augmentation policy to each image; yield the batches from number `skipped` on.

        MindSpore's random numbers depend on all that it has drawn, so that skipped images are prepared as well.
        """
        under_way: deque[Batch] = deque()

        def images() -> Iterator[tuple[np.ndarray]]:
            for batch in batches:
                under_way.append(batch)
                for planes in batch.planes:
                    yield (np.ascontiguousarray(planes.transpose(1, 2, 0)),)

        seed = epoch_seed(self.sampling.seed, epoch, self.sharding.rank)
        policy, size = self.sampling.augmentation.auto_augment, self.sharding.batch_size
        for number, pixels in enumerate(self.run_policy(images, policy, size, seed, self.workers)):
            batch = under_way.popleft()
            if number >= skipped:
                batch.planes[:] = pixels.transpose(0, 3, 1, 2)
                yield batch

    def report(self, batch: Batch) -> None:
        """Count the images of a batch that could not be used.

        Raises:
            RunError: if there are too many, or no image is left.
        """
        for path, error in batch.all_errors:
            self.bad.add(path, error, "another image takes its place")
        if (batch.labels == BAD_LABEL).any():
            self.bad.fail(f"{self.folder.root}: none of its {len(self.folder)} images can be decoded")


def training_order(images: int, seed: int, epoch: int, device_num: int, rank: int, repeats: int = 1) -> np.ndarray:
    """The images of a rank in an epoch: every device_num-th of a shuffle that all ranks share, equally many each.

    With `repeats` each image of the shuffle comes that many times in a row, on neighbouring ranks, and is augmented
    anew each time; the epoch keeps its length and leaves other images out (Hoffer et al. 2020, arXiv:1901.09335).

    Returns:
        int array of shape (images // device_num,), numbers of images.
    """
    order = np.repeat(np.random.default_rng([seed, epoch]).permutation(images), repeats)
    return order[rank::device_num][: images // device_num]


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """A seed from 0 to 2**31 - 1 that differs between epochs and ranks."""
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0] & 0x7FFFFFFF)
