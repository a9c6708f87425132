"""How a run went, epoch by epoch: metrics.csv, curves.png and TensorBoard events beside the checkpoints."""

from __future__ import annotations

import contextlib
import csv
import os
import struct
import time
from collections.abc import Iterator

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
        # Those of another version may have other columns.
        self.rows = [{name: row.get(name) for name in COLUMNS} for row in rows or ()]
        self.events = EventFile(os.path.join(folder, "tensorboard"), self.rows) if tensorboard else None

    def add(self, row: dict) -> None:
        """Append an epoch and renew the files.

        Raises:
            OSError: if one cannot be written.
        """
        self.rows.append({name: row.get(name) for name in COLUMNS})
        write_metrics(os.path.join(self.folder, "metrics.csv"), self.rows)
        draw_curves(os.path.join(self.folder, "curves.png"), self.rows)
        if self.events:
            self.events.write(self.rows[-1])

    def close(self) -> None:
        """Close the event file."""
        if self.events:
            self.events.close()


class EventFile:
    """A TensorBoard event file of scalars, written by tensorboardX: one for the whole run.

    A run that goes on writes its earlier epochs anew, at the times when they were written first, and removes what
    earlier processes left: TensorBoard shows one curve, without what they did after the last checkpoint.

    tensorboardX's SummaryWriter is not used: it writes in a thread, whose failure on a full disk nobody hears of.

    Args:
        folder: where TensorBoard looks.
        rows: of the earlier epochs.

    Raises:
        OSError: if the file cannot be written.
    """

    PREFIX = "events.out.tfevents."

    def __init__(self, folder: str, rows: list[dict]):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        old = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name.startswith(self.PREFIX)]
        times = {event.step: event.wall_time for path in old for event in read_events(path)}
        self.writer = EventsWriter(os.path.join(folder, "events"), f".{time.time_ns()}")
        # A TensorBoard that is looking forgets what it has read.
        start = SessionLog(status=SessionLog.START)
        self.writer.write_event(Event(wall_time=time.time(), session_log=start))
        for row in rows:
            self.write(row, times.get(row["step"]))
        for path in old:
            os.remove(path)

    def write(self, row: dict, wall_time: float | None = None) -> None:
        """Append the numbers of an epoch.

        Args:
            row: of `History`.
            wall_time: seconds since 1970; None is now.

        Raises:
            OSError: if they cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time() if wall_time is None else wall_time
        try:
            for name, value in row.items():
                if value is not None and name not in ("epoch", "step"):
                    self.writer.write_event(Event(wall_time=now, step=row["step"], summary=scalar(name, value)))
            self.writer.flush()
        except OSError as error:
            self.close()
            raise OSError(error.errno, error.strerror, self.folder) from None

    def close(self) -> None:
        """Close the file; what could not be written has been said."""
        with contextlib.suppress(OSError):
            self.writer.close()


def read_events(path: str) -> Iterator:
    """The events of a file in TensorFlow's record format, up to the one that a killed process was writing."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    with open(path, "rb") as file:
        # The length, its checksum, the event, its checksum.
        while len(header := file.read(12)) == 12 and struct.unpack("<I", header[8:])[0] == masked_crc32c(header[:8]):
            (length,) = struct.unpack("<Q", header[:8])
            body, checksum = file.read(length), file.read(4)
            if len(checksum) < 4 or struct.unpack("<I", checksum)[0] != masked_crc32c(body):
                return
            yield Event.FromString(body)


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
