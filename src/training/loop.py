"""What happens around the compiled step: epochs, log, evaluation, checkpoints, stopping and going on."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from src.common.cli import RunError, UsageError
from src.config import Config
from src.evaluation.evaluate import evaluate, sum_over_ranks
from src.evaluation.metrics import Score
from src.Monitor import Monitor
from src.runtime.collective import count_ranks, sum_floats, take_from_rank_0
from src.training.history import History
from src.training.run_folder import CheckpointFolder
from src.training.step import TrainStep
from src.weights.checkpoint import Checkpoint, Weights, find_checkpoints, load_weights, model_parameters
from src.weights.model_info import ModelInfo

# What a resumed run may change: where things are, how they are shown, and which device computes.
FREE_TO_CHANGE = frozenset(
    """dataset_path eval_dataset_path device_target device_id kernels keep_graph num_workers save_checkpoint
    save_checkpoint_epochs save_checkpoint_steps keep_checkpoint_max save_checkpoint_path resume pretrained
    eval_interval early_stop tensorboard log_interval sink_size max_bad_images run_modelarts data_url
    train_url""".split()
)

SECONDS_FOR_OTHERS = 2.0
STATISTICS = ("moving_mean", "moving_variance")


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        steps_per_epoch, epochs: the whole run.
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

    def as_state(self) -> dict:
        """As plain JSON types, for the checkpoint."""
        return dataclasses.asdict(self)


class StopRequest:
    """SIGTERM and SIGINT ask for a stop after the step; a second one leaves at once.

    Python runs signal handlers between two instructions of its main thread, which compiling a graph or a long step
    keeps waiting; a thread of our own hears of signals meanwhile.

    Attributes:
        signal: number of the signal that came, to this rank or another; or 0.
        received: number of the signal that came to this rank; or 0.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signal = self.received = 0
        self.previous: dict = {}

    def __enter__(self) -> StopRequest:
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.previous = {number: signal.getsignal(number) for number in self.NUMBERS}
        self.take_signals()
        self.previous_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        threading.Thread(target=self.listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        signal.set_wakeup_fd(self.previous_writer)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        os.close(self.writer)

    def take_signals(self) -> None:
        """Let Python receive the signals: from each compilation of a graph on, MindSpore turns SIGINT into SIGTERM."""
        for number in self.NUMBERS:
            signal.signal(number, lambda number, frame: None)

    def listen(self, reader: int) -> None:
        """Receive the signals, which Python writes to the pipe as one byte each, until the pipe is closed."""
        while received := os.read(reader, 1):
            if received[0] in self.NUMBERS:
                self.receive(received[0])
        os.close(reader)

    def receive(self, number: int) -> None:
        """Remember the first signal, obey the second."""
        if self.received:
            os._exit(128 + number)
        self.signal = self.received = number

    def is_asked(self) -> bool:
        """Whether a signal came to any rank; all ranks call this after the same step and get the same answer."""
        self.take_signals()
        asked = sum_floats([float(self.signal > 0)])[0] > 0
        if asked and not self.signal:
            self.signal = signal.SIGTERM
        return asked

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0


def network_weights(network: nn.Cell) -> Weights:
    """The weights and batch-norm statistics by name."""
    return {name: parameter.asnumpy() for name, parameter in model_parameters(network).items()}


class TrainingLoop(ms.Callback):
    """What follows each step that the device has run; MindSpore's `Model.train` calls it.

    Args:
        step_cell: the compiled step.
        progress: where the run stands; kept up to date.
        monitor: the log.
        config: the resolved parameters.
        checkpoints: where to save, or None on ranks that do not.
        history: where to record, or None.
        evaluate: weights to Score, or None without a held-out set.
        stop: asks for an early end.

    Attributes:
        saved_path: the checkpoint that was written last, or None.
    """

    def __init__(
        self,
        step_cell: TrainStep,
        progress: Progress,
        monitor: Monitor,
        config: Config,
        checkpoints: CheckpointFolder | None,
        history: History | None,
        evaluate: Callable[[Weights], Score] | None,
        stop: StopRequest,
    ):
        self.step_cell = step_cell
        self.progress = progress
        self.monitor = monitor
        self.config = config
        self.checkpoints = checkpoints
        self.history = history
        self.evaluate = evaluate
        self.stop = stop
        self.first_step = progress.step
        self.saved_step = progress.step
        self.saved_path: str | None = None
        self.first_step_of_epoch = progress.step
        self.clock = 0.0

    def on_train_begin(self, run_context) -> None:
        """Start the clock and the first bar."""
        self.clock = time.perf_counter()
        progress = self.progress
        self.monitor.begin_epoch(
            progress.step // progress.steps_per_epoch + 1, progress.step % progress.steps_per_epoch
        )

    def on_train_step_end(self, run_context) -> None:
        """Check, show, and where an epoch ends evaluate and save."""
        self.stop.take_signals()
        called = run_context.original_args()
        progress = self.progress
        progress.step = self.first_step + called.cur_step_num
        loss = float(called.net_outputs.asnumpy())
        if not math.isfinite(loss):
            raise self.diverged(f"the loss became {loss}")
        self.monitor.step(progress.step, loss)
        if progress.step % progress.steps_per_epoch == 0:
            self.finish_epoch(run_context)
        elif self.config.save_checkpoint_steps and progress.step_in_epoch % self.config.save_checkpoint_steps == 0:
            self.save()
        if self.stop.is_asked() and self.can_save:
            self.save()
            run_context.request_stop()

    @property
    def can_save(self) -> bool:
        """Whether rank 0 knows all that a resumed run needs: between two updates each rank has gradients of its own."""
        return count_ranks() == 1 or self.progress.step % self.config.accumulate_steps == 0

    def diverged(self, what: str) -> RunError:
        """The error of a run whose numbers are none any more: with the step, the rate and what to try."""
        self.monitor.close()
        if count_ranks() > 1:
            # The others may still be receiving this step's gradients, and will find the same themselves.
            time.sleep(SECONDS_FOR_OTHERS)
        saved = find_checkpoints(self.checkpoints.folder)[:1] if self.checkpoints else []
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint had been saved"
        rate = self.monitor.learning_rate(self.progress.step)
        # Float16 ends at 65504, which gradients times the loss scale may reach.
        half = self.config.amp_level not in (None, "O0")
        more = f"a --loss_scale below {self.config.loss_scale:g}, " if half else ""
        return RunError(
            f"{what} at step {self.progress.step_in_epoch} of epoch {self.progress.epoch} with learning rate "
            f"{rate:.3g}; try {more}a smaller --lr_max, more --warmup_epochs or --clip_norm 5 ({kept})"
        )

    def finish_epoch(self, run_context) -> None:
        """Log the epoch, evaluate, record, save, and see whether to stop early."""
        progress = self.progress
        seconds = time.perf_counter() - self.clock
        steps = progress.steps_per_epoch
        mean_loss = sum_floats([self.step_cell.take_loss_sum()])[0] / (steps * count_ranks())
        progress.epoch_seconds += seconds
        self.monitor.end_epoch(progress.epoch, progress.epoch_seconds, steps, mean_loss)
        here = progress.step - self.first_step_of_epoch
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": mean_loss,
            "learning_rate": self.monitor.learning_rate(progress.step),
            "images_per_second": here * self.monitor.images_per_step / max(seconds, 1e-9),
        }
        progress.epoch_seconds = 0.0
        last = progress.step == progress.total_steps
        is_best = False
        if self.evaluate and (progress.epoch % self.config.eval_interval == 0 or last):
            is_best = self.evaluate_epoch(row)
        if self.history:
            self.history.add(row)
            progress.rows = self.history.rows
        early = not last and progress.has_stagnated(self.config.early_stop)
        if last or early or is_best or progress.epoch % self.config.save_checkpoint_epochs == 0:
            self.save(is_best)
        if early:
            self.monitor.say(f"stopped early: no better top-1 in {progress.since_best} evaluations")
            run_context.request_stop()
        self.clock = time.perf_counter()
        self.first_step_of_epoch = progress.step
        if not last and not early:
            self.monitor.begin_epoch(progress.epoch + 1, 0)

    def evaluate_epoch(self, row: dict) -> bool:
        """Evaluate the weights and their average, if there is one; whether the better of them is the best so far."""
        progress = self.progress
        candidates = {"raw": network_weights(self.step_cell.network)}
        averaged = self.step_cell.average_weights()
        if averaged:
            candidates["ema"] = averaged
        is_best = False
        for kind, weights in candidates.items():
            score = self.evaluate(weights)
            prefix = "ema_" if kind == "ema" else ""
            row[prefix + "eval_loss"] = score.loss
            row[prefix + "top_1"] = score.top_1_accuracy
            row[prefix + "top_5"] = score.top_5_accuracy
            self.monitor.say(
                f"epoch {progress.epoch}: evaluation{' of the averaged weights' if kind == 'ema' else ''}: "
                f"loss: {score.loss:.3f}, top-1: {score.top_1_accuracy:.4f}, top-5: {score.top_5_accuracy:.4f}"
            )
            if progress.best is None or score.top_1_accuracy > progress.best["top_1"]:
                progress.best = {"top_1": score.top_1_accuracy, "epoch": progress.epoch, "weights": kind}
                is_best = True
        progress.since_best = 0 if is_best else progress.since_best + 1
        return is_best

    def save(self, is_best: bool = False) -> None:
        """Save the state after this step, if this rank saves and has not done so.

        Raises:
            RunError: if a number of it is not finite; it would take a good checkpoint's place.
        """
        progress = self.progress
        if self.checkpoints is None or not self.config.save_checkpoint or self.saved_step == progress.step:
            return
        weights = network_weights(self.step_cell.network)
        training = {name: parameter.asnumpy() for name, parameter in self.step_cell.training_parameters().items()}
        for name, value in {**weights, **training}.items():
            if not np.isfinite(value).all():
                raise self.diverged(f"{name} became infinite or NaN")
        within_epoch = progress.step_in_epoch != progress.steps_per_epoch
        seconds = progress.epoch_seconds + time.perf_counter() - self.clock if within_epoch else 0.0
        state = {
            "progress": {**progress.as_state(), "epoch_seconds": seconds},
            "config": self.config.as_dict(),
            "rank_size": count_ranks(),
        }
        averages = self.step_cell.average_weights()
        self.saved_path = self.checkpoints.save(
            progress.epoch, progress.step_in_epoch, is_best, weights, averages, training, state
        )
        self.saved_step = progress.step


