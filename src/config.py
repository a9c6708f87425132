"""Every parameter, its default and its command-line flag.

`from src.config import config` gives the defaults as attributes; `parse_config(argv)` reads train.py's flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, Callable

from src.common.cli import (
    UsageError,
    boolean,
    choice,
    fraction,
    fraction_below_one,
    non_negative_float,
    non_negative_int,
    number,
    positive_float,
    positive_int,
    three_floats,
)
from src.images.preprocess import INTERPOLATIONS, Preprocess
from src.lr_generator import DECAY_MODES
from src.models.family import PADDINGS, VARIANTS


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter: its name (also the flag's), default, reader and help text."""

    name: str
    default: Any
    read: Callable[[str], Any]
    help: str
    is_path: bool = False


GROUPS = {
    "paths and device": (
        Parameter(
            "dataset_path", None, str, "folder of class folders, or a MindRecord made of one, to train on", is_path=True
        ),
        Parameter("eval_dataset_path", None, str, "the same to evaluate on while training", is_path=True),
        Parameter(
            "device_target", None, choice("Ascend", "GPU", "CPU"), "device; an NPU if there is one, else the CPU"
        ),
        Parameter(
            "device_id", None, non_negative_int, "number of the device on this host; DEVICE_ID or 0 when left out"
        ),
        Parameter("kernels", True, boolean, "on a CPU: compute with kernels that are compiled on first use"),
        Parameter("keep_graph", True, boolean, "on a CPU: keep the compiled training step for the next start"),
        Parameter("run_distribute", False, boolean, "train as one rank of many; the launcher sets up the ranks"),
        Parameter("sync_bn", False, boolean, "compute batch-norm statistics over all ranks, where the device can"),
        Parameter("run_modelarts", False, boolean, "on ModelArts: copy images in and checkpoints out by moxing"),
        Parameter("data_url", None, str, "ModelArts: folder of the object store with the images"),
        Parameter("train_url", None, str, "ModelArts: folder of the object store for the checkpoints"),
    ),
    "network": (
        Parameter("variant", "b0", choice(*VARIANTS), "member of the family, b0 to b7"),
        Parameter("class_num", 1000, positive_int, "number of classes; taken from the folder when left out"),
        Parameter("image_size", 224, number(int, 32, 2048), "pixels, side of the input; the variant's when left out"),
        Parameter(
            "dropout_rate", None, fraction_below_one, "dropout before the dense layer; the variant's own when left out"
        ),
        Parameter(
            "drop_connect_rate",
            0.2,
            fraction_below_one,
            "drop-connect of the last block; grows linearly from the first",
        ),
        Parameter("padding", "same", choice(*PADDINGS), "same is TensorFlow's, symmetric is PyTorch's"),
        Parameter("norm_eps", 1e-3, number(float, 1e-9, 0.1), "epsilon of the batch norm"),
        Parameter("norm_momentum", 0.99, number(float, 0, 0.9999), "share of the old statistics that a step keeps"),
        Parameter("pretrained", None, str, "checkpoint whose weights the run starts from", is_path=True),
        Parameter(
            "freeze", 0, number(int, 0, 9), "first parts held fixed: 1 the stem, 2 to 8 the stages too, 9 the head"
        ),
    ),
    "images": (
        Parameter("batch_size", 256, positive_int, "images a step and device"),
        Parameter("random_crop", True, boolean, "random resized crop in training; off: the whole image, resized"),
        Parameter(
            "crop_scale_min", 0.08, number(float, 0.01, 1), "smallest share of the area that a random crop takes"
        ),
        Parameter("crop_aspect_max", 4 / 3, number(float, 1, 4), "most elongated random crop, either way"),
        Parameter("flip", True, boolean, "random horizontal flip in training"),
        Parameter("color_jitter", 0.4, fraction, "strength of random brightness, contrast and saturation; 0 is off"),
        Parameter("auto_augment", "none", choice("none", "randaugment", "autoaugment"), "learned augmentation policy"),
        Parameter("random_erasing", 0.0, fraction, "probability that a rectangle of a training image is erased"),
        Parameter("mixup", 0.0, number(float, 0, 10), "alpha of mixup, which blends pairs of images; 0 is off"),
        Parameter(
            "cutmix", 0.0, number(float, 0, 10), "alpha of cutmix, which pastes a part of another image; 0 is off"
        ),
        Parameter(
            "repeats", 1, positive_int, "times that an epoch shows each image that it takes, each time augmented anew"
        ),
        Parameter("interpolation", "bicubic", choice(*INTERPOLATIONS), "resizing in evaluation, as Pillow computes it"),
        Parameter(
            "crop_ratio", 0.875, number(float, 0.1, 1), "image_size by the shorter side after resizing, evaluation"
        ),
        Parameter("mean", (127.5,) * 3, three_floats, "subtracted from pixels of 0 to 255; one number or R,G,B"),
        Parameter("std", (127.5,) * 3, three_floats, "divides the pixels; one number or R,G,B"),
        Parameter("num_workers", None, positive_int, "threads that prepare images; follows the machine when left out"),
        Parameter("max_bad_images", 0.001, fraction, "share of unreadable training images above which the run fails"),
    ),
    "loss and optimiser": (
        Parameter("recipe", "zoo", choice("zoo", "timm_ra"), "named set of flags, see src/training/recipes.py"),
        Parameter("use_label_smooth", True, boolean, "whether to smooth the labels"),
        Parameter(
            "label_smooth_factor", 0.1, fraction_below_one, "probability that label smoothing takes from the true class"
        ),
        Parameter("opt", "rmsprop", choice("rmsprop", "sgd"), "optimiser"),
        Parameter("opt_eps", 0.001, positive_float, "RMSProp's epsilon, inside the square root"),
        Parameter("opt_decay", 0.9, fraction_below_one, "RMSProp's decay of the mean square"),
        Parameter("momentum", 0.9, fraction_below_one, "momentum"),
        Parameter("weight_decay", 1e-5, non_negative_float, "weight decay of convolution and dense weights"),
        Parameter("decay_all", False, boolean, "decay batch-norm parameters and biases as well"),
        Parameter("loss_scale", 1024, number(float, 1), "fixed factor on the loss, against underflow in float16"),
        Parameter("amp_level", None, choice("O0", "O1", "O2", "O3"), "mixed precision; O3 on Ascend, else O0"),
        Parameter("clip_norm", 0.0, non_negative_float, "largest global norm of the gradients; 0 is no clipping"),
        Parameter("accumulate_steps", 1, positive_int, "batches whose mean gradient makes one update"),
        Parameter("use_ema", False, boolean, "keep a moving average of the weights"),
        Parameter("ema_decay", 0.9999, number(float, 0, 0.999999, open_low=True), "decay of the moving average"),
    ),
    "learning rate": (
        Parameter("epoch_size", 350, positive_int, "epochs"),
        Parameter("warmup_epochs", 2, non_negative_float, "epochs over which the rate rises from lr_init to lr_max"),
        Parameter("lr_decay_mode", "liner", choice(*DECAY_MODES), "how the rate falls; liner is the zoo's linear"),
        Parameter("lr_init", 0.0001, non_negative_float, "learning rate at the first step"),
        Parameter("lr_max", 0.2, positive_float, "peak learning fraction_below_one, for a global batch of 2048"),
        Parameter("lr_end", 0.00001, non_negative_float, "learning rate at the end"),
        Parameter("scale_lr", False, boolean, "scale the three rates by the global batch divided by 2048"),
    ),
    "checkpoints": (
        Parameter("save_checkpoint", True, boolean, "whether to save checkpoints"),
        Parameter("save_checkpoint_epochs", 1, positive_int, "epochs between two checkpoints"),
        Parameter("save_checkpoint_steps", None, positive_int, "steps between two further checkpoints within an epoch"),
        Parameter("keep_checkpoint_max", 5, positive_int, "how many checkpoints are kept"),
        Parameter("save_checkpoint_path", "./checkpoint", str, "folder; rank r writes to its model_r", is_path=True),
        Parameter(
            "resume",
            None,
            str,
            "checkpoint to go on from, or auto for the newest of this run that is whole",
            is_path=True,
        ),
    ),
    "run": (
        Parameter("eval_interval", 1, positive_int, "epochs between two evaluations"),
        Parameter("early_stop", None, positive_int, "stop after this many evaluations without a better top-1"),
        Parameter("tensorboard", True, boolean, "write TensorBoard event files beside the checkpoints"),
        Parameter("seed", 1, number(int, 0, 2**31 - 1), "seed of weights, order, augmentation and dropout"),
        Parameter("log_interval", 50, positive_int, "steps between two plain log lines where there is no terminal"),
        Parameter(
            "sink_size", 100, positive_int, "largest number of steps sent to the device at once, where it has data sink"
        ),
    ),
}

