"""Run an ONNX file on a folder of class folders, or on single images. Needs neither MindSpore nor PyTorch.

python infer_onnx.py --onnx_path b0.onnx --dataset_path /data/imagenet/val --report report.html
python infer_onnx.py --onnx_path b0.onnx --image cat.jpg 'holiday/*.jpg'
"""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import functools
import json
import sys

import numpy as np

from src import config
from src.common import cli
from src.common.machine import count_cores
from src.data.image_folder import fit_classes, read_evaluation_folder
from src.data.image_list import find_images
from src.evaluation.chance import FEWEST_FOR_TOP_5
from src.evaluation.class_report import ClassTally, check_writable, draw_confusion, import_figure
from src.evaluation.metrics import Score
from src.images.bad_images import UnusableImages
from src.images.preprocess import INTERPOLATIONS
from src.inference.classification import BATCH_SIZES, choose_batch_size, classify, describe_decoder
from src.inference.head import onnx_head
from src.inference.model import OnnxModel, open_model
from src.inference.predictions import TOP_K, tell_predictions
from src.inference.progress import ProgressLine
from src.inference.session import PROVIDERS
from src.inference.settings import GivenSettings, read_class_names
from src.mistakes.report import Report, Subject, add_report_flag


def parse_arguments(argv=None):
    """Read the flags."""
    parser = cli.create_parser(__doc__.splitlines()[0])
    parser.add_argument("--onnx_path", required=True, help="the file; one of export.py says itself what it expects")
    what = parser.add_argument_group("what it is run on, one of the two")
    what.add_argument("--dataset_path", help="folder of class folders, or a list: top-1, top-5 and loss")
    names = "files, folders, patterns such as 'a/*.jpg', or - for the bytes of one image from standard input"
    what.add_argument("--image", nargs="+", help=names)
    add_output_flags(parser.add_argument_group("results"))
    add_machine_flags(parser.add_argument_group("device and speed"))
    add_model_flags(parser.add_argument_group("what a file of another program expects and does not say itself"))
    arguments = parser.parse_args(argv)
    check_arguments(arguments)
    return arguments


def add_output_flags(group) -> None:
    """Flags on what is told."""
    add_report_flag(group)
    group.add_argument("--confusion", metavar="PNG", help="draw the confusion matrix to this file")
    group.add_argument("--top_k", type=cli.positive_int, help=f"classes told of each --image (default: {TOP_K})")
    group.add_argument("--json", action="store_true", help="JSON on standard output, one line for each --image")
    bad = "images that cannot be decoded are left out; else they count as wrong, and the exit code is 1"
    group.add_argument("--skip_bad_images", action="store_true", help=bad)
    factor = "label smoothing of the loss, as in training and eval.py (default: %(default)s)"
    default = config.config.label_smooth_factor if config.config.use_label_smooth else 0.0
    group.add_argument("--label_smooth_factor", type=cli.fraction_below_one, default=default, help=factor)


def add_machine_flags(group) -> None:
    """Flags on where and how it runs."""
    target = cli.choice(*PROVIDERS)
    group.add_argument(
        "--device_target", type=target, help="Ascend, GPU or CPU (default: the first of them that works)"
    )
    group.add_argument("--device_id", type=cli.non_negative_int, help="number of the GPU or NPU (default: 0)")
    engine = "computes on a CPU (default: openvino for int8 files with swish where it is installed, else onnxruntime)"
    group.add_argument("--engine", type=cli.choice("onnxruntime", "openvino"), help=engine)
    group.add_argument("--threads", type=cli.positive_int, help="batches under way at once (default: the cores)")
    sizes = ", ".join(f"{size} on {target}" for target, size in BATCH_SIZES.items())
    group.add_argument("--batch_size", type=cli.positive_int, help=f"images a batch (default: {sizes})")


def add_model_flags(group) -> None:
    """Flags on preprocessing and classes; they may not contradict a file that describes itself."""
    group.add_argument("--image_size", type=cli.positive_int, help="pixels, side of the input")
    group.add_argument("--resize", type=cli.positive_int, help="pixels, the shorter side before the centre is cut out")
    ratio = "image_size by that shorter side, instead of --resize (default: 0.875)"
    group.add_argument("--crop_ratio", type=cli.number(float, 0.1, 1), help=ratio)
    group.add_argument("--interpolation", type=cli.choice(*INTERPOLATIONS), help="of the resizing (default: bicubic)")
    group.add_argument("--mean", type=cli.three_floats, help="subtracted from pixels of 0 to 255; a number or R,G,B")
    group.add_argument("--std", type=cli.three_floats, help="divides the pixels; a number or R,G,B")
    group.add_argument("--class_names", metavar="FILE", help="names, one a line; or the word imagenet for its 1000")


def check_arguments(arguments) -> None:
    """Refuse flags that do not go together.

    Raises:
        UsageError: naming them.
    """
    if (arguments.dataset_path is None) == (arguments.image is None):
        raise cli.UsageError("give one of --dataset_path, a folder of class folders, and --image, single images")
    other, flags = ("--dataset_path", ("report", "confusion")) if arguments.image else ("--image", ("top_k",))
    for flag in flags:
        if getattr(arguments, flag) is not None:
            raise cli.UsageError(f"--{flag} goes with {other} only")


