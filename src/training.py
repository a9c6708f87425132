"""What happens around the compiled step: epochs, log, evaluation, checkpoints, stopping and going on."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import time
from collections.abc import Callable

import mindspore as ms
from mindspore import nn

from src.checkpoint import (
    BEST_NAME,
    Checkpoint,
    Weights,
    build_network,
    checkpoint_name,
    find_checkpoints,
    load_weights,
    model_parameters,
    read_checkpoint,
    write_checkpoint,
)
from src.cli import RunError, UsageError, atomic_path
from src.config import Config
from src.device import Device
from src.evaluation import evaluate, sum_over_ranks
from src.history import History
from src.metrics import Score
from src.model_info import ModelInfo
from src.Monitor import Monitor
from src.train_step import TrainStep

# What a resumed run may change: where things are, how they are shown, and which device computes.
FREE_TO_CHANGE = frozenset(
    """dataset_path eval_dataset_path device_target device_id num_workers save_checkpoint save_checkpoint_epochs
    save_checkpoint_steps keep_checkpoint_max save_checkpoint_path resume pretrained eval_interval early_stop
    tensorboard log_interval sink_size max_bad_images run_modelarts data_url train_url""".split()
)


@dataclasses.dataclass
class Progress:
    """Where a run stands.

    Attributes:
        steps_per_epoch, epochs: the whole run.
        step: completed steps.
        epoch_seconds: time spent in the epoch that is under way, by earlier processes too.
        best: top_1, epoch and weights ("raw" or "ema") of the best evaluation, or None.
        since_best: evaluations since then.
        rows: of `History`.
    """

    steps_per_epoch: int
    epochs: int
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

    def as_state(self) -> dict:
        """As plain JSON types, for the checkpoint."""
        return dataclasses.asdict(self)


class StopRequest:
    """SIGTERM and SIGINT ask for a stop after the step; a second one leaves at once.

    Attributes:
        signal: number of the signal that came, or 0.
    """

    def __init__(self):
        self.signal = 0
        self.previous: dict = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        """Remember the first signal, obey the second."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0


