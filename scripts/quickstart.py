"""What scripts/quickstart.sh does once everything is installed.

Trained weights name two photos; then digits, training, evaluation, export, ONNX, a table. With images of the user, the
same from training on.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

from scripts.quickstart_photos import WEIGHTS, Stages, install_weights, name_photos
from src.common.cli import RunError, run_cli
from src.data.image_folder import fit_classes, read_evaluation_folder
from src.evaluation.metrics import Score
from src.images.bad_images import ImageError
from src.images.preprocess import load_image
from src.preparation.digits import SPLITS, write_digits
from src.preparation.split import LISTS
from src.weights.checkpoint import BEST_NAME
from src.weights.model_info import ModelInfo, info_path

DEFAULT_EPOCHS = 8
LEAST_TOP_1 = 0.97

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


def main(argv=None) -> None:
    """Run all stages and print the table: on the user's own images where they are named, else on the digits."""
    epochs, out, install_seconds, data = argv or sys.argv[1:]
    stages = Stages()
    stages.seconds["install"] = float(install_seconds)
    if data:
        learn_images(stages, data, os.path.join(out, os.path.basename(os.path.abspath(data))), epochs)
    else:
        learn_digits(stages, out, int(epochs or DEFAULT_EPOCHS))


def learn_digits(stages: Stages, out: str, epochs: int) -> None:
    """Name two photos with trained weights; then train on the digits from nothing, and examine what was learned."""
    photos = name_photos(stages, os.path.join(out, "photos"))
    data = make_digits(stages, os.path.join(out, "digits"))
    folder = os.path.join(out, f"epochs_{epochs}")
    checkpoint = train(stages, data, folder, epochs)
    result, onnx_result = examine(stages, checkpoint, os.path.join(data, "val"), os.path.join(folder, "b0"))
    if photos:
        print(f"photos in words: {shorten(photos)}")
    check_results(result, onnx_result, epochs)


def learn_images(stages: Stages, data: str, folder: str, epochs: str) -> None:
    """Fine-tune published weights on the user's images, and examine what was learned on those held out.

    Args:
        data: class folders or a list, as `train.py` takes them.
        folder: where everything goes.
        epochs: how many, or empty for what the recipe chooses.
    """
    if not install_weights():
        print(f"weights: {WEIGHTS} could not be installed; train.py looks for them elsewhere", flush=True)
    flags = ["--recipe", "finetune", "--dataset_path", data, "--save_checkpoint_path", folder, "--resume", "auto"]
    stages.run("train", "train.py", *flags, *(["--epoch_size", epochs] if epochs else []))
    run_folder = os.path.join(folder, "model_0")
    listed = os.path.join(run_folder, LISTS["val"])
    held_out = listed if os.path.exists(listed) else data
    result, onnx_result = examine(stages, os.path.join(run_folder, BEST_NAME), held_out, os.path.join(folder, "model"))
    print(f"what went wrong, with pictures: {shorten(os.path.join(run_folder, 'report.html'))}")
    check_same(result, onnx_result)


def examine(stages: Stages, checkpoint: str, held_out: str, name: str) -> tuple[tuple, tuple]:
    """Evaluate a checkpoint, export it, run the exported files, and print the table.

    Args:
        held_out: images that it was not trained on.
        name: of the exported files, without a suffix.

    Returns:
        Top-1 and top-5 of the checkpoint, and those of the ONNX file.
    """
    images = ("--dataset_path", held_out, "--skip_bad_images")
    result = parse_result(stages.run("evaluate", "eval.py", *images, "--checkpoint_path", checkpoint))
    files = {kind: f"{name}.{kind.lower()}" for kind in ("ONNX", "MINDIR")}
    for kind, file in files.items():
        flags = ("--checkpoint_path", checkpoint, "--file_name", file, "--file_format", kind)
        stages.run(f"export {kind}", "export.py", *flags)
    onnx_result = parse_onnx_result(stages.run("run ONNX", "infer_onnx.py", "--onnx_path", files["ONNX"], *images))
    mindir_result = run_mindir(stages, files["MINDIR"], held_out)
    rows = [("checkpoint", result, checkpoint), ("ONNX", onnx_result, files["ONNX"])]
    print_table(stages, [*rows, ("MINDIR", mindir_result, files["MINDIR"])])
    return result, onnx_result


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
    folder = fit_classes(read_evaluation_folder(data), info.class_names, info.num_classes)
    score, run = Score(), open_mindir(path, 1)
    for index, label in enumerate(folder.labels):
        # One that cannot be decoded was named by the programs before.
        with contextlib.suppress(ImageError):
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


def check_same(result, onnx_result) -> None:
    """Refuse an exported file that is another network than its checkpoint.

    Raises:
        RunError: one sentence.
    """
    if onnx_result[0] != result[0]:
        raise RunError(f"the ONNX file's top-1 is {onnx_result[0]}, the checkpoint's {result[0]}; they must be equal")


def check_results(result, onnx_result, epochs: int) -> None:
    """Refuse a run whose network has not learned, or whose exported file is another network.

    Raises:
        RunError: one sentence.
    """
    check_same(result, onnx_result)
    if epochs >= DEFAULT_EPOCHS and result[0] < LEAST_TOP_1:
        raise RunError(f"the held-out top-1 is {result[0]:.4f}, expected at least {LEAST_TOP_1}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
