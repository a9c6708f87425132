"""The training log and progress: the model card's line for each epoch, a bar on a terminal, plain lines in a file."""

from __future__ import annotations

import dataclasses
import sys
import time

import numpy as np
from tqdm import tqdm

from src.common.cli import SECONDS_BETWEEN_LINES


@dataclasses.dataclass(eq=False)
class Monitor:
    """Says how a run is going.

    Args:
        steps_per_epoch: steps of a whole epoch.
        epochs: epochs of the whole run.
        learning_rates: float array, the rate of every update.
        steps_per_update: batches that make one update.
        images_per_step: images of a step, over all ranks.
        log_interval: steps between two plain lines; a line comes every SECONDS_BETWEEN_LINES at the latest.
        terminal: whether to draw a bar; None asks standard error.
        evaluates: whether epochs are followed by evaluations, whose time nobody knows beforehand.
    """

    steps_per_epoch: int
    epochs: int
    learning_rates: np.ndarray
    steps_per_update: int
    images_per_step: int
    log_interval: int
    terminal: bool | None = None
    evaluates: bool = False

    def __post_init__(self):
        self.terminal = sys.stderr.isatty() if self.terminal is None else self.terminal
        self.bar = None
        self.recent: list[tuple[float, int]] = []
        self.said_at = 0.0
        self.calls = 0
        self.began_at_step: int | None = None
        self.has_estimated = False

    def learning_rate(self, step: int) -> float:
        """The rate that step number `step` (from 1) of the run used."""
        update = (step - 1) // self.steps_per_update
        return float(self.learning_rates[min(update, len(self.learning_rates) - 1)])

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.bar is not None:
            self.bar.clear()
        print(text, flush=True)
        self.said_at = time.perf_counter()
        if self.bar is not None:
            self.bar.refresh()

    def begin_epoch(self, epoch: int, steps_done: int) -> None:
        """Start the bar of an epoch that may have been begun by an earlier process."""
        self.said_at = time.perf_counter()
        self.recent = [(self.said_at, steps_done)]
        if self.began_at_step is None:
            self.began_at_step = (epoch - 1) * self.steps_per_epoch + steps_done
        if self.terminal:
            self.bar = tqdm(
                total=self.steps_per_epoch,
                initial=steps_done,
                desc=f"epoch {epoch}/{self.epochs}",
                unit="step",
                leave=False,
                dynamic_ncols=True,
            )

    def step(self, step: int, loss: float) -> None:
        """Show a step: its number in the run (from 1) and its loss."""
        done = (step - 1) % self.steps_per_epoch + 1
        # Several steps may have passed since the last call.
        is_due = done // self.log_interval > self.recent[-1][1] // self.log_interval
        self.calls += 1
        if self.calls == 2 and len(self.recent) > 1:
            # The first step, which compiles the graph, has passed.
            del self.recent[0]
        self.recent = [*self.recent[-20:], (time.perf_counter(), done)]
        if self.calls == 1:
            self.say_first_step()
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {loss:.3f}, lr {self.learning_rate(step):.3g}, {self.images_per_second():.0f} images/s",
                refresh=False,
            )
            self.bar.update(done - self.bar.n)
        elif done < self.steps_per_epoch and (is_due or self.is_silent()):
            left = self.steps_per_epoch * self.epochs - step
            self.say(
                f"epoch {(step - 1) // self.steps_per_epoch + 1}: step {done}/{self.steps_per_epoch}, "
                f"loss: {loss:.3f}, "
                f"lr: {self.learning_rate(step):.3g}, {self.images_per_second():.1f} images/s, "
                f"time left: {format_seconds(left * self.seconds_per_step())}"
            )
        if self.calls > 1 and not self.has_estimated:
            self.say_estimate(step)

    def is_silent(self) -> bool:
        """Whether the last line was long ago."""
        return time.perf_counter() - self.said_at >= SECONDS_BETWEEN_LINES

    def say_first_step(self) -> None:
        """Say how long the first step took, or the first ones where the device runs several at once."""
        (start, before), (end, after) = self.recent
        steps = "first step" if after - before == 1 else f"first {after - before} steps"
        self.say(f"{steps}: {end - start:.1f} s, compilation included")

    def say_estimate(self, step: int) -> None:
        """Say once how long an epoch and the run will take, as soon as that is known well enough."""
        (start, first), (end, last) = self.recent[0], self.recent[-1]
        steps, seconds = last - first, end - start
        if not (steps >= 20 or steps >= 3 and seconds >= 5 or steps and last == self.steps_per_epoch):
            return
        self.has_estimated = True
        total = self.steps_per_epoch * self.epochs
        whole = self.began_at_step == 0
        run = (total if whole else total - step) * self.seconds_per_step()
        self.say(
            f"estimate: an epoch takes about {format_seconds(self.steps_per_epoch * self.seconds_per_step())}, "
            f"{'the run' if whole else 'what is left of the run'} about {format_seconds(run)}"
            f"{', evaluations apart' if self.evaluates else ''}"
        )

    def end_epoch(self, epoch: int, seconds: float, steps: int, mean_loss: float) -> None:
        """Print the model card's line, in milliseconds, and close the bar."""
        self.close()
        print(
            f"epoch {epoch}: epoch time: {seconds * 1000:.3f}, per step time: {seconds * 1000 / steps:.3f}, "
            f"avg loss: {mean_loss:.3f}",
            flush=True,
        )
        self.said_at = time.perf_counter()

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def seconds_per_step(self) -> float:
        """Over the last steps; the first, which compiles the graph, leaves with the second."""
        (start, first), (end, last) = self.recent[0], self.recent[-1]
        return (end - start) / max(1, last - first)

    def images_per_second(self) -> float:
        """Over the last steps and all ranks."""
        return self.images_per_step / max(1e-9, self.seconds_per_step())


def format_seconds(seconds: float) -> str:
    """Hours, minutes and seconds: 3:04:05 or 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
