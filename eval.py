"""Evaluate a checkpoint on a folder of class folders: loss, top-1 and top-5, every image counted once.

python eval.py --device_id 0 --dataset_path /data/imagenet/val --checkpoint_path Efficientnet_b0-rank0-1_625.ckpt
"""

from __future__ import annotations

import sys

from tqdm import tqdm

from src.common.cli import UsageError, create_parser, run_cli
from src.config import Config, add_averaged_flag, add_parameters, take_parameters
from src.data.batches import Loading
from src.data.image_folder import fit_classes, read_evaluation_folder
from src.data.listing import ImageFolder
from src.dataset import create_dataset
from src.evaluation.chance import warn_of_evaluation
from src.evaluation.evaluate import evaluate
from src.images.bad_images import BadImages
from src.runtime.device import prepare_device
from src.weights.checkpoint import Checkpoint, read_checkpoint
from src.weights.network import build_network, load_weights

# The default of 256 needs gigabytes and is no faster on a CPU.
CPU_BATCH_SIZE = 32
SHARED = (
    "dataset_path device_target device_id kernels batch_size num_workers variant class_num image_size "
    "use_label_smooth label_smooth_factor"
).split()


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file to evaluate")
    add_averaged_flag(parser)
    bad = "leave out images that cannot be decoded, instead of counting them as wrong"
    parser.add_argument("--skip_bad_images", action="store_true", help=bad)
    add_parameters(parser, SHARED)
    arguments = parser.parse_args(argv)
    parameters = take_parameters(arguments)
    if parameters.dataset_path is None:
        raise UsageError("--dataset_path is needed: a folder of class folders, or a list (.csv, .tsv)")
    return arguments, parameters


def check_flags_and_folder(parameters: Config, checkpoint: Checkpoint, folder: ImageFolder) -> None:
    """Refuse flags and folders that contradict what the checkpoint says of itself.

    Raises:
        UsageError: with both values.
    """
    info = checkpoint.info
    trained = {"variant": info.variant, "class_num": info.num_classes, "image_size": info.preprocess.image_size}
    parameters.check_trained(trained, checkpoint.path)
    info.check_folder(folder.classes, folder.root, checkpoint.path)


def main(argv=None) -> int:
    """Load, evaluate, print the model card's line."""
    arguments, parameters = parse_arguments(argv)
    device = prepare_device(parameters.device_target, parameters.device_id)
    checkpoint = read_checkpoint(arguments.checkpoint_path)
    info = checkpoint.info
    folder = read_evaluation_folder(parameters.dataset_path)
    folder = fit_classes(folder, info.class_names, info.num_classes)
    check_flags_and_folder(parameters, checkpoint, folder)

    averaged = arguments.averaged and checkpoint.ema is not None
    network = build_network(info)
    if parameters.kernels and device.kernels:
        device.kernels.install(network)
    load_weights(network, checkpoint.ema if averaged else checkpoint.weights)
    network.set_train(False)
    batch_size = parameters.batch_size
    if device.target == "CPU" and "batch_size" not in parameters.given:
        batch_size = CPU_BATCH_SIZE
    bad = BadImages(len(folder), skip=arguments.skip_bad_images)
    loading = Loading(info.preprocess, num_workers=parameters.num_workers, bad=bad)
    dataset = create_dataset(folder, False, batch_size, loading=loading)
    kind = "averaged" if averaged else "raw"
    print(
        f"device: {device.describe()}; {len(folder)} images in {len(folder.classes)} classes; {kind} weights",
        flush=True,
    )
    smoothing = parameters.label_smooth_factor if parameters.use_label_smooth else 0.0
    with tqdm(total=len(folder), unit="image", disable=None) as bar:
        score = evaluate(network, dataset.create_tuple_iterator(num_epochs=1, output_numpy=True), smoothing, bar.update)
    if len(bad):
        print(f"images that cannot be decoded: {len(bad)}, {'left out' if bad.skip else 'counted as wrong'}")
    warning = warn_of_evaluation(score.loss, info.num_classes)
    if warning:
        print(warning, file=sys.stderr)
    print(f"result: {score.as_result()} ckpt= {arguments.checkpoint_path}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
