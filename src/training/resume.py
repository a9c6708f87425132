"""How a run begins with what another one left: its whole state, or its trained weights."""

from __future__ import annotations

import argparse
import dataclasses

from mindspore import nn

from src.common.cli import RunError, UsageError
from src.config import Config
from src.parameters import PARAMETERS
from src.training.schedule import Progress
from src.training.step import TrainStep, network_weights
from src.weights.checkpoint import Checkpoint
from src.weights.model_info import ModelInfo
from src.weights.names import Weights
from src.weights.network import load_weights

STATE_FORMAT = 1
"""Number of the layout of a checkpoint's training state; 1 where a file has none. A field that is added later, with a
default, keeps the number; one without which a run cannot go on takes the next."""


def check_state(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose training state was compared with what this program writes: each value is of its kind.

    Raises:
        UsageError: if it is not one of a run.
        RunError: if a newer program wrote it, or it is damaged.
    """
    state = checkpoint.state
    if not isinstance(state.get("config"), dict) or not isinstance(state.get("progress"), dict):
        raise UsageError(
            f"--resume {checkpoint.path}: it holds weights but no training state; --pretrained starts from it"
        )
    number = state.get("format", 1)
    if number != STATE_FORMAT:
        raise RunError(
            f"--resume {checkpoint.path}: its training state is of format {number}, and this program knows format "
            f"{STATE_FORMAT}; go on with the version that wrote it"
        )
    try:
        config = {name: read_saved(name, value) for name, value in state["config"].items() if name in PARAMETERS}
        Progress.from_dict(state["progress"])
        if type(state.get("rank_size", 1)) is not int or "epoch_size" not in config:
            raise ValueError("it does not say how long the run is")
    except (ValueError, TypeError, OverflowError, argparse.ArgumentTypeError) as error:
        raise RunError(f"--resume {checkpoint.path}: its training state is damaged ({error})") from None
    return dataclasses.replace(checkpoint, state={**state, "config": config})


def read_saved(name: str, value: object) -> object:
    """A parameter out of a checkpoint, as its flag would read it; None where that is its default.

    Raises:
        ValueError, argparse.ArgumentTypeError: if the flag would refuse it.
    """
    if value is None and PARAMETERS[name].default is None:
        return None
    return PARAMETERS[name].read(",".join(map(str, value)) if isinstance(value, list) else str(value))


def merge_resumed(config: Config, checkpoint: Checkpoint, rank_size: int) -> Config:
    """Take the parameters of the run that wrote a checkpoint, as `check_state` gave it, with what may change.

    Raises:
        UsageError: if a given flag contradicts the run.
    """
    saved = checkpoint.state["config"]
    if checkpoint.state.get("rank_size", rank_size) != rank_size:
        raise UsageError(
            f"--resume {checkpoint.path}: it was written by {checkpoint.state['rank_size']} ranks, but {rank_size} "
            "run now"
        )
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
        RunError: if the checkpoint lacks a part of that.
        UsageError: if the images have changed.
    """
    load_weights(network, resumed.weights)
    missing = step_cell.restore(resumed.training, resumed.ema)
    if missing:
        raise RunError(f"--resume {resumed.path}: its training state lacks {missing[0]}")
    before = Progress.from_dict(resumed.state["progress"])
    if (before.images, before.steps_per_epoch) != (progress.images, progress.steps_per_epoch):
        raise UsageError(
            f"--resume {resumed.path}: its epochs had {before.steps_per_epoch} steps over {before.images} images, but "
            f"the folder makes {progress.steps_per_epoch} steps of {progress.images} now; the images have changed"
        )
    for field in dataclasses.fields(Progress):
        # A run may be made longer.
        if field.name != "epochs":
            setattr(progress, field.name, getattr(before, field.name))
