"""What a run says at its start and at its end."""

from __future__ import annotations

import os

from src.images.engine import describe_engine
from src.models.effnet import EfficientNet
from src.models.family import VARIANTS
from src.models.table import count_multiply_adds
from src.Monitor import format_seconds
from src.preparation.split import LISTS
from src.training.loop import TrainingLoop
from src.training.schedule import Progress
from src.training.setup import Run
from src.weights.checkpoint import BEST_NAME

SMALL_FOLDER = 20_000
"""Below so many images the published settings, made for the 1.28 million of ImageNet, are not what a folder needs."""


def describe_run(run: Run, network: EfficientNet, progress: Progress) -> None:
    """Say at the start what is going to happen, and which weights it begins with."""
    config, schedule, folder = run.config, run.schedule, run.folder
    multiply_adds = count_multiply_adds(VARIANTS[config.variant], config.image_size, config.class_num)
    weights = sum(parameter.size for parameter in network.trainable_params())
    print(
        f"device: {run.device.describe()}, amp level {config.amp_level}, "
        f"data sink {'on' if run.device.has_data_sink else 'off'}"
    )
    print(
        f"network: {VARIANTS[config.variant].title}, {weights / 1e6:.2f} M trainable parameters, "
        f"{multiply_adds / 1e9:.3f} G multiply-adds for an image of "
        f"{config.image_size} pixels"
    )
    print(f"data: {len(folder)} images in {len(folder.classes)} classes in {folder.root}, {describe_engine()}")
    if config.val_share:
        print(f"held out: {len(run.held_out)} images to evaluate on, listed in {run.run_folder}/{LISTS['val']}")
    for choice in run.choices:
        print(f"chosen: --{choice.name} {choice.value} ({choice.reason})")
    print(
        f"schedule: {schedule.epochs} epochs of {schedule.steps_per_epoch} steps, global batch "
        f"{schedule.global_batch}, peak learning rate {schedule.learning_rates.max():.6g}",
        flush=True,
    )
    if run.resumed and progress.step:
        print(f"resumed: {run.resumed.path}, after step {progress.step} of {progress.total_steps}", flush=True)
        before = run.resumed.state["progress"]["epochs"]
        if before < progress.epochs:
            print(
                f"the run was to end after epoch {before}; from here on its rates are those of {progress.epochs} epochs"
            )
        return
    if config.resume == "auto":
        print(f"resume: there is no checkpoint in {run.run_folder} to go on from, so the run begins", flush=True)
    if run.pretrained:
        kind = "averaged" if run.pretrained.ema else "raw"
        info = run.pretrained.info
        origin = f"; {info.origin.describe()}" if info.origin else ""
        print(f"pretrained: {run.pretrained.path}, {kind} weights of {info.num_classes} classes{origin}", flush=True)
    elif meets_small_folder(run):
        print(
            f"note: these are the settings published for the 1.28 million images of ImageNet, and here are "
            f"{len(folder)}: --recipe finetune starts from published weights and chooses settings for so few",
            flush=True,
        )


def meets_small_folder(run: Run) -> bool:
    """Whether the published recipe, its length and rate unchanged, starts from nothing on few images."""
    config = run.config
    unchanged = config.recipe == "zoo" and not {"epoch_size", "lr_max"} & config.given
    return unchanged and not run.pretrained and len(run.folder) < SMALL_FOLDER


def report_complete(run: Run, progress: Progress) -> None:
    """Say that nothing is left to do."""
    print(f"the run is complete: {progress.epoch} epochs in {run.resumed.path}")
    report_best(progress, run.run_folder)


def report_end(run: Run, loop: TrainingLoop, seconds: float) -> None:
    """Say at the end what came of it."""
    progress = loop.progress
    if loop.stop.signal:
        if loop.saved_path:
            then = "--resume auto goes on"
        else:
            then = "nothing was saved" if loop.checkpoints else "rank 0 saves"
        print(f"stopped by signal {loop.stop.signal} after step {progress.step} of {progress.total_steps}; {then}")
    report_best(progress, run.run_folder)
    if loop.saved_path:
        print(f"last checkpoint: {loop.saved_path}")
    print(f"total time: {format_seconds(seconds)}", flush=True)


def report_best(progress: Progress, run_folder: str) -> None:
    """Say how good the best evaluation was and where its weights are."""
    if progress.best:
        path = os.path.join(run_folder, BEST_NAME)
        where = f", in {path}" if os.path.exists(path) else ""
        print(
            f"best: top-1 {progress.best['top_1']:.4f} after epoch {progress.best['epoch']} "
            f"({progress.best['weights']} weights){where}"
        )
