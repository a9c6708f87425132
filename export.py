"""Write a checkpoint as a file for deployment: MINDIR, ONNX, AIR or OM.

python export.py --checkpoint_path Efficientnet_b0-rank0-350_625.ckpt --file_name b0 --file_format ONNX
"""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import dataclasses
import os
import sys

import numpy as np

from src.common.cli import RunError, UsageError, boolean, choice, create_parser, positive_float, positive_int, run_cli
from src.config import Config, add_averaged_flag, add_parameters, take_parameters
from src.data.batches import Loading
from src.data.image_folder import fit_classes, read_evaluation_folder
from src.dataset import create_dataset
from src.evaluation.evaluate import evaluate
from src.export.exporter import export
from src.export.formats import FORMATS, check_device, check_plan, complete_path
from src.export.plan import PRECISIONS, ExportPlan
from src.images.bad_images import BadImages
from src.mistakes.measures import calibration_error, fit_temperature, reliability, tempered_confidences
from src.models.family import VARIANTS
from src.runtime.device import Device, prepare_device
from src.weights.checkpoint import Checkpoint, read_checkpoint
from src.weights.conversion import ImageSettings, override
from src.weights.model_info import ModelInfo
from src.weights.names import CLASSIFIER
from src.weights.network import build_network, load_weights

BATCH = 32
SHARED = ("device_target", "device_id", "variant", "class_num", "image_size")


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file to export")
    parser.add_argument("--file_name", help="file to write; the format's suffix may be left out (default: the variant)")
    formats = {"type": choice(*FORMATS), "default": "MINDIR", "metavar": "|".join(FORMATS)}
    parser.add_argument(
        "--file_format", **formats, help="AIR needs an Ascend device, the others are made on the CPU (default: MINDIR)"
    )
    add_averaged_flag(parser)
    soc = "OM: the NPU that it is for, such as Ascend310P3"
    parser.add_argument("--soc_version", help=soc)
    # Training has a parameter of this name, which means another thing.
    batch = {"dest": "fixed_batch", "metavar": "BATCH_SIZE", "type": positive_int}
    parser.add_argument("--batch_size", **batch, help="images of a run of MINDIR, AIR and OM (default: 1)")
    add_content_flags(parser.add_argument_group("what is in the file"))
    add_proof_flags(parser.add_argument_group("proof"))
    add_parameters(parser, SHARED)
    arguments = parser.parse_args(argv)
    if arguments.calibrate and not arguments.calibration_path:
        raise UsageError("--calibrate needs --calibration_path, labelled images that were not trained on")
    return arguments, take_parameters(arguments)


def add_content_flags(group) -> None:
    """Flags on what the file computes."""
    switch = {"type": boolean, "metavar": "True|False"}
    folds = "fold batch norms into the convolutions (default: True)"
    group.add_argument("--fold_bn", **switch, default=True, help=folds)
    pixels = "take uint8 pixels (N, S, S, 3) and normalise them in the file (default: False)"
    group.add_argument("--include_preprocessing", **switch, default=False, help=pixels)
    group.add_argument(
        "--include_softmax", **switch, default=False, help="second output: probabilities (default: False)"
    )
    precision = {"type": choice(*PRECISIONS), "metavar": "|".join(PRECISIONS)}
    group.add_argument("--precision", **precision, help="ONNX: how weights are stored (default: fp32; OM: fp16)")
    images = "int8: folder of images that ranges are taken from; --calibrate: labelled images that were not trained on"
    group.add_argument("--calibration_path", metavar="DIR", help=images)
    temperature = "divide the logits by the temperature with which the probabilities suit --calibration_path best"
    group.add_argument("--calibrate", **switch, default=False, help=f"{temperature} (default: False)")
    bits = "int8: weights of 7 bits, for x86 without VNNI (default: as this CPU needs)"
    group.add_argument("--reduce_range", **switch, help=bits)


def add_proof_flags(group) -> None:
    """Flags on how the file is proved."""
    images = (
        "folder of images to run file and checkpoint on (default: seeded patterns; int8: those of --calibration_path)"
    )
    group.add_argument("--verify", metavar="DIR", help=images)
    tolerance = "difference allowed for each unit of the largest logit (default: 0.0001; fp16 0.03, int8 0.5)"
    group.add_argument("--tolerance", type=positive_float, help=tolerance)


def resolve_info(parameters: Config, checkpoint: Checkpoint) -> ModelInfo:
    """What the file will expect: what the checkpoint says; a published one, which does not say it, may be told a size.

    Raises:
        UsageError: if a flag contradicts the checkpoint, with both values.
    """
    info = checkpoint.info
    parameters.check_trained({"variant": info.variant, "class_num": info.num_classes}, checkpoint.path)
    if checkpoint.described:
        hint = "; convert_weights.py can write a checkpoint of another size"
        parameters.check_trained({"image_size": info.preprocess.image_size}, checkpoint.path, hint)
    if checkpoint.described or "image_size" not in parameters.given:
        return info
    return override(info, ImageSettings(image_size=parameters.image_size))


