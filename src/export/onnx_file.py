"""A checkpoint's weights as an ONNX file that says itself what it is."""

from __future__ import annotations

import json
import os
from typing import Callable

import numpy as np
import onnx
from onnx import ModelProto, helper

from src.common.cli import RunError
from src.common.files import file_sha256
from src.common.machine import count_cores
from src.export.onnx_graph import build_model
from src.export.plan import ExportPlan, Run
from src.export.quantisation import cpu_needs_reduced_range, quantise_best
from src.export.verification import read_pixels
from src.inference.session import LOGITS, create_session, run_session
from src.models.family import VARIANTS
from src.weights.folding import fold_batch_norm
from src.weights.model_info import METADATA_KEY
from src.weights.names import Weights

PRODUCER = "efficientnet-mindspore"
LICENCE = "Apache-2.0"


def write_onnx(
    path: str, plan: ExportPlan, weights: Weights, source: str, calibration: list[str], say: Callable[[str], None]
) -> None:
    """Build a model and save it.

    Args:
        path: of the file.
        plan: what is wanted.
        weights: of the network, batch norms and all.
        source: the checkpoint that they come from.
        calibration: images for int8.
        say: told how int8 is made.

    Raises:
        RunError: if a weight does not fit float16, or an image cannot be used.
        OSError: if the file cannot be written.
    """
    model = build_model(
        fold_batch_norm(weights, plan.info.norm_eps) if plan.fold_bn else weights,
        plan.info,
        np.float16 if plan.precision == "fp16" else np.float32,
        plan.include_preprocessing,
        plan.include_softmax,
        plan.file_format.opset,
    )
    if plan.precision == "int8":
        reduce_range = cpu_needs_reduced_range() if plan.reduce_range is None else plan.reduce_range
        why = " (this CPU has no VNNI)" if reduce_range and plan.reduce_range is None else ""
        say(
            f"int8: weights of {7 if reduce_range else 8} bits{why}, activations calibrated on {len(calibration)} "
            f"images of {plan.calibration_path}"
        )
        images = plan.prepare_input(read_pixels(calibration, plan.info.preprocess))
        model, measured = quantise_best(model, images, reduce_range)
        say(f"int8: {measured}")
    add_metadata(model, source, plan)
    onnx.save(model, path)


def add_metadata(model: ModelProto, source: str, plan: ExportPlan) -> None:
    """What the file says of itself: the entry `METADATA_KEY` is for programs, the others are for people."""
    info = plan.info
    entries = {
        METADATA_KEY: info.to_json(),
        "variant": info.variant,
        "preprocessing": json.dumps(info.preprocess.to_dict()),
        **describe_preprocessing(plan),
        "precision": plan.precision,
        "weights": "averaged" if plan.averaged else "raw",
        "source": os.path.basename(source),
        "source_sha256": file_sha256(source),
        "licence": LICENCE,
    }
    if info.class_names:
        entries["class_names"] = json.dumps(info.class_names, ensure_ascii=False)
    model.producer_name = PRODUCER
    model.doc_string = f"{VARIANTS[info.variant].title}: {plan.describe()}"
    helper.set_model_props(model, entries)


def describe_preprocessing(plan: ExportPlan) -> dict[str, str]:
    """What leads from an image to the file's input, as formulas."""
    settings = plan.info.preprocess
    if plan.include_preprocessing:
        pixels = "the crop's pixels of 0 to 255; the file normalises them itself"
    else:
        mean, std = list(settings.mean), list(settings.std)
        pixels = f"(pixel - mean) / std, pixels of 0 to 255, mean {mean} and std {std} in the same units"
    return {
        "input": f"{plan.describe().partition(', output')[0]}; channels in the order R, G, B; {pixels}",
        "resize": (
            f"the shorter side to {settings.resize} pixels, the longer to floor(long / short * {settings.resize}), "
            f"{settings.interpolation} as Pillow computes it, rows first"
        ),
        "crop": (
            f"{settings.image_size} x {settings.image_size} pixels from left = floor((width - {settings.image_size}) / "
            f"2), top = floor((height - {settings.image_size}) / 2)"
        ),
    }


def open_onnx(path: str) -> Run:
    """A function that runs a file on the CPU.

    It runs the first image alone and the others together, so the batch must be free.

    Raises:
        RunError: if ONNX Runtime refuses the file.
    """
    try:
        session = create_session(path, "CPU", None, count_cores())
    except RunError as error:
        raise RunError(f"ONNX Runtime cannot load what was exported: {error}") from None

    def run(images: np.ndarray) -> np.ndarray:
        parts = [part for part in (images[:1], images[1:]) if len(part)]
        return np.concatenate([run_session(session, path, "image", LOGITS, part) for part in parts])

    return run
