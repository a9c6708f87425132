"""Write a checkpoint as a file for deployment: MINDIR, ONNX or AIR.

python export.py --checkpoint_path Efficientnet_b0-rank0-350_625.ckpt --file_name b0 --file_format ONNX
"""

from __future__ import annotations

import os
import sys

from src.common.cli import boolean, choice, create_parser, positive_float, positive_int, run_cli
from src.config import Config, add_averaged_flag, add_parameters, take_parameters
from src.export.exporter import export
from src.export.formats import FORMATS, check_device, check_plan, complete_path
from src.export.plan import PRECISIONS, ExportPlan
from src.models.family import VARIANTS
from src.runtime.device import prepare_device
from src.weights.checkpoint import Checkpoint, read_checkpoint
from src.weights.conversion import ImageSettings, override
from src.weights.model_info import ModelInfo

SHARED = ("device_target", "device_id", "variant", "class_num", "image_size")


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", required=True, help="the .ckpt file to export")
    parser.add_argument("--file_name", help="file to write; the format's suffix may be left out (default: the variant)")
    formats = {"type": choice(*FORMATS), "default": "MINDIR", "metavar": "|".join(FORMATS)}
    parser.add_argument("--file_format", **formats, help="AIR needs an Ascend device (default: MINDIR)")
    add_averaged_flag(parser)
    # Training has a parameter of this name, which means another thing.
    batch = {"dest": "fixed_batch", "metavar": "BATCH_SIZE", "type": positive_int}
    parser.add_argument("--batch_size", **batch, help="images of a run of MINDIR and AIR (default: 1)")
    add_content_flags(parser.add_argument_group("what is in the file"))
    add_proof_flags(parser.add_argument_group("proof"))
    add_parameters(parser, SHARED)
    arguments = parser.parse_args(argv)
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
    precision = {"type": choice(*PRECISIONS), "default": "fp32", "metavar": "|".join(PRECISIONS)}
    group.add_argument("--precision", **precision, help="ONNX: how weights are stored (default: fp32)")
    group.add_argument("--calibration_path", metavar="DIR", help="int8: folder of images that ranges are taken from")
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
        path=complete_path(arguments.file_name or f"efficientnet_{info.variant}", kind),
        file_format=kind,
        info=info,
        averaged=arguments.averaged and checkpoint.ema is not None,
        fold_bn=arguments.fold_bn,
        batch_size=arguments.fixed_batch,
        include_preprocessing=arguments.include_preprocessing,
        include_softmax=arguments.include_softmax,
        precision=arguments.precision,
        calibration_path=arguments.calibration_path,
        reduce_range=arguments.reduce_range,
        verify_path=arguments.verify,
        tolerance=arguments.tolerance,
    )
    check_plan(plan)
    return plan


def main(argv=None) -> None:
    """Load, write, prove, say what was done."""
    arguments, parameters = parse_arguments(argv)
    kind = FORMATS[arguments.file_format]
    if arguments.file_name is not None:
        complete_path(arguments.file_name, kind)  # a wrong name is known before the device is started
    device = prepare_device(parameters.device_target, parameters.device_id)
    check_device(kind, device.target)
    checkpoint = read_checkpoint(arguments.checkpoint_path)
    plan = plan_export(arguments, parameters, checkpoint)
    info = plan.info
    print(
        f"device: {device.describe()}; {VARIANTS[info.variant].title}, {info.num_classes} classes, "
        f"{'averaged' if plan.averaged else 'raw'} weights, {plan.precision}",
        flush=True,
    )
    export(checkpoint, plan)
    print(f"written: {plan.path}, {os.path.getsize(plan.path) / 1e6:.1f} MB, {plan.describe()}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
