"""Convert trained weights of other projects to a checkpoint, and back to those of PyTorch.

python convert_weights.py --source tf_efficientnet_b0.safetensors --target b0.ckpt
python convert_weights.py --source tf_efficientnet_b0.ns_jft_in1k --target b0.ckpt
python convert_weights.py --source b0.ckpt --target b0.safetensors --to timm
"""

from __future__ import annotations

from src.common.interrupt import listen

if __name__ == "__main__":
    listen()

import dataclasses
import os
import re
import sys
import textwrap

from src.common.cli import UsageError, choice, create_parser, run_cli
from src.config import add_averaged_flag, add_parameters, take_parameters
from src.images.preprocess import Preprocess
from src.models.family import VARIANTS
from src.published.table import PUBLISHED, SHORT_NAMES
from src.weights import conversion
from src.weights.checkpoint import check_weights
from src.weights.model_info import ModelInfo
from src.weights.names import count_entries, describe_family, list_names
from src.weights.timm_settings import ARCHITECTURE

OVERRIDES = ("class_num", "image_size", "crop_ratio", "interpolation", "mean", "std")


def parse_arguments(argv=None):
    """Read the flags: (those of this script, the shared parameters)."""
    parser = create_parser(__doc__.splitlines()[0])
    parser.add_argument(
        "--source",
        help="weights to read: a .safetensors, .pth, .pt, .bin or .ckpt file, or published weights by NAME or "
        "NAME@REVISION, which are taken from an installed package or the Hugging Face hub",
    )
    parser.add_argument("--target", help="file to write: .ckpt, or .safetensors with --to")
    parser.add_argument("--list", action="store_true", help="print the names of published weights, and nothing else")
    parser.add_argument("--to", type=choice(*conversion.TARGETS), help="write weights that this project loads")
    parser.add_argument(
        "--architecture",
        help="timm's name of the model, where neither config.json nor the file's name tells efficientnet_b0 from "
        "tf_efficientnet_b0",
    )
    add_averaged_flag(parser)
    add_parameters(parser, OVERRIDES)
    arguments = parser.parse_args(argv)
    parameters = take_parameters(arguments)
    if arguments.list:
        return arguments, parameters
    if arguments.source is None or arguments.target is None:
        raise UsageError("--source and --target are both needed; --list prints the names of published weights")
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
    if arguments.list:
        return print_published()
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


def print_published() -> None:
    """Print the table of published weights; a member's name alone stands for the row that it stands in."""
    short = {name: member for member, name in SHORT_NAMES.items()}
    rows = [("name", "short", "network", "classes", "images", "mean, std", "top-1", "licence")]
    for row in PUBLISHED.values():
        info = conversion.describe_published(row)
        images = info.preprocess
        rows.append(
            (
                *(row.name, short.get(row.name, ""), info.variant, str(info.num_classes)),
                f"{images.image_size} of {images.resize}, {images.interpolation}",
                "127.5" if images.mean == Preprocess.mean else "ImageNet's",
                *("" if row.top_1 is None else f"{row.top_1:.2f}", row.licence),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
    print("top-1: percent of ImageNet's validation images, as timm measured it")


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
    theirs = conversion.peer_source(info, project).padding
    if theirs != info.padding:
        print(
            f"warning: {project}'s networks have padding {theirs}, but these weights were trained with padding "
            f"{info.padding}; it loads them and computes something else, timm computes the same",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
