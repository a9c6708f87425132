"""A checkpoint to a file for deployment: write it, prove it, and only then put it under its name."""

from __future__ import annotations

from typing import Callable

import numpy as np

from src.common.cli import RunError
from src.common.files import atomic_path
from src.data.image_list import images_below
from src.export.mindir_file import run_batches
from src.export.plan import ExportPlan, Run, normalise_all
from src.export.seeded_images import seeded_images
from src.export.verification import Comparison, compare, measure_rounding, pick_evenly, read_pixels
from src.weights.checkpoint import Checkpoint
from src.weights.names import Weights
from src.weights.network import build_network, load_weights

TOLERANCES = {"fp32": 1e-4, "fp16": 0.03, "int8": 0.5}
"""Difference allowed for each unit of the largest logit. How good int8 is, an evaluation must tell."""
CALIBRATION_IMAGES = 64
VERIFICATION_IMAGES = 32
REFERENCE_BATCH = 4


def export(checkpoint: Checkpoint, plan: ExportPlan, say: Callable[[str], None] = print) -> None:
    """Write the file that a plan describes.

    The file, and its description where that lies beside it, appear when everything has succeeded, and only then replace
    older ones.

    Args:
        checkpoint: where the weights come from.
        plan: what is wanted.
        say: told what was done.

    Raises:
        RunError: if the file does not compute what the network does, or an image or a weight cannot be used.
        OSError: if it cannot be written.
    """
    kind = plan.file_format
    weights = checkpoint.ema if plan.averaged else checkpoint.weights
    calibration, proof = find_proof(plan)
    # Opened first, so that a folder that cannot be written is known at once.
    with atomic_path(plan.path) as path:
        kind.write(path, plan, weights, checkpoint.path, calibration, say)
        if kind.runs_here:
            verify(weights, plan, proof, kind.open(path, plan), say)
        # What lies beside the file gets its name before the file does, which is never without it.
        kind.finish(path, plan, say)


def find_proof(plan: ExportPlan) -> tuple[list[str], list[str]]:
    """The images to calibrate and to verify with; the second list is empty where `seeded_images` will do.

    Raises:
        RunError: if a folder is missing or holds no image.
    """
    available = images_below(plan.calibration_path) if plan.calibration_path else []
    calibration = pick_evenly(available, CALIBRATION_IMAGES)
    if plan.verify_path:
        return calibration, pick_evenly(images_below(plan.verify_path), VERIFICATION_IMAGES)
    # int8's ranges suit images of the calibration's kind only; others of its folder are taken where there are some.
    others = sorted(set(available) - set(calibration)) or calibration
    return calibration, pick_evenly(others, VERIFICATION_IMAGES)


def verify(weights: Weights, plan: ExportPlan, proof: list[str], run: Run, say) -> None:
    """Compare a file's logits with those of the network that is evaluated, batch norms and all.

    Args:
        weights: of the network.
        plan: what the file was to be.
        proof: images to compare on; empty for seeded patterns.
        run: the file: images as its input wants them to logits.
        say: told the figures.

    Raises:
        RunError: if they lie further apart than allowed, or an image cannot be used.
    """
    preprocess = plan.info.preprocess
    pixels = read_pixels(proof, preprocess) if proof else seeded_images(weights, plan.info)
    source = f"{len(pixels)} images of {plan.verify_path or plan.calibration_path}" if proof else "seeded patterns"
    result = compare_with_network(weights, plan, pixels, run(plan.prepare_input(pixels)))
    if not result.passed:
        raise RunError(
            f"{plan.path} is not written, because the exported file does not compute what the checkpoint does; on "
            f"{source}: {result.describe()}"
        )
    say(f"verified on {source}: {result.describe()}")
    if result.doubt:
        say(f"warning: {result.doubt}")
    if result.doubt and result.rounding and proof:
        # The images that were given prove too little; those that the network was made for prove more.
        verify(weights, plan, [], run, say)


def compare_with_network(weights: Weights, plan: ExportPlan, pixels: np.ndarray, logits: np.ndarray) -> Comparison:
    """Run the network in MindSpore and compare.

    Args:
        pixels: uint8 of shape (N, S, S, 3).
        logits: the file's, float32 of shape (N, C).
    """
    network = build_network(plan.info)
    network.set_train(False)

    def run(weights: Weights, images: np.ndarray) -> np.ndarray:
        load_weights(network, weights)
        return run_batches(network, images, REFERENCE_BATCH)

    images = normalise_all(pixels, plan.info)
    reference = run(weights, images)
    tolerance = TOLERANCES[plan.precision] if plan.tolerance is None else plan.tolerance
    relative = plan.precision != "fp32"
    result = compare(reference, logits, tolerance, relative)
    if result.passed or relative:
        return result
    # Some networks magnify every rounding error, above all on images that are unlike those they were trained on.
    return compare(reference, logits, tolerance, relative, measure_rounding(run, weights, images, reference))
