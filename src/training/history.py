"""How a run went, epoch by epoch: metrics.csv, curves.png and TensorBoard events beside the checkpoints."""

from __future__ import annotations

import contextlib
import csv
import os
import time

from src.common.files import atomic_path, atomic_write

COLUMNS = (
    "epoch",
    "step",
    "loss",
    "learning_rate",
    "images_per_second",
    "eval_loss",
    "top_1",
    "top_5",
    "ema_eval_loss",
    "ema_top_1",
    "ema_top_5",
)


class History:
    """Rows of COLUMNS, one an epoch; a missing value is None.

    Args:
        folder: where the files go.
        rows: of an earlier process of the same run.
        tensorboard: whether to write event files too.
    """

    def __init__(self, folder: str, rows: list[dict] | None = None, tensorboard: bool = False):
        self.folder = folder
        self.rows = list(rows or [])
        first_step = self.rows[-1]["step"] + 1 if self.rows else 0
        self.events = EventFile(os.path.join(folder, "tensorboard"), first_step) if tensorboard else None

    def add(self, row: dict) -> None:
        """Append an epoch and renew the files.

        Raises:
            OSError: if one cannot be written.
        """
        self.rows.append({name: row.get(name) for name in COLUMNS})
        write_metrics(os.path.join(self.folder, "metrics.csv"), self.rows)
        draw_curves(os.path.join(self.folder, "curves.png"), self.rows)
        if self.events:
            scalars = {name: value for name, value in self.rows[-1].items() if name not in ("epoch", "step")}
            self.events.write({name: value for name, value in scalars.items() if value is not None}, row["step"])

    def close(self) -> None:
        """Close the event file."""
        if self.events:
            self.events.close()


class EventFile:
    """A TensorBoard event file of scalars, written by tensorboardX.

    Its SummaryWriter is not used: it writes in a thread, whose failure on a full disk nobody hears of.

    Args:
        folder: where TensorBoard looks.
        first_step: events from this step on that an earlier process left there are hidden, as they will be repeated.
    """

    def __init__(self, folder: str, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.writer = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns()}")
        start = SessionLog(status=SessionLog.START)
        self.writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Append numbers of a step.

        Raises:
            OSError: if they cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        try:
            for name, value in scalars.items():
                self.writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self.writer.flush()
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, self.folder) from None

    def close(self) -> None:
        """Close the file; what could not be written has been said."""
        with contextlib.suppress(OSError):
            self.writer.close()


def write_metrics(path: str, rows: list[dict]) -> None:
    """Write rows as CSV; a missing value is an empty cell."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(path: str, rows: list[dict]) -> None:
    """Draw loss, accuracy and learning rate over the epochs as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    draw_panel(panels[0], rows, {"loss": "training", "eval_loss": "held out", "ema_eval_loss": "held out, averaged"})
    # Early evaluations of a short run may be thousands of times the last.
    panels[0].set_yscale("log")
    panels[0].set_title("loss")
    top = {"top_1": "top-1", "top_5": "top-5", "ema_top_1": "top-1, averaged", "ema_top_5": "top-5, averaged"}
    draw_panel(panels[1], rows, top)
    panels[1].set_title("held-out accuracy")
    draw_panel(panels[2], rows, {"learning_rate": "learning rate"})
    panels[2].set_title("learning rate")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def draw_panel(panel, rows: list[dict], curves: dict[str, str]) -> None:
    """Draw those columns that have values, with a legend."""
    for name, label in curves.items():
        points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            panel.plot(*zip(*points), label=label, marker="." if len(points) < 60 else None)
    panel.set_xlabel("epoch")
    panel.grid(alpha=0.3)
    if panel.lines:
        panel.legend()