class CheckpointFolder:
    """The checkpoints of one rank: written whole, the oldest removed only after the newest stands.

    Args:
        folder: such as ./checkpoint/model_0.
        keep: how many are kept, beside the best.
        info: what the weights expect.
        device: its rank is part of the file names.
    """

    def __init__(self, folder: str, keep: int, info: ModelInfo, device: Device):
        self.folder = folder
        self.keep = keep
        self.info = info
        self.device = device

    def save(self, step_cell: TrainStep, progress: Progress, config: Config, epoch_seconds: float) -> str:
        """Write a checkpoint and then remove those beyond `keep`.

        Args:
            epoch_seconds: time spent so far in the epoch that is under way.

        Returns:
            str, its path.

        Raises:
            OSError, RunError: if it could not be written; earlier ones are intact.
        """
        name = checkpoint_name(self.info.variant, self.device.rank, progress.epoch, progress.step_in_epoch)
        path = os.path.join(self.folder, name)
        state = {
            "progress": {**progress.as_state(), "epoch_seconds": epoch_seconds},
            "config": config.as_dict(),
            "rank_size": self.device.rank_size,
        }
        write_checkpoint(
            path,
            network_weights(step_cell.network),
            self.info,
            step_cell.average_weights(),
            {name: parameter.asnumpy() for name, parameter in step_cell.training_parameters().items()},
            state,
        )
        for old in find_checkpoints(self.folder)[self.keep :]:
            os.remove(old)
        return path

    def save_best(self, path: str) -> str:
        """Keep a copy of a checkpoint as the best."""
        best = os.path.join(self.folder, BEST_NAME)
        with atomic_path(best) as temporary:
            shutil.copyfile(path, temporary)
        return best


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
        called = run_context.original_args()
        progress = self.progress
        progress.step = self.first_step + called.cur_step_num
        loss = float(called.net_outputs.asnumpy())
        self.check_finite(loss)
        self.monitor.step(progress.step, loss)
        if progress.step % progress.steps_per_epoch == 0:
            self.finish_epoch(run_context)
        elif self.config.save_checkpoint_steps and progress.step_in_epoch % self.config.save_checkpoint_steps == 0:
            self.save()
        if self.stop.signal:
            self.save()
            run_context.request_stop()

    def check_finite(self, loss: float) -> None:
        """Stop a run whose loss is no number.

        Raises:
            RunError: with the step, the rate and what to try.
        """
        if math.isfinite(loss):
            return
        self.monitor.close()
        saved = find_checkpoints(self.checkpoints.folder)[:1] if self.checkpoints else []
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint had been saved"
        rate = self.monitor.learning_rate(self.progress.step)
        raise RunError(
            f"the loss became {loss} at step {self.progress.step_in_epoch} of epoch {self.progress.epoch} with "
            f"learning rate {rate:.3g}; try a smaller --lr_max, more --warmup_epochs or --clip_norm 5 ({kept})"
        )

    def finish_epoch(self, run_context) -> None:
        """Log the epoch, evaluate, record, save, and see whether to stop early."""
        progress = self.progress
        seconds = time.perf_counter() - self.clock
        steps = progress.steps_per_epoch
        mean_loss = self.step_cell.take_loss_sum() / steps
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
        if last or progress.epoch % self.config.save_checkpoint_epochs == 0 or is_best:
            self.save(is_best)
        if self.config.early_stop and progress.since_best >= self.config.early_stop and not last:
            self.monitor.say(f"stopped early: no better top-1 in {progress.since_best} evaluations")
            run_context.request_stop()
        self.clock = time.perf_counter()
        self.first_step_of_epoch = progress.step
        if not last:
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
        """Save the state after this step, if this rank saves and has not done so."""
        if self.checkpoints is None or not self.config.save_checkpoint or self.saved_step == self.progress.step:
            return
        within_epoch = self.progress.step_in_epoch != self.progress.steps_per_epoch
        epoch_seconds = self.progress.epoch_seconds + time.perf_counter() - self.clock if within_epoch else 0.0
        path = self.checkpoints.save(self.step_cell, self.progress, self.config, epoch_seconds)
        self.saved_step = self.progress.step
        if is_best:
            self.checkpoints.save_best(path)


def find_resume(resume: str, folder: str, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The checkpoint to go on from.

    Args:
        resume: a path, or "auto" for the newest in `folder` that verifies.
        folder: the run's checkpoints.
        say: told of those passed over.

    Returns:
        Checkpoint, or None where "auto" finds nothing: the run begins.

    Raises:
        RunError: if the named file cannot be used.
    """
    if resume != "auto":
        return read_checkpoint(resume)
    for path in find_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except RunError as error:
            say(f"passed over: {error}")
    return None


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


def fit_classifier(checkpoint: Checkpoint, info: ModelInfo, network: nn.Cell) -> Weights:
    """Weights of a checkpoint for a network; with another class count its dense layer keeps its own start.

    Raises:
        UsageError: if the checkpoint is of another variant, padding or epsilon.
    """
    for name, flag in (("variant", "variant"), ("padding", "padding"), ("norm_eps", "norm_eps")):
        before, now = getattr(checkpoint.info, name), getattr(info, name)
        if before != now:
            raise UsageError(f"--{flag} is {now}, but {checkpoint.path} was trained with {before}")
    weights = checkpoint.ema or checkpoint.weights
    if checkpoint.info.num_classes == info.num_classes:
        return weights
    fresh = network_weights(network)
    return {name: fresh[name] if name.startswith("classifier.") else value for name, value in weights.items()}


def evaluator(info: ModelInfo, batches: Callable, smooth_factor: float) -> Callable[[Weights], Score]:
    """A function from weights to their score on a held-out set.

    It uses a network of its own, so that the one in training keeps its state and its compiled graph.

    Args:
        info: the network.
        batches: called for an iterable of (images, labels) of the set.
        smooth_factor: of the training loss.
    """
    network = build_network(info)
    network.set_train(False)

    def score(weights: Weights) -> Score:
        load_weights(network, weights)
        return sum_over_ranks(evaluate(network, batches(), smooth_factor))

    return score
