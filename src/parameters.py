"""Every parameter: its name, default, reader, help and what it means for a resumed run."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable

from src.common.cli import (
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
from src.images.preprocess import INTERPOLATIONS
from src.lr_generator import DECAY_MODES
from src.models.family import PADDINGS, VARIANTS


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter and all that is known of it.

    Attributes:
        name: of the attribute and of the flag.
        default: None where there is none, or where the value follows from the folder, the machine or other parameters.
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
        path("dataset_path", None, str, "class folders, a list or a MindRecord to train on", by_launcher=DATA_DIR),
        path("eval_dataset_path", None, str, "the same to evaluate on while training"),
        fixed("val_share", 0.0, number(float, 0, 0.5), "share of each class that is held out for that; 0 is none"),
        free("device_target", None, choice("Ascend", "GPU", "CPU"), "device; an NPU if there is one, else the CPU"),
        free("device_id", None, non_negative_int, "number of the device; else DEVICE_ID or 0", by_launcher=OWN_DEVICE),
        free(
            "kernels", True, boolean, "kernels for training: in C++ on a CPU, compiled on first use; of aclnn on Ascend"
        ),
        free("jit_level", None, choice("O0", "O1", "O2"), "how far graphs are optimised; on NPUs O0, else MindSpore's"),
        free(
            "conv_precision",
            None,
            choice("fp32", "hf32", "fp16"),
            "what NPUs' convolutions make of float32; else CANN's",
        ),
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
        free(
            "max_bad_images", 0.001, fraction, "share of unreadable training images that may be; above 0, 3 always may"
        ),
    ),
    "loss and optimiser": (
        fixed("recipe", "zoo", choice("zoo", "timm_ra", "finetune"), "set of flags, see src/recipes/"),
        fixed("class_weights", "none", choice("none", "balanced"), "balanced: each class counts alike in the loss"),
        fixed("use_label_smooth", True, boolean, "whether to smooth the labels"),
        fixed("label_smooth_factor", 0.1, fraction_below_one, "probability taken from the true class"),
        fixed("opt", "rmsprop", choice("rmsprop", "sgd"), "optimiser"),
        fixed("opt_eps", 0.001, positive_float, "RMSProp's epsilon, inside the square root"),
        fixed("opt_decay", 0.9, fraction_below_one, "RMSProp's decay of the mean square"),
        fixed("momentum", 0.9, fraction_below_one, "momentum"),
        fixed("weight_decay", 1e-5, non_negative_float, "weight decay of convolution and dense weights"),
        fixed("decay_all", False, boolean, "decay batch-norm parameters and biases as well"),
        fixed("loss_scale", 1024, number(float, 1), "factor on the loss, against underflow in float16"),
        fixed("loss_scale_mode", "fixed", choice("fixed", "dynamic"), "dynamic: smaller where gradients overflow"),
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
        free(
            "profile", None, positive_int, "steps after the first that MindSpore's profiler records in the run's folder"
        ),
        free("sink_size", 100, positive_int, "most steps sent to the device at once, where it has data sink"),
    ),
}

PARAMETERS = {parameter.name: parameter for group in GROUPS.values() for parameter in group}
FOUND = frozenset(
    "class_num image_size device_target device_id jit_level conv_precision dropout_rate amp_level num_workers".split()
)
"""Parameters whose values are found where no flag gives them; others without a default are off."""
GONE = {"keep_graph": "compiled training steps are no longer kept; leave it out"}
"""Flags of earlier versions, with what their users need to know."""


def path_parameters() -> tuple[str, ...]:
    """Names of the parameters whose values are paths."""
    return tuple(parameter.name for parameter in PARAMETERS.values() if parameter.is_path)