def prepare(arguments, images: int) -> tuple[OnnxModel, int, int]:
    """Open the file for so many images: (it, images a batch, how many batches are under way at once)."""
    cores = arguments.threads or count_cores()
    threads = min(cores, images)
    flags = ("image_size", "resize", "crop_ratio", "interpolation", "mean", "std")
    names = read_class_names(arguments.class_names) if arguments.class_names else None
    given = GivenSettings(class_names=names, **{name: getattr(arguments, name) for name in flags})
    # Fewer images than cores: one call of the network takes several cores.
    npu_batch = arguments.batch_size or min(BATCH_SIZES["Ascend"], images)
    device = (arguments.device_target, arguments.device_id)
    model = open_model(arguments.onnx_path, given, *device, cores // threads, npu_batch, arguments.engine)
    if model.on_cpu:
        print(f"note: the NPU leaves to the CPU: {model.on_cpu}", file=sys.stderr, flush=True)
    return model, choose_batch_size(model, arguments.batch_size), threads


def evaluate_folder(arguments) -> None:
    """Top-1, top-5 and loss over a labelled folder, and what else was asked for."""
    folder = read_evaluation_folder(arguments.dataset_path)
    if arguments.confusion:
        check_writable(arguments.confusion)
        import_figure()
    model, batch_size, threads = prepare(arguments, len(folder))
    folder = fit_classes(folder, model.info.class_names, model.info.num_classes)
    model.info.check_folder(folder.classes, folder.root, model.path)
    report = Report(arguments.report, folder, arguments.label_smooth_factor) if arguments.report else None
    say = functools.partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    say(f"model: {model.describe()}; {model.describe_device()}, {threads} threads")
    say(f"images: {len(folder)} in {len(folder.classes)} classes, {describe_decoder(folder)}")

    score, tally = Score(), ClassTally(len(folder.classes), True) if arguments.confusion else None
    sentences: dict[int, str] = {}
    unusable, progress = UnusableImages(len(folder), arguments.skip_bad_images), ProgressLine(len(folder))
    for batch in classify(model, folder, batch_size, threads):
        labels = folder.labels[batch.indices]
        score.add(batch.logits, labels, arguments.label_smooth_factor)
        for each in filter(None, (report, tally)):
            each.add(batch.logits, labels)
        for index, error in batch.errors.items():
            progress.clear()
            sentences[index] = str(error)
            unusable.add(error, "it is left out" if unusable.skip else "it counts as wrong")
            score.add_wrong(0 if unusable.skip else 1)
            if tally:
                tally.add_unusable(folder.labels[index], counts=not unusable.skip)
        progress.add(len(batch.indices) + len(batch.errors))
    progress.clear()
    if score.images == 0:
        raise cli.RunError(f"{folder.root}: none of its {len(folder)} images could be used")
    shows_top_5 = len(folder.classes) >= FEWEST_FOR_TOP_5
    tell_score(score, unusable, progress, batch_size, arguments.json, shows_top_5)
    if report:
        subject = Subject(model.path, model.describe(), model.info.preprocess, lambda: onnx_head(model))
        say(report.write(score, subject, sentences, counted=not unusable.skip))
    if tally:
        draw_confusion(arguments.confusion, tally, folder.classes)
        say(f"confusion matrix: {arguments.confusion}")
    unusable.check()


def tell_score(
    score: Score,
    unusable: UnusableImages,
    progress: ProgressLine,
    batch_size: int,
    as_json: bool,
    shows_top_5: bool = True,
) -> None:
    """Print the score: all its digits for programs, then, with top-5 where that says something, in words."""
    result = {"top_1": score.top_1_accuracy, "top_5": score.top_5_accuracy, "loss": score.loss, "images": score.images}
    if as_json:
        speed = {"seconds": progress.seconds, "images_per_second": progress.rate, "batch_size": batch_size}
        print(json.dumps({**result, "unusable": len(unusable), **speed}), flush=True)
        return
    top_1, top_5, loss = (np.format_float_positional(result[name], trim="0") for name in ("top_1", "top_5", "loss"))
    print(f"result: top-1: {top_1}, top-5: {top_5}, loss: {loss}, images: {score.images}")
    within_five = f" and {100 * score.top_5_accuracy:.2f}% within five" if shows_top_5 else ""
    print(
        f"{100 * score.top_1_accuracy:.2f}% right at once{within_five}, "
        f"{len(unusable)} unusable; {progress.seconds:.1f} s, {progress.rate:.1f} images/s in batches of {batch_size}",
        flush=True,
    )


def predict(arguments) -> None:
    """The most probable classes of single images, each printed as soon as it is known."""
    images = find_images(arguments.image)
    model, batch_size, threads = prepare(arguments, len(images))
    unusable = UnusableImages(len(images), arguments.skip_bad_images)
    if not arguments.json:
        print(f"model: {model.describe()}; {model.describe_device()}, {threads} threads", flush=True)
    batches = classify(model, images, batch_size, threads)
    tell_predictions(images, batches, model.info, unusable, arguments.top_k, arguments.json)
    unusable.check()


def main(argv=None) -> None:
    """Evaluate a labelled folder, or classify single images."""
    arguments = parse_arguments(argv)
    if arguments.image:
        predict(arguments)
    else:
        evaluate_folder(arguments)


if __name__ == "__main__":
    sys.exit(cli.run_cli(main))
