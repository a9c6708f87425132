"""What an ONNX file expects of an image and calls its classes: by its own description, or by the user's flags."""

from __future__ import annotations

import dataclasses

import numpy as np

from src.common.cli import RunError, UsageError, describe_os_error
from src.data.imagenet import read_classes
from src.images.preprocess import Preprocess
from src.weights.model_info import ModelInfo


@dataclasses.dataclass(frozen=True)
class GivenSettings:
    """What the user says of a file; None where nothing was said.

    Attributes:
        image_size, resize: pixels; see `Preprocess`.
        crop_ratio: image_size by the shorter side after resizing, another way to give `resize`.
        interpolation: "bicubic" or "bilinear".
        mean, std: per channel R, G, B in units of 0 to 255.
        class_names: in the order of the logits.
    """

    image_size: int | None = None
    resize: int | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self):
        if self.resize is not None and self.crop_ratio is not None:
            raise UsageError("--resize and --crop_ratio say the same in two ways; give one of them")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError("--std must be above 0")
        if self.std is not None and max(self.std) < 1:
            raise UsageError(
                f"--std {format_setting(self.std)} looks like units of 0 to 1; here pixels are 0 to 255: "
                "multiply mean and std by 255"
            )


def format_setting(value: object) -> str:
    """A setting as its flag takes it."""
    return ",".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)


def read_class_names(source: str) -> tuple[str, ...]:
    """Class names from a text file, one a line in the order of the logits, or ImageNet's for the word `imagenet`.

    Raises:
        RunError: if the file cannot be read or holds none.
    """
    if source == "imagenet":
        return tuple(name for _, name in read_classes())
    try:
        with open(source, encoding="utf-8") as file:
            names = tuple(file.read().splitlines())
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    except UnicodeDecodeError:
        raise RunError(f"{source}: it is not a text file of class names") from None
    if not names:
        raise RunError(f"{source}: it holds no class names")
    return names


def check_agreement(given: GivenSettings, info: ModelInfo, path: str) -> None:
    """Refuse flags that contradict what a file says of itself.

    Raises:
        UsageError: with both values.
    """
    preprocess = info.preprocess
    for name in ("image_size", "resize", "interpolation", "mean", "std"):
        value, before = getattr(given, name), getattr(preprocess, name)
        if value is not None and value != before:
            raise UsageError(f"--{name} is {format_setting(value)}, but {path} says {format_setting(before)}")
    if given.crop_ratio is not None:
        resize = Preprocess.for_image_size(preprocess.image_size, given.crop_ratio).resize
        if resize != preprocess.resize:
            raise UsageError(
                f"--crop_ratio {given.crop_ratio:g} makes the shorter side {resize} pixels, but {path} says "
                f"{preprocess.resize}"
            )
    if given.class_names is not None and info.class_names is not None:
        for label, (here, there) in enumerate(zip(given.class_names, info.class_names)):
            if here != there:
                raise UsageError(f"--class_names has '{here}' as class {label}, but {path} says '{there}'")


def complete_settings(given: GivenSettings, side: int | None, input_type: type, path: str) -> Preprocess:
    """The settings of a file that does not describe itself.

    Raises:
        UsageError: naming the flags that are missing.
    """
    normalises = input_type == np.uint8
    size = given.image_size or side
    missing = [] if size else ["--image_size"]
    missing += [f"--{name}" for name in ("mean", "std") if not normalises and getattr(given, name) is None]
    if missing:
        raise UsageError(
            f"{path} does not say how its images are prepared (export.py did not write it): {' and '.join(missing)} "
            "must be given"
        )
    if normalises and (given.mean or given.std):
        raise UsageError(f"{path} takes uint8 pixels and normalises them itself: leave out --mean and --std")
    settings = {name: getattr(given, name) for name in ("interpolation", "mean", "std")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if given.resize is None:
        return Preprocess.for_image_size(size, given.crop_ratio or 0.875, **settings)
    if given.resize < size:
        raise UsageError(f"--resize is {given.resize}, less than the image size {size}")
    return Preprocess(image_size=size, resize=given.resize, **settings)


def settle_classes(
    info: ModelInfo | None, given: GivenSettings, preprocess: Preprocess, num_classes: int, path: str
) -> ModelInfo:
    """The file's description with its class count and names.

    Raises:
        RunError: if the file's description has another count than its logits.
        UsageError: if there are not as many names as classes.
    """
    if info and info.num_classes != num_classes:
        raise RunError(f"{path}: it describes {info.num_classes} classes, but it has {num_classes} logits")
    names = given.class_names if info is None or info.class_names is None else info.class_names
    if names is not None and len(names) != num_classes:
        raise UsageError(f"--class_names holds {len(names)} names, but {path} has {num_classes} classes")
    if info:
        return dataclasses.replace(info, class_names=names)
    return ModelInfo(num_classes=num_classes, class_names=names, preprocess=preprocess)