PARAMETERS = {parameter.name: parameter for group in GROUPS.values() for parameter in group}


def path_parameters() -> tuple[str, ...]:
    """Names of the parameters whose values are paths."""
    return tuple(name for name, parameter in PARAMETERS.items() if parameter.is_path)


class Config:
    """The parameters as attributes.

    Attributes:
        given: names of those that the caller set, as far as they differ from a default being left alone.
    """

    def __init__(self, **values):
        unknown = set(values) - set(PARAMETERS)
        if unknown:
            raise AttributeError(f"there is no parameter {sorted(unknown)[0]}")
        for parameter in PARAMETERS.values():
            setattr(self, parameter.name, values.get(parameter.name, parameter.default))
        self.given = frozenset(values)

    def as_dict(self) -> dict:
        """Name to value."""
        return {name: getattr(self, name) for name in PARAMETERS}

    def to_json(self) -> str:
        """The resolved parameters as JSON text, for the file beside the checkpoints."""
        return json.dumps(self.as_dict(), indent=2) + "\n"

    def replace(self, **values) -> Config:
        """A copy with other values; what was given stays given."""
        copy = Config(**{**self.as_dict(), **values})
        copy.given = self.given
        return copy

    @property
    def preprocess(self) -> Preprocess:
        """What evaluation does to an image."""
        return Preprocess.for_image_size(
            self.image_size, self.crop_ratio, interpolation=self.interpolation, mean=self.mean, std=self.std
        )

    def check(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            UsageError: with both names.
        """
        if self.warmup_epochs > self.epoch_size:
            raise UsageError(f"--warmup_epochs {self.warmup_epochs:g} is more than --epoch_size {self.epoch_size}")
        if self.lr_end > self.lr_max:
            raise UsageError(f"--lr_end {self.lr_end:g} is above --lr_max {self.lr_max:g}")
        if self.lr_init > self.lr_max:
            raise UsageError(f"--lr_init {self.lr_init:g} is above --lr_max {self.lr_max:g}")
        if min(self.std) <= 0:
            raise UsageError("--std must be above 0")


config = Config()
"""The defaults; scripts derive their own from flags."""


def add_parameters(parser: argparse.ArgumentParser, names: Sequence[str] | None = None) -> None:
    """Give a parser a flag for each parameter, or for those named."""
    for title, group in GROUPS.items():
        wanted = [parameter for parameter in group if names is None or parameter.name in names]
        if not wanted:
            continue
        section = parser.add_argument_group(title)
        for parameter in wanted:
            shown = parameter.default if parameter.default is not None else "automatic"
            section.add_argument(
                f"--{parameter.name}",
                type=parameter.read,
                default=argparse.SUPPRESS,
                metavar=parameter.name.upper(),
                help=f"{parameter.help} (default: {shown})".replace("%", "%%"),
            )


def take_parameters(arguments: argparse.Namespace) -> Config:
    """Move the parameters out of parsed arguments into a checked Config."""
    values = {name: value for name, value in vars(arguments).items() if name in PARAMETERS}
    for name in values:
        delattr(arguments, name)
    result = Config(**values)
    result.check()
    return result
