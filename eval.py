"""Evaluate a checkpoint on a folder of class folders, every image counted once, or name the classes of single images.

python eval.py --device_id 0 --dataset_path /data/imagenet/val --checkpoint_path Efficientnet_b0-rank0-1_625.ckpt
python eval.py --checkpoint_path Efficientnet_b0-rank0-1_625.ckpt --image cat.jpg 'holiday/*.jpg'
"""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import sys
from collections.abc import Iterator

import mindspore as ms
import numpy as np
from mindspore import nn
from tqdm import tqdm

from src.common.cli import UsageError, create_parser, positive_int, run_cli
from src.config import Config, add_averaged_flag, add_parameters, take_parameters
from src.data.batches import Loading
from src.data.image_folder import fit_classes, read_evaluation_folder
from src.data.image_list import ImageList, find_images
from src.data.listing import read_encoded
from src.dataset import create_dataset
from src.evaluation.chance import warn_of_evaluation
from src.evaluation.evaluate import PixelNetwork, evaluate, network_head
from src.images.bad_images import BadImages, ImageError, UnusableImages
from src.images.decode import open_image
from src.images.preprocess import crop_for_evaluation, normalise
from src.inference.predictions import TOP_K, ClassifiedBatch, tell_predictions
from src.mistakes.report import Report, Subject, add_report_flag
from src.models.family import VARIANTS
from src.runtime.device import Device, prepare_device
from src.weights.checkpoint import Checkpoint, read_checkpoint
from src.weights.model_info import ModelInfo
from src.weights.network import build_network, load_weights

# The default of 256 needs gigabytes and is no faster on a CPU.
CPU_BATCH_SIZE = 32
SHARED = (
    "dataset_path device_target device_id jit_level conv_precision kernels batch_size num_workers variant class_num "
    "image_size use_label_smooth label_smooth_factor"
).split()


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file to evaluate")
    add_averaged_flag(parser)
    bad = "images that cannot be decoded are left out; else they count as wrong, and the exit code is 1"
    parser.add_argument("--skip_bad_images", action="store_true", help=bad)
    add_report_flag(parser)
    single = parser.add_argument_group("single images, instead of --dataset_path")
    single.add_argument(
        "--image", nargs="+", help="files, folders, patterns such as 'a/*.jpg', or - for standard input"
    )
    single.add_argument("--top_k", type=positive_int, help=f"classes told of each --image (default: {TOP_K})")
    single.add_argument("--json", action="store_true", help="a line of JSON for each --image")
    add_parameters(parser, SHARED)
    arguments = parser.parse_args(argv)
    parameters = take_parameters(arguments)
    check_modes(arguments, parameters)
    return arguments, parameters


def check_modes(arguments, parameters: Config) -> None:
    """Refuse flags that do not go together.

    Raises:
        UsageError: naming them.
    """
    if (parameters.dataset_path is None) == (arguments.image is None):
        raise UsageError("give either --dataset_path, class folders or a list (.csv, .tsv), or --image, single images")
    for flag in ("top_k", "json"):
        if getattr(arguments, flag) and not arguments.image:
            raise UsageError(f"--{flag} goes with --image only")
    if arguments.report and arguments.image:
        raise UsageError("--report goes with --dataset_path only")


def check_flags(parameters: Config, checkpoint: Checkpoint) -> None:
    """Refuse flags that contradict what the checkpoint says of itself.

    Raises:
        UsageError: with both values.
    """
    info = checkpoint.info
    trained = {"variant": info.variant, "class_num": info.num_classes, "image_size": info.preprocess.image_size}
    parameters.check_trained(trained, checkpoint.path)


def load_network(arguments, parameters: Config, device: Device, checkpoint: Checkpoint) -> tuple[nn.Cell, str]:
    """The network in evaluation mode, and which of the file's weights it has: "averaged" or "raw"."""
    averaged = arguments.averaged and checkpoint.ema is not None
    network = build_network(checkpoint.info)
    if parameters.kernels and device.kernels:
        device.kernels.install(network)
    load_weights(network, checkpoint.ema if averaged else checkpoint.weights)
    network.set_train(False)
    return network, "averaged" if averaged else "raw"


