"""How long a run is, how fast it learns, where it stands, and how much of it a device is given at once."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from src.common.cli import UsageError
from src.config import Config
from src.data.listing import ImageFolder
from src.lr_generator import get_lr
from src.runtime.device import Device

ZOO_GLOBAL_BATCH = 2048


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is and how fast it learns.

    Attributes:
        epochs, steps_per_epoch: of the whole run.
        images_per_step: over all ranks.
        global_batch: images whose mean gradient makes an update.
        learning_rates: float32 array, the rate of every update.
    """

    epochs: int
    steps_per_epoch: int
    images_per_step: int
    global_batch: int
    learning_rates: np.ndarray


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        steps_per_epoch, epochs: of the whole run.
        images: how many there are to train on.
        step: completed steps.
        epoch_seconds: time spent in the epoch that is under way, by earlier processes too.
        best: top_1, epoch and weights ("raw" or "ema") of the best evaluation, or None.
        since_best: evaluations since then.
        rows: of `History`.
    """

    steps_per_epoch: int
    epochs: int
    images: int
    step: int = 0
    epoch_seconds: float = 0.0
    best: dict | None = None
    since_best: int = 0
    rows: list = dataclasses.field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict) -> Progress:
        """Read what a checkpoint holds. What a later version added is passed over, what it lacks has its default.

        Raises:
            TypeError, ValueError: if a value is missing that has no default, or is not of its kind.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        read = cls(**{name: value for name, value in values.items() if name in known})
        counts = (read.steps_per_epoch, read.epochs, read.images, read.step, read.since_best)
        sound = (
            all(type(count) is int and count >= 0 for count in counts)
            and min(counts[:3]) > 0
            and read.step <= read.total_steps
            and isinstance(read.epoch_seconds, (int, float))
            and isinstance(read.rows, list)
            and all(isinstance(row, dict) and {"epoch", "step"} <= row.keys() for row in read.rows)
            and all(isinstance(value, (int, float, type(None))) for row in read.rows for value in row.values())
        )
        if sound and read.best is not None:
            sound = isinstance(read.best, dict) and isinstance(read.best.get("top_1"), float)
            sound = sound and type(read.best.get("epoch")) is int and read.best.get("weights") in ("raw", "ema")
        if not sound:
            raise ValueError("it does not say where the run stands")
        return read

    @property
    def epoch(self) -> int:
        """Number, from 1, of the epoch that the last completed step belongs to."""
        return max(1, math.ceil(self.step / self.steps_per_epoch))

    @property
    def step_in_epoch(self) -> int:
        """Number, from 1, of the last completed step within its epoch."""
        return self.step - (self.epoch - 1) * self.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def has_stagnated(self, early_stop: int | None) -> bool:
        """Whether as many evaluations as `early_stop` allows have passed without a better one."""
        return early_stop is not None and self.since_best >= early_stop

    def is_complete(self, early_stop: int | None) -> bool:
        """Whether nothing is left to do."""
        return self.step == self.total_steps or self.has_stagnated(early_stop)


@dataclasses.dataclass(frozen=True)
class Sink:
    """How many steps run without the host.

    Attributes:
        size: steps that the device is given at once.
        look: steps after which the host looks at the loss and for a stop, a multiple of `size`.
    """

    size: int
    look: int


def create_schedule(config: Config, device: Device, folder: ImageFolder) -> Schedule:
    """Whole global batches make an epoch; the rates are scaled to the global batch where asked for.

    Raises:
        UsageError: if there are fewer images than a global batch has.
    """
    images_per_step = config.batch_size * device.rank_size
    global_batch = images_per_step * config.accumulate_steps
    updates = len(folder) // global_batch
    if updates == 0:
        raise UsageError(
            f"a global batch of {global_batch} images is more than the {len(folder)} in {folder.root}; "
            "a smaller --batch_size makes a step"
        )
    rates = create_learning_rates(config, global_batch, updates)
    return Schedule(
        epochs=config.epoch_size,
        steps_per_epoch=updates * config.accumulate_steps,
        images_per_step=images_per_step,
        global_batch=global_batch,
        learning_rates=rates,
    )


def create_learning_rates(config: Config, global_batch: int, updates_per_epoch: int) -> np.ndarray:
    """The rate of every update of the run: float32 array."""
    factor = global_batch / ZOO_GLOBAL_BATCH if config.scale_lr else 1.0
    rates = (rate * factor for rate in (config.lr_init, config.lr_end, config.lr_max))
    return get_lr(*rates, config.warmup_epochs, config.epoch_size, updates_per_epoch, config.lr_decay_mode)


def choose_sink(progress: Progress, most: int, save_steps: int | None) -> Sink:
    """Steps to give to the device at once, so that epochs, checkpoints and the run end between two such groups.

    Where the numbers of steps have no large common divisor, the groups are small, but the host does not wait for each.
    """
    per_epoch, left = progress.steps_per_epoch, progress.total_steps - progress.step
    size = max(n for n in range(1, most + 1) if per_epoch % n == 0 and left % n == 0 and (save_steps or n) % n == 0)
    return Sink(size, size * (most // size))