def plan_export(arguments, parameters: Config, checkpoint: Checkpoint) -> ExportPlan:
    """What the flags ask for.

    Raises:
        UsageError: if they contradict each other, the checkpoint, or what the format can do.
    """
    kind = FORMATS[arguments.file_format]
    info = resolve_info(parameters, checkpoint)
    plan = ExportPlan(
        path=kind.destination(complete_path(arguments.file_name or f"efficientnet_{info.variant}", kind)),
        file_format=kind,
        info=info,
        averaged=arguments.averaged and checkpoint.ema is not None,
        fold_bn=arguments.fold_bn,
        batch_size=arguments.fixed_batch,
        include_preprocessing=arguments.include_preprocessing,
        include_softmax=arguments.include_softmax,
        precision=arguments.precision,
        # Labelled images may be those of int8, too.
        calibration_path=None if arguments.calibrate and arguments.precision != "int8" else arguments.calibration_path,
        reduce_range=arguments.reduce_range,
        verify_path=arguments.verify,
        tolerance=arguments.tolerance,
        soc_version=arguments.soc_version,
    )
    check_plan(plan)
    return plan


def temper_logits(checkpoint: Checkpoint, plan: ExportPlan, path: str, device: Device) -> Checkpoint:
    """A checkpoint whose logits are divided by the temperature that suits labelled images best.

    The classes stay the same, the probabilities become right (Guo et al. 2017, arXiv:1706.04599).

    Args:
        path: class folders or a list, of images that the network was not trained on.

    Raises:
        RunError: if none of them can be decoded.
    """
    info = plan.info
    folder = fit_classes(read_evaluation_folder(path), info.class_names, info.num_classes)
    info.check_folder(folder.classes, folder.root, checkpoint.path)
    network = build_network(info)
    if device.kernels:
        device.kernels.install(network)
    weights = checkpoint.ema if plan.averaged else checkpoint.weights
    load_weights(network, weights)
    batches: list[tuple] = []
    loading = Loading(info.preprocess, bad=BadImages(len(folder), skip=True))
    images = create_dataset(folder, False, BATCH, loading=loading)
    iterator = images.create_tuple_iterator(num_epochs=1, output_numpy=True)
    evaluate(network.set_train(False), iterator, 0.0, collect=lambda *batch: batches.append(batch))
    logits, labels = (np.concatenate(parts) for parts in zip(*batches)) if batches else (np.empty((0, 1)),) * 2
    if not len(labels):
        raise RunError(f"{path}: none of its images can be decoded")
    temperature = fit_temperature(logits, labels)
    before, after = (expected_error(logits, labels, value) for value in (1.0, temperature))
    print(
        f"calibrated: temperature {temperature:.4f} on {len(labels)} images; calibration error {before:.1%}, now "
        f"{after:.1%}",
        flush=True,
    )
    tempered = {**weights, **{name: weights[name] / np.float32(temperature) for name in CLASSIFIER}}
    return dataclasses.replace(checkpoint, **{"ema" if plan.averaged else "weights": tempered})


def expected_error(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The expected calibration error of logits divided by a temperature."""
    right = logits.argmax(1) == labels
    return calibration_error(reliability(tempered_confidences(logits, temperature), right))


def main(argv=None) -> None:
    """Load, write, prove, say what was done."""
    arguments, parameters = parse_arguments(argv)
    kind = FORMATS[arguments.file_format]
    if arguments.file_name is not None:
        complete_path(arguments.file_name, kind)  # a wrong name is known before the device is started
    # MINDIR and ONNX are the same from every device, and what they are compared with must be computed in float32, which
    # NPUs' convolutions may not do.
    target = parameters.device_target if kind.device_target else "CPU"
    device = prepare_device(target, parameters.device_id)
    check_device(kind, device.target)
    checkpoint = read_checkpoint(arguments.checkpoint_path)
    plan = plan_export(arguments, parameters, checkpoint)
    info = plan.info
    print(
        f"device: {device.describe()}; {VARIANTS[info.variant].title}, {info.num_classes} classes, "
        f"{'averaged' if plan.averaged else 'raw'} weights, {plan.precision}",
        flush=True,
    )
    if arguments.calibrate:
        checkpoint = temper_logits(checkpoint, plan, arguments.calibration_path, device)
    export(checkpoint, plan)
    purpose = "" if plan.path.endswith(kind.suffix) else f"for an {kind.name} file with "
    print(f"written: {plan.path}, {os.path.getsize(plan.path) / 1e6:.1f} MB, {purpose}{plan.describe()}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