def evaluate_checkpoint(arguments, parameters: Config, device: Device, checkpoint: Checkpoint) -> None:
    """Evaluate on a labelled folder, print the model card's line, write the report.

    Raises:
        RunError: at the end, if an image could not be used, unless the user allows for that.
    """
    info = checkpoint.info
    folder = read_evaluation_folder(parameters.dataset_path)
    folder = fit_classes(folder, info.class_names, info.num_classes)
    info.check_folder(folder.classes, folder.root, checkpoint.path)
    smoothing = parameters.label_smooth_factor if parameters.use_label_smooth else 0.0
    report = Report(arguments.report, folder, smoothing) if arguments.report else None
    network, kind = load_network(arguments, parameters, device, checkpoint)
    batch_size = parameters.batch_size
    if device.target == "CPU" and "batch_size" not in parameters.given:
        batch_size = CPU_BATCH_SIZE
    bad = BadImages(len(folder), skip=arguments.skip_bad_images)
    loading = Loading(info.preprocess, normalised=False, num_workers=parameters.num_workers, bad=bad)
    dataset = create_dataset(folder, False, batch_size, loading=loading)
    print(
        f"device: {device.describe()}; {len(folder)} images in {len(folder.classes)} classes; {kind} weights",
        flush=True,
    )
    batches = dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)
    with tqdm(total=len(folder), unit="image", disable=None) as bar:
        whole = PixelNetwork(network, info.preprocess)
        score = evaluate(whole, batches, smoothing, bar.update, report.add if report else None)
    if len(bad):
        print(f"images that cannot be decoded: {len(bad)}, {'left out' if bad.skip else 'counted as wrong'}")
    warning = warn_of_evaluation(score.loss, info.num_classes)
    if warning:
        print(warning, file=sys.stderr)
    print(f"result: {score.as_result()} ckpt= {arguments.checkpoint_path}", flush=True)
    if report:
        unusable = bad.among(folder)
        description = f"{VARIANTS[info.variant].title}, {kind} weights"
        subject = Subject(checkpoint.path, description, info.preprocess, lambda: network_head(network, info.preprocess))
        print(report.write(score, subject, unusable, counted=not bad.skip))
    bad.check()


def classify_images(arguments, parameters: Config, device: Device, checkpoint: Checkpoint) -> None:
    """The most probable classes of single images, as `infer_onnx.py` tells them of an exported file.

    Raises:
        RunError: if an image could not be used.
    """
    images = find_images(arguments.image)
    network, kind = load_network(arguments, parameters, device, checkpoint)
    if not arguments.json:
        print(f"device: {device.describe()}; {kind} weights", flush=True)
    unusable = UnusableImages(len(images), arguments.skip_bad_images)
    batches = classify_one_by_one(network, images, checkpoint.info)
    tell_predictions(images, batches, checkpoint.info, unusable, arguments.top_k, arguments.json)
    unusable.check()


def classify_one_by_one(network: nn.Cell, images: ImageList, info: ModelInfo) -> Iterator[ClassifiedBatch]:
    """Decode and run images; each is a batch, so that the network is compiled for one shape."""
    for index in range(len(images)):
        path = images.full_path(index)
        try:
            crop = crop_for_evaluation(open_image(read_encoded(images, index), path), info.preprocess, path)
        except ImageError as error:
            yield ClassifiedBatch([], np.empty((0, info.num_classes), np.float32), {index: error})
            continue
        logits = network(ms.Tensor(normalise(crop, info.preprocess)[None])).asnumpy()
        yield ClassifiedBatch([index], logits.astype(np.float32), {})


def main(argv=None) -> int:
    """Load the network, then evaluate it on a labelled folder or classify single images."""
    arguments, parameters = parse_arguments(argv)
    target, precision = parameters.device_target, parameters.conv_precision
    device = prepare_device(target, parameters.device_id, jit_level=parameters.jit_level, conv_precision=precision)
    checkpoint = read_checkpoint(arguments.checkpoint_path)
    check_flags(parameters, checkpoint)
    if arguments.image:
        classify_images(arguments, parameters, device, checkpoint)
    else:
        evaluate_checkpoint(arguments, parameters, device, checkpoint)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
