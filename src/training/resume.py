"""How a run begins with what another one left: its whole state, or its trained weights."""

from __future__ import annotations

import dataclasses

from mindspore import nn

from src.common.cli import UsageError
from src.config import Config
from src.parameters import PARAMETERS
from src.training.schedule import Progress
from src.training.step import TrainStep, network_weights
from src.weights.checkpoint import Checkpoint
from src.weights.model_info import ModelInfo
from src.weights.names import Weights
from src.weights.network import load_weights


def merge_resumed(config: Config, checkpoint: Checkpoint, rank_size: int) -> Config:
    """Take the parameters of the run that wrote a checkpoint, with what the caller may change.

    Raises:
        UsageError: if a given flag contradicts the run, or the checkpoint is not one of a run.
    """
    saved = checkpoint.state.get("config")
    if not isinstance(saved, dict) or "progress" not in checkpoint.state:
        raise UsageError(
            f"--resume {checkpoint.path}: it holds weights but no training state; --pretrained starts from it"
        )
    if checkpoint.state.get("rank_size", rank_size) != rank_size:
        raise UsageError(
            f"--resume {checkpoint.path}: it was written by {checkpoint.state['rank_size']} ranks, but {rank_size} "
            "run now"
        )
    saved = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
    kept = {name for name, parameter in PARAMETERS.items() if not parameter.resumable}
    longer = "epoch_size" in config.given and config.epoch_size > saved["epoch_size"]
    if longer:
        kept.remove("epoch_size")
    for name in sorted(config.given & kept):
        if getattr(config, name) != saved.get(name):
            raise UsageError(
                f"--{name} {getattr(config, name)} contradicts the resumed run, which has {name} {saved.get(name)}"
            )
    return config.replace(**{name: value for name, value in saved.items() if name in kept})


def adopt_pretrained(config: Config, checkpoint: Checkpoint) -> Config:
    """Take from trained weights what network they are of and what images they expect, where no flag says otherwise.

    Raises:
        UsageError: if a flag names another variant, padding or epsilon than the weights were trained with.
    """
    info, preprocess = checkpoint.info, checkpoint.info.preprocess
    values = {name: getattr(info, name) for name in ("variant", "padding", "norm_eps")}
    config.check_trained(values, checkpoint.path)
    values.update({name: getattr(preprocess, name) for name in ("image_size", "interpolation", "mean", "std")})
    values["crop_ratio"] = preprocess.image_size / preprocess.resize
    return config.replace(**{name: value for name, value in values.items() if name not in config.given})


def fit_classifier(checkpoint: Checkpoint, info: ModelInfo, network: nn.Cell) -> Weights:
    """Weights of a checkpoint for a network; with another class count its dense layer keeps its own start."""
    weights = checkpoint.ema or checkpoint.weights
    if checkpoint.info.num_classes == info.num_classes:
        return weights
    fresh = network_weights(network)
    return {name: fresh[name] if name.startswith("classifier.") else value for name, value in weights.items()}


def check_class_names(resumed: Checkpoint, now: ModelInfo) -> None:
    """Refuse to go on with a folder whose labels mean something else.

    Raises:
        UsageError: if the class names differ.
    """
    if resumed.info.class_names != now.class_names:
        raise UsageError("--resume: the checkpoint was trained on classes of other names than those in --dataset_path")


def restore(resumed: Checkpoint, network: nn.Cell, step_cell: TrainStep, progress: Progress) -> None:
    """Put network, optimiser, averages and progress back where the checkpoint's run was.

    Raises:
        UsageError: if the checkpoint lacks a part of that, or the images have changed.
    """
    load_weights(network, resumed.weights)
    missing = step_cell.restore(resumed.training, resumed.ema)
    if missing:
        raise UsageError(f"--resume {resumed.path}: its training state lacks {missing[0]}")
    before = Progress(**resumed.state["progress"])
    if (before.images, before.steps_per_epoch) != (progress.images, progress.steps_per_epoch):
        raise UsageError(
            f"--resume {resumed.path}: its epochs had {before.steps_per_epoch} steps over {before.images} images, but "
            f"the folder makes {progress.steps_per_epoch} steps of {progress.images} now; the images have changed"
        )
    for field in dataclasses.fields(Progress):
        # A run may be made longer.
        if field.name != "epochs":
            setattr(progress, field.name, getattr(before, field.name))
