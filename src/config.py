"""Every parameter, its default and its command-line flag; `config` has the defaults as attributes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
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
    """A parameter and all that is known of it.

    Attributes:
        name: of the attribute and of the flag.
        default: None where the value follows from the folder, the machine or other parameters.
        read: from the flag's text to the value.
        help: for `--help`.
        resumable: whether a resumed run may change it: where things are, how they are shown, which device computes.
        is_path: whether its value is a path.
        by_launcher: why the launcher of several ranks gives it, so that a user must not; empty where it does not.
    """

    name: str
    default: Any
    read: Callable[[str], Any]
    help: str
    resumable: bool = False
    is_path: bool = False
    by_launcher: str = ""


fixed = Parameter
"""A parameter that a resumed run must keep."""


def free(*arguments, **more) -> Parameter:
    """A parameter that a resumed run may change."""
    return Parameter(*arguments, resumable=True, **more)


def path(*arguments, **more) -> Parameter:
    """A parameter whose value is a path; a resumed run may change it."""
    return Parameter(*arguments, resumable=True, is_path=True, **more)


# Why the launcher gives these itself.
DATA_DIR = "it is DATA_DIR"
OWN_DEVICE = "the rank table gives each rank its device"
TOGETHER = "ranks that are started together train together"

GROUPS = {
    "paths and device": (
        path("dataset_path", None, str, "class folders, or a MindRecord of them, to train on", by_launcher=DATA_DIR),
        path("eval_dataset_path", None, str, "the same to evaluate on while training"),
        free("device_target", None, choice("Ascend", "GPU", "CPU"), "device; an NPU if there is one, else the CPU"),
        free("device_id", None, non_negative_int, "number of the device; else DEVICE_ID or 0", by_launcher=OWN_DEVICE),
        free("kernels", True, boolean, "on a CPU: compute with kernels that are compiled on first use"),
        fixed("run_distribute", False, boolean, "train as one rank of many", by_launcher=TOGETHER),
        fixed("sync_bn", False, boolean, "compute batch-norm statistics over all ranks, where the device can"),
        free("run_modelarts", False, boolean, "on ModelArts: copy images in and checkpoints out by moxing"),
        free("data_url", None, str, "ModelArts: folder of the object store with the images"),
        free("train_url", None, str, "ModelArts: folder of the object store for the checkpoints"),
    ),
    "network": (
        fixed("variant", "b0", choice(*VARIANTS), "member of the family"),
        fixed("class_num", 1000, positive_int, "number of classes; taken from the folder when left out"),
        fixed("image_size", 224, number(int, 32, 2048), "pixels, side of the input; the variant's when left out"),
        fixed("dropout_rate", None, fraction_below_one, "dropout before the dense layer; the variant's when left out"),
        fixed("drop_connect_rate", 0.2, fraction_below_one, "drop-connect of the last block; grows from the first"),
        fixed("padding", "same", choice(*PADDINGS), "same is TensorFlow's, symmetric is PyTorch's"),
        fixed("norm_eps", 1e-3, number(float, 1e-9, 0.1), "epsilon of the batch norm"),
        fixed("norm_momentum", 0.99, number(float, 0, 0.9999), "share of the old statistics that a step keeps"),
        path("pretrained", None, str, "checkpoint, or name of published weights, that the run starts from"),
        fixed("freeze", 0, number(int, 0, 9), "first parts held fixed: 1 the stem, 2 to 8 the stages too, 9 the head"),
    ),
    "images": (
        fixed("batch_size", 256, positive_int, "images a step and device"),
        fixed("random_crop", True, boolean, "random resized crop in training; off: the whole image, resized"),
        fixed("crop_scale_min", 0.08, number(float, 0.01, 1), "smallest share of the area that a random crop takes"),
        fixed("crop_aspect_max", 4 / 3, number(float, 1, 4), "most elongated random crop, either way"),
        fixed("flip", True, boolean, "random horizontal flip in training"),
        fixed("color_jitter", 0.4, fraction, "strength of random brightness, contrast and saturation; 0 is off"),
        fixed("auto_augment", "none", choice("none", "randaugment", "autoaugment"), "learned augmentation policy"),
        fixed("random_erasing", 0.0, fraction, "probability that a rectangle of a training image is erased"),
        fixed("mixup", 0.0, number(float, 0, 10), "alpha of mixup, which blends pairs of images; 0 is off"),
        fixed("cutmix", 0.0, number(float, 0, 10), "alpha of cutmix, which pastes parts of images; 0 is off"),
        fixed("repeats", 1, positive_int, "how often an epoch shows each of its images, augmented anew each time"),
        fixed("interpolation", "bicubic", choice(*INTERPOLATIONS), "resizing in evaluation, as Pillow computes it"),
        fixed("crop_ratio", 0.875, number(float, 0.1, 1), "evaluation: image_size by the shorter side after resizing"),
        fixed("mean", (127.5,) * 3, three_floats, "subtracted from pixels of 0 to 255; one number or R,G,B"),
        fixed("std", (127.5,) * 3, three_floats, "divides the pixels; one number or R,G,B"),
        free("num_workers", None, positive_int, "threads that prepare images; follows the machine when left out"),
        free("max_bad_images", 0.001, fraction, "share of unreadable training images above which the run fails"),
    ),
    "loss and optimiser": (
        fixed("recipe", "zoo", choice("zoo", "timm_ra"), "named set of flags, see src/training/recipes.py"),
        fixed("use_label_smooth", True, boolean, "whether to smooth the labels"),
        fixed("label_smooth_factor", 0.1, fraction_below_one, "probability taken from the true class"),
        fixed("opt", "rmsprop", choice("rmsprop", "sgd"), "optimiser"),
        fixed("opt_eps", 0.001, positive_float, "RMSProp's epsilon, inside the square root"),
        fixed("opt_decay", 0.9, fraction_below_one, "RMSProp's decay of the mean square"),
        fixed("momentum", 0.9, fraction_below_one, "momentum"),
        fixed("weight_decay", 1e-5, non_negative_float, "weight decay of convolution and dense weights"),
        fixed("decay_all", False, boolean, "decay batch-norm parameters and biases as well"),
        fixed("loss_scale", 1024, number(float, 1), "fixed factor on the loss, against underflow in float16"),
        fixed("amp_level", None, choice("O0", "O1", "O2", "O3"), "mixed precision; O3 on Ascend, else O0"),
        fixed("clip_norm", 0.0, non_negative_float, "largest global norm of the gradients; 0 is no clipping"),
        fixed("accumulate_steps", 1, positive_int, "batches whose mean gradient makes one update"),
        fixed("use_ema", False, boolean, "keep a moving average of the weights"),
        fixed("ema_decay", 0.9999, number(float, 0, 0.999999, open_low=True), "decay of the moving average"),
    ),
    "learning rate": (
        fixed("epoch_size", 350, positive_int, "epochs"),
        fixed("warmup_epochs", 2, non_negative_float, "epochs over which the rate rises from lr_init to lr_max"),
        fixed("lr_decay_mode", "liner", choice(*DECAY_MODES), "how the rate falls; liner is the zoo's linear"),
        fixed("lr_init", 0.0001, non_negative_float, "learning rate at the first step"),
        fixed("lr_max", 0.2, positive_float, "peak rate, for a global batch of 2048"),
        fixed("lr_end", 0.00001, non_negative_float, "learning rate at the end"),
        fixed("scale_lr", False, boolean, "scale the three rates by the global batch divided by 2048"),
    ),
    "checkpoints": (
        free("save_checkpoint", True, boolean, "whether to save checkpoints"),
        free("save_checkpoint_epochs", 1, positive_int, "epochs between two checkpoints"),
        free("save_checkpoint_steps", None, positive_int, "steps between two further checkpoints within an epoch"),
        free("keep_checkpoint_max", 5, positive_int, "how many checkpoints are kept"),
        path("save_checkpoint_path", "./checkpoint", str, "folder; rank r writes to its model_r"),
        path("resume", None, str, "checkpoint to go on from, or auto for the newest of this run that is whole"),
    ),
    "run": (
        free("eval_interval", 1, positive_int, "epochs between two evaluations"),
        free("early_stop", None, positive_int, "stop after this many evaluations without a better top-1"),
        free("tensorboard", True, boolean, "write TensorBoard event files beside the checkpoints"),
        fixed("seed", 1, number(int, 0, 2**31 - 1), "seed of weights, order, augmentation and dropout"),
        free("log_interval", 50, positive_int, "steps between two plain log lines where there is no terminal"),
        free("sink_size", 100, positive_int, "most steps sent to the device at once, where it has data sink"),
    ),
}

PARAMETERS = {parameter.name: parameter for group in GROUPS.values() for parameter in group}
GONE = {"keep_graph": "compiled training steps are no longer kept; leave it out"}
"""Flags of earlier versions, with what their users need to know."""


def path_parameters() -> tuple[str, ...]:
    """Names of the parameters whose values are paths."""
    return tuple(parameter.name for parameter in PARAMETERS.values() if parameter.is_path)


class Config:
    """The parameters as attributes.

    Attributes:
        given: names of the parameters that were set explicitly.
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

    def part(self, kind: type, **others):
        """The small value that a room needs: a dataclass whose fields have parameters' names.

        Args:
            kind: the dataclass.
            others: fields that are no parameters, or have another value here.
        """
        names = [field.name for field in dataclasses.fields(kind) if field.name in PARAMETERS]
        return kind(**{**{name: getattr(self, name) for name in names}, **others})

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

    def check_trained(self, trained: Mapping[str, Any], path: str, hint: str = "") -> None:
        """Refuse flags that contradict `trained`, the values of the checkpoint in `path`.

        Raises:
            UsageError: with both values, and at the end `hint`, what the user can do.
        """
        for name, before in trained.items():
            now = getattr(self, name)
            if name in self.given and now != before:
                raise UsageError(f"--{name} is {now}, but {path} was trained with {before}{hint}")


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
    if names is None:
        for name in GONE:
            parser.add_argument(
                f"--{name}", action=GoneFlag, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS
            )


class GoneFlag(argparse.Action):
    """A flag of an earlier version: using it is an error that says what became of it."""

    def __call__(self, parser, namespace, values, option_string=None):
        raise UsageError(f"{option_string} is gone: {GONE[self.dest]}")


def add_averaged_flag(parser: argparse.ArgumentParser) -> None:
    """Give a parser the flag `--use_ema` of the scripts that read checkpoints; its destination is `averaged`.

    Training has a parameter of this name, which says whether an average is kept.
    """
    parser.add_argument(
        "--use_ema",
        dest="averaged",
        type=boolean,
        default=True,
        metavar="USE_EMA",
        help="take averaged weights where the file has them (default: True)",
    )


def take_parameters(arguments: argparse.Namespace) -> Config:
    """Move the parameters out of parsed arguments into a checked Config."""
    values = {name: value for name, value in vars(arguments).items() if name in PARAMETERS}
    for name in values:
        delattr(arguments, name)
    result = Config(**values)
    result.check()
    return result
