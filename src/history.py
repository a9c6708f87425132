"""How a run went, epoch by epoch: metrics.csv, curves.png and TensorBoard events beside the checkpoints."""

from __future__ import annotations

import csv
import os

from src.cli import atomic_path, atomic_write

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
        self.writer = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            # Events of steps that this process will repeat are hidden, not shown twice.
            purge = self.rows[-1]["step"] + 1 if self.rows else None
            self.writer = SummaryWriter(os.path.join(folder, "tensorboard"), purge_step=purge)

    def add(self, row: dict) -> None:
        """Append an epoch and renew the files."""
        self.rows.append({name: row.get(name) for name in COLUMNS})
        write_metrics(os.path.join(self.folder, "metrics.csv"), self.rows)
        draw_curves(os.path.join(self.folder, "curves.png"), self.rows)
        if self.writer:
            for name, value in self.rows[-1].items():
                if value is not None and name not in ("epoch", "step"):
                    self.writer.add_scalar(name, value, row["step"])
            self.writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self.writer:
            self.writer.close()
            self.writer = None


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
