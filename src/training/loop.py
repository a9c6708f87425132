"""What happens around the compiled step: epochs, log, evaluation, checkpoints, and the end of a run."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence

import mindspore as ms
import numpy as np

from src.common.cli import RunError
from src.evaluation.chance import FEWEST_FOR_TOP_5, warn_of_evaluation, warn_of_training
from src.evaluation.metrics import Score
from src.Monitor import Monitor
from src.runtime.collective import count_ranks, sum_floats
from src.runtime.device import DRY_RUN
from src.training.history import History
from src.training.run_folder import CheckpointFolder
from src.training.schedule import Progress, Sink
from src.training.step import TrainStep, network_weights
from src.training.stop import StopRequest
from src.weights.checkpoint import find_checkpoints
from src.weights.names import Weights

SECONDS_FOR_OTHERS = 2.0
LARGEST_LOSS = 65504
"""Float16's largest number. Cards that saturate give it, or float32's, where others give infinity."""
LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """When a run evaluates, saves and ends, and what its log advises; the fields are parameters of `src.config`."""

    eval_interval: int = 1
    early_stop: int | None = None
    save_checkpoint: bool = True
    save_checkpoint_epochs: int = 1
    save_checkpoint_steps: int | None = None
    accumulate_steps: int = 1
    amp_level: str | None = None
    loss_scale: float = 1024
    loss_scale_mode: str = "fixed"
    use_label_smooth: bool = True
    label_smooth_factor: float = 0.1
    class_num: int = 1000
    norm_momentum: float = 0.99


@dataclasses.dataclass(eq=False)
class TrainingLoop(ms.Callback):
    """What follows each step that the device has run; MindSpore's `Model.train` calls it.

    Args:
        step_cell: the compiled step.
        progress: where the run stands; kept up to date.
        monitor: the log.
        settings: when to evaluate, save and end.
        checkpoints: where to save, or None on ranks that do not.
        history: where to record, or None.
        evaluate: weights to Score, or None without a held-out set.
        stop: asks for an early end.

    Attributes:
        saved_path: the checkpoint that was written last, or None.
    """

    step_cell: TrainStep
    progress: Progress
    monitor: Monitor
    settings: LoopSettings
    checkpoints: CheckpointFolder | None
    history: History | None
    evaluate: Callable[[Weights], Score] | None
    stop: StopRequest

    def __post_init__(self):
        self.first_step = self.saved_step = self.first_step_of_epoch = self.progress.step
        self.saved_path: str | None = None
        self.clock = 0.0
        self.look, self.looked_at = 1, self.progress.step
        self.overflows, self.scale = self.step_cell.overflow_state()
        # Lines of the signals' thread must not tear the bar.
        self.stop.say = self.monitor.say

    def run(self, batches, sink: Sink | None, others: Sequence[ms.Callback] = ()) -> None:
        """Compute all steps that are left.

        Args:
            batches: MindSpore data set of exactly those steps.
            sink: see `src.training.schedule.choose_sink`; None where the device has no data sink.
            others: what else follows each step.
        """
        model = ms.Model(self.step_cell)
        if sink:
            self.look = sink.look
            left = self.progress.total_steps - self.progress.step
            model.train(
                left // sink.size, batches, callbacks=[self, *others], dataset_sink_mode=True, sink_size=sink.size
            )
        else:
            model.train(1, batches, callbacks=[self, *others], dataset_sink_mode=False)

    def close(self) -> None:
        """Take the bar away and close the files."""
        self.monitor.close()
        if self.history:
            self.history.close()

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
        ends_epoch = progress.step % progress.steps_per_epoch == 0
        save_steps = self.settings.save_checkpoint_steps
        saves = bool(save_steps) and progress.step_in_epoch % save_steps == 0
        # Reading the loss waits for the device. Ranks look after the same steps, a single one whenever it is asked.
        asked = count_ranks() == 1 and self.stop.signal
        if not (ends_epoch or saves or asked or progress.step - self.looked_at >= self.look):
            return
        self.looked_at = progress.step
        loss = float(called.net_outputs.asnumpy())
        self.check_loss(loss, "the loss")
        self.monitor.step(progress.step, loss)
        self.check_overflows()
        if ends_epoch:
            self.finish_epoch(run_context)
        elif saves:
            self.save()
        if self.stop.is_asked() and self.can_save:
            self.save()
            run_context.request_stop()

    def check_loss(self, loss: float, name: str) -> None:
        """Stop at a loss that is infinite or NaN, or what cards that saturate make of these: a largest number, or 0.

        A smoothed loss is never 0, except in a DryRun, which computes nothing.

        Raises:
            RunError: see `diverged`.
        """
        if not math.isfinite(loss):
            raise self.diverged(f"{name} became {loss}")
        if abs(loss) >= LARGEST_LOSS:
            raise self.diverged(f"{name} became {loss:g}, which is no less than float16's largest number,")
        smooths = self.settings.use_label_smooth and self.settings.label_smooth_factor and self.settings.class_num > 1
        if loss == 0 and smooths and DRY_RUN not in os.environ:
            raise self.diverged(f"{name} became 0, which smoothed labels do not allow, and some NPUs make of NaN,")

    def check_overflows(self) -> None:
        """Say which updates a dynamic loss scale has left out, and stop where no scale helps.

        Raises:
            RunError: if gradients overflow at the smallest scale; see `diverged`.
        """
        before, scale_before = self.overflows, self.scale
        self.overflows, self.scale = self.step_cell.overflow_state()
        if self.overflows == before:
            return
        if scale_before <= 1:
            raise self.diverged("the gradients overflowed at a loss scale of 1")
        if self.checkpoints:
            new = self.overflows - before
            self.monitor.say(
                f"overflow: {new} update{'s' * (new > 1)} left out up to step {self.progress.step}, "
                f"{self.overflows} in all; the loss scale was {scale_before:g} and is {self.scale:g} now"
            )

    @property
    def can_save(self) -> bool:
        """Whether rank 0 knows all that a resumed run needs: between two updates each rank has gradients of its own."""
        return count_ranks() == 1 or self.progress.step % self.settings.accumulate_steps == 0

    def diverged(self, what: str) -> RunError:
        """The error of a run with infinite or NaN numbers: it names the step, the learning rate and what to try."""
        self.monitor.close()
        if count_ranks() > 1:
            # The others may still be receiving this step's gradients, and will find the same themselves.
            time.sleep(SECONDS_FOR_OTHERS)
        saved = find_checkpoints(self.checkpoints.folder)[:1] if self.checkpoints else []
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint had been saved"
        rate = self.monitor.learning_rate(self.progress.step)
        # Float16 ends at 65504, which gradients times the loss scale may reach.
        half = self.settings.amp_level not in (None, "O0")
        scale = "--loss_scale_mode dynamic, " if self.settings.loss_scale_mode == "fixed" else ""
        more = f"a --loss_scale below {self.settings.loss_scale:g}, {scale}" if half else ""
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
        self.check_loss(mean_loss, "the mean loss of the epoch")
        progress.epoch_seconds += seconds
        self.monitor.end_epoch(progress.epoch, progress.epoch_seconds, steps, mean_loss)
        rate = self.monitor.learning_rate(progress.step)
        self.say_warning(warn_of_training(mean_loss, self.settings.class_num, rate))
        here = progress.step - self.first_step_of_epoch
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "loss": mean_loss,
            "learning_rate": rate,
            "images_per_second": here * self.monitor.images_per_step / max(seconds, 1e-9),
        }
        progress.epoch_seconds = 0.0
        last = progress.step == progress.total_steps
        is_best = False
        if self.evaluate and (progress.epoch % self.settings.eval_interval == 0 or last):
            is_best = self.evaluate_epoch(row)
        if self.history:
            self.history.add(row)
            progress.rows = self.history.rows
        early = not last and progress.has_stagnated(self.settings.early_stop)
        if last or early or is_best or progress.epoch % self.settings.save_checkpoint_epochs == 0:
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
        classes = self.settings.class_num
        for kind, weights in candidates.items():
            score = self.evaluate(weights)
            prefix = "ema_" if kind == "ema" else ""
            row[prefix + "eval_loss"] = score.loss
            row[prefix + "top_1"] = score.top_1_accuracy
            row[prefix + "top_5"] = score.top_5_accuracy if classes >= FEWEST_FOR_TOP_5 else None
            top_5 = f", top-5: {score.top_5_accuracy:.4f}" if classes >= FEWEST_FOR_TOP_5 else ""
            self.monitor.say(
                f"epoch {progress.epoch}: evaluation{' of the averaged weights' if kind == 'ema' else ''}: "
                f"loss: {score.loss:.3f}, top-1: {score.top_1_accuracy:.4f}{top_5}"
            )
            if kind == "raw":
                self.say_warning(warn_of_evaluation(score.loss, classes, self.settings.norm_momentum))
            if progress.best is None or score.top_1_accuracy > progress.best["top_1"]:
                progress.best = {"top_1": score.top_1_accuracy, "epoch": progress.epoch, "weights": kind}
                is_best = True
        progress.since_best = 0 if is_best else progress.since_best + 1
        return is_best

    def say_warning(self, sentence: str | None) -> None:
        """Print a warning where there is one; ranks have the same, and rank 0 says it."""
        if sentence and self.checkpoints:
            self.monitor.say(sentence)

    def save(self, is_best: bool = False) -> None:
        """Save the state after this step, if this rank saves and has not done so.

        Raises:
            RunError: if a number of it is not finite; it would take a good checkpoint's place.
        """
        progress = self.progress
        if self.checkpoints is None or not self.settings.save_checkpoint or self.saved_step == progress.step:
            return
        weights = network_weights(self.step_cell.network)
        training = {name: parameter.asnumpy() for name, parameter in self.step_cell.training_parameters().items()}
        for name, value in {**weights, **training}.items():
            # Sums of gradients may have overflowed where a dynamic scale will leave their update out.
            spares = self.settings.loss_scale_mode == "dynamic" and name.startswith("gradient_sum")
            if not (spares or (np.abs(value) < LARGEST).all()):
                raise self.diverged(f"{name} became infinite or NaN")
        within_epoch = progress.step_in_epoch != progress.steps_per_epoch
        seconds = progress.epoch_seconds + time.perf_counter() - self.clock if within_epoch else 0.0
        state = {**dataclasses.asdict(progress), "epoch_seconds": seconds}
        averages = self.step_cell.average_weights()
        self.saved_path = self.checkpoints.save(
            progress.epoch, progress.step_in_epoch, is_best, weights, averages, training, state
        )
        self.saved_step = progress.step
