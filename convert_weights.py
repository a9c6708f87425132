"""Convert trained weights of other projects to a checkpoint, and back to those of PyTorch.

python convert_weights.py --source tf_efficientnet_b0.safetensors --target b0.ckpt
python convert_weights.py --source b0.ckpt --target b0.safetensors --to timm
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import textwrap

from src.common.cli import UsageError, create_parser, run_cli
from src.config import add_averaged_flag, add_parameters, take_parameters
from src.models.family import VARIANTS
from src.weights import conversion
from src.weights.checkpoint import check_weights
from src.weights.model_info import ModelInfo
from src.weights.names import count_entries, describe_family, list_names
from src.weights.timm_settings import ARCHITECTURE

OVERRIDES = ("class_num", "image_size", "crop_ratio", "interpolation", "mean", "std")


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="weights to read: .safetensors, .pth, .pt, .bin or .ckpt")
    parser.add_argument("--target", required=True, help="file to write: .ckpt, or .safetensors with --to")
    parser.add_argument("--to", choices=conversion.TARGETS, help="write weights that this project loads")
    parser.add_argument(
        "--architecture",
        help="timm's name of the model, where neither config.json nor the file's name tells efficientnet_b0 from "
        "tf_efficientnet_b0",
    )
    add_averaged_flag(parser)
    add_parameters(parser, OVERRIDES)
    arguments = parser.parse_args(argv)
    parameters = take_parameters(arguments)
    suffix = ".safetensors" if arguments.to else ".ckpt"
    if not arguments.target.endswith(suffix):
        raise UsageError(f"--target {arguments.target}: the name of this file ends in {suffix}")
    if os.path.exists(arguments.target) and os.path.exists(arguments.source):
        if os.path.samefile(arguments.source, arguments.target):
            raise UsageError("--source and --target are the same file")
    if arguments.architecture and not re.fullmatch(rf"{ARCHITECTURE.pattern}([._].*)?", arguments.architecture):
        members = describe_family().lower()
        raise UsageError(
            f"--architecture is '{arguments.architecture}', not efficientnet_{members} or tf_efficientnet_{members}"
        )
    return arguments, parameters


def main(argv=None) -> None:
    """Read, translate, write, say what was done."""
    arguments, parameters = parse_arguments(argv)
    given = {name: getattr(parameters, name) for name in OVERRIDES if name in parameters.given}
    class_num = given.pop("class_num", None)
    converted = conversion.read_source(arguments.source, arguments.architecture, arguments.averaged, class_num)
    converted = dataclasses.replace(
        converted, info=conversion.override(converted.info, conversion.ImageSettings(**given))
    )
    check_weights(arguments.source, converted.info, converted.weights)
    print_summary(converted)
    if arguments.to:
        conversion.write_theirs(arguments.target, arguments.to, converted)
        hint = conversion.peer_call(converted.info, arguments.to)
        warn_of_padding(converted.info, arguments.to)
    else:
        conversion.write_ours(arguments.target, converted)
        hint = f"python eval.py --dataset_path FOLDER --checkpoint_path {arguments.target}"
    print(f"written: {arguments.target}, for\n" + textwrap.indent(hint, "    "))


def print_summary(converted: conversion.Converted) -> None:
    """Say what was found and what was assumed."""
    info, images = converted.info, converted.info.preprocess
    print(f"source: {converted.origin}")
    print(
        f"network: {VARIANTS[info.variant].title}, {info.num_classes} classes, padding {info.padding}, "
        f"batch-norm epsilon {info.norm_eps:g}, {len(converted.weights)} tensors"
    )
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (images.mean, images.std))
    print(
        f"images: {images.image_size} pixels out of {images.resize}, {images.interpolation}, mean {mean}, std {std}; "
        "flags change these"
    )
    if converted.left_out:
        names = list_names(converted.left_out)
        print(f"left out, the network does not compute with them: {count_entries(converted.left_out)}, {names}")


def warn_of_padding(info: ModelInfo, project: str) -> None:
    """Say so where the other project's network computes something else."""
    if conversion.peer_source(info, project).padding != info.padding:
        print(
            f"warning: {project}'s networks have padding {conversion.peer_source(info, project).padding}, but these "
            f"weights were trained with padding {info.padding}; it loads them and computes something else, timm "
            "computes the same",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
