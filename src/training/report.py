"""What a run says at its start and at its end, and how it judges weights on the images that were held out."""

from __future__ import annotations

import os
import time

from src.common.cli import RunError
from src.data.batches import Loading
from src.dataset import create_dataset
from src.evaluation.evaluate import PixelNetwork, evaluate, network_head, sum_over_ranks
from src.evaluation.metrics import Score
from src.images.bad_images import BadImages
from src.images.engine import describe_engine
from src.mistakes.report import Report, Subject
from src.models.effnet import EfficientNet
from src.models.family import VARIANTS
from src.models.table import count_multiply_adds
from src.Monitor import format_seconds
from src.preparation.split import LISTS
from src.runtime.collective import take_from_rank_0
from src.training.loop import TrainingLoop
from src.training.schedule import Progress
from src.training.setup import Run
from src.training.step import network_weights
from src.weights.checkpoint import BEST_NAME, read_checkpoint
from src.weights.names import Weights
from src.weights.network import build_network, load_weights

STATISTICS = ("moving_mean", "moving_variance")
REPORT_NAME = "report.html"
SMALL_FOLDER = 20_000
"""Below so many images the published settings, made for the 1.28 million of ImageNet, are not what a folder needs."""


class Evaluator:
    """Judges weights on the held-out set.

    It uses a network of its own, so that the one in training keeps its state and its compiled graph.

    Args:
        run: with a held-out set.
    """

    def __init__(self, run: Run):
        self.run = run
        self.network = build_network(run.info)
        if run.config.kernels and run.device.kernels:
            run.device.kernels.install(self.network)
        self.whole = PixelNetwork(self.network, run.info.preprocess)
        # One for the whole run: each image that cannot be decoded is named once.
        self.bad = BadImages(len(run.held_out))
        # Made now, so that what is missing for it is said before the training.
        path = os.path.join(run.run_folder, REPORT_NAME)
        self.report = Report(path, run.held_out, run.smoothing) if run.device.rank == 0 else None

    def __call__(self, weights: Weights) -> Score:
        """The score of all ranks' shares of the images; every rank calls it."""
        # Each rank has batch-norm statistics of its own; what is scored is what rank 0 saves.
        statistics = {name: value for name, value in weights.items() if name.endswith(STATISTICS)}
        load_weights(self.network, {**weights, **take_from_rank_0(statistics)})
        device = self.run.device
        return sum_over_ranks(evaluate(self.whole, self.batches(device.rank_size, device.rank), self.run.smoothing))

    def batches(self, rank_size: int, rank: int):
        """The images of one of so many ranks."""
        run = self.run
        workers = run.config.num_workers
        loading = Loading(run.info.preprocess, normalised=False, num_workers=workers, bad=self.bad)
        dataset = create_dataset(run.held_out, False, run.config.batch_size, rank_size, rank, loading=loading)
        return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    def write_report(self, weights: Weights, name: str, description: str) -> str:
        """Evaluate weights on all images and write the report on them; rank 0 alone calls it.

        Args:
            weights: what is judged.
            name: of the file that they are in.
            description: a line on them.

        Returns:
            str, a line on what was written.
        """
        load_weights(self.network, weights)
        score = evaluate(self.whole, self.batches(1, 0), self.run.smoothing, collect=self.report.add)
        preprocess = self.run.info.preprocess
        subject = Subject(name, description, preprocess, lambda: network_head(self.network, preprocess))
        return self.report.write(score, subject, self.bad.among(self.run.held_out), counted=True)


def create_evaluator(run: Run) -> Evaluator | None:
    """What judges weights, or None without a held-out set."""
    return Evaluator(run) if run.held_out else None


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


def report_end(run: Run, loop: TrainingLoop, started: float) -> None:
    """Say at the end what came of it, and write the report on the mistakes.

    Args:
        run, loop: what has ended.
        started: by `time.perf_counter`.
    """
    progress = loop.progress
    if loop.stop.signal:
        if loop.saved_path:
            then = "--resume auto goes on"
        else:
            then = "nothing was saved" if loop.checkpoints else "rank 0 saves"
        print(f"stopped by signal {loop.stop.signal} after step {progress.step} of {progress.total_steps}; {then}")
    report_best(progress, run.run_folder)
    if loop.saved_path:
        print(f"last checkpoint: {loop.saved_path}", flush=True)
    if progress.best and run.device.rank == 0 and not loop.stop.signal:
        report_mistakes(run, loop)
    print(f"total time: {format_seconds(time.perf_counter() - started)}", flush=True)


def report_mistakes(run: Run, loop: TrainingLoop) -> None:
    """Write the report on the best weights, or on the last where the best were not saved."""
    best = loop.progress.best
    path = os.path.join(run.run_folder, BEST_NAME)
    averaged = best["weights"] == "ema"
    try:
        checkpoint = read_checkpoint(path)
        weights, when = checkpoint.ema if averaged else checkpoint.weights, f"after epoch {best['epoch']}, the best"
    except RunError:
        cell = loop.step_cell
        weights = cell.average_weights() if averaged else network_weights(cell.network)
        path, when = run.run_folder, f"after epoch {loop.progress.epoch}, the last"
    kind = "averaged" if averaged else "raw"
    print(loop.evaluate.write_report(weights, path, f"{VARIANTS[run.info.variant].title}, {kind} weights {when}"))


def report_best(progress: Progress, run_folder: str) -> None:
    """Say how good the best evaluation was and where its weights are."""
    if progress.best:
        path = os.path.join(run_folder, BEST_NAME)
        where = f", in {path}" if os.path.exists(path) else ""
        print(
            f"best: top-1 {progress.best['top_1']:.4f} after epoch {progress.best['epoch']} "
            f"({progress.best['weights']} weights){where}"
        )