def merge_resumed(config: Config, checkpoint: Checkpoint, rank_size: int) -> Config:
    """Take the parameters of the run that wrote a checkpoint, with what the caller may change.

    Raises:
        UsageError: if a given flag contradicts the run, or the checkpoint is not one of a run.
    """
    saved = checkpoint.state.get("config")
    if not isinstance(saved, dict) or "progress" not in checkpoint.state:
        raise UsageError(
            f"--resume {checkpoint.path}: it holds weights but no training state; --pretrained starts from it"
        )
    if checkpoint.state.get("rank_size", rank_size) != rank_size:
        raise UsageError(
            f"--resume {checkpoint.path}: it was written by {checkpoint.state['rank_size']} ranks, but {rank_size} "
            "run now"
        )
    for name in sorted(config.given - FREE_TO_CHANGE):
        given, before = getattr(config, name), saved.get(name)
        before = tuple(before) if isinstance(before, list) else before
        if given != before:
            raise UsageError(f"--{name} {given} contradicts the resumed run, which has {name} {before}")
    kept = {name: value for name, value in saved.items() if name not in FREE_TO_CHANGE and hasattr(config, name)}
    kept = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    return config.replace(**kept)


def adopt_pretrained(config: Config, checkpoint: Checkpoint) -> Config:
    """Take from trained weights what network they are of and what images they expect, where no flag says otherwise.

    Raises:
        UsageError: if a flag names another variant, padding or epsilon than the weights were trained with.
    """
    info, preprocess = checkpoint.info, checkpoint.info.preprocess
    for name in ("variant", "padding", "norm_eps"):
        now, before = getattr(config, name), getattr(info, name)
        if name in config.given and now != before:
            raise UsageError(f"--{name} is {now}, but {checkpoint.path} was trained with {before}")
    values = {name: getattr(info, name) for name in ("variant", "padding", "norm_eps")}
    values.update({name: getattr(preprocess, name) for name in ("image_size", "interpolation", "mean", "std")})
    values["crop_ratio"] = preprocess.image_size / preprocess.resize
    return config.replace(**{name: value for name, value in values.items() if name not in config.given})


def fit_classifier(checkpoint: Checkpoint, info: ModelInfo, network: nn.Cell) -> Weights:
    """Weights of a checkpoint for a network; with another class count its dense layer keeps its own start."""
    weights = checkpoint.ema or checkpoint.weights
    if checkpoint.info.num_classes == info.num_classes:
        return weights
    fresh = network_weights(network)
    return {name: fresh[name] if name.startswith("classifier.") else value for name, value in weights.items()}


def evaluator(network: nn.Cell, batches: Callable, smooth_factor: float) -> Callable[[Weights], Score]:
    """A function from weights to their score on a held-out set.

    Args:
        network: not the one in training, which keeps its state and its compiled graph.
        batches: called for an iterable of (images, labels) of the set.
        smooth_factor: of the training loss.
    """
    network.set_train(False)

    def score(weights: Weights) -> Score:
        # Each rank has batch-norm statistics of its own; what is scored is what rank 0 saves.
        statistics = {name: value for name, value in weights.items() if name.endswith(STATISTICS)}
        load_weights(network, {**weights, **take_from_rank_0(statistics)})
        return sum_over_ranks(evaluate(network, batches(), smooth_factor))

    return score
