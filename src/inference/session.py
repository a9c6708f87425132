"""An ONNX file opened in ONNX Runtime: on which device, what it expects of an image, which classes it tells apart.

A file of `export.py` says all of it itself. Another program's file needs `GivenSettings` for what it does not say.
"""

from __future__ import annotations

import dataclasses
import re
import sys

import numpy as np
import onnxruntime

from src.common.cli import RunError, UsageError, describe_os_error
from src.data.imagenet import read_classes
from src.images.preprocess import Preprocess, normalise
from src.weights.model_info import METADATA_KEY, ModelInfo

LOGITS = "logits"
PROVIDERS = {
    "Ascend": ("CANNExecutionProvider", "onnxruntime-cann"),
    "GPU": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "CPU": ("CPUExecutionProvider", "onnxruntime"),
}
"""Device to ONNX Runtime's provider and the package that has it; the first that is there is taken."""
INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
FATAL_ONLY = 4


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


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """A file that is ready to run; threads may share it.

    Attributes:
        path: the file.
        session: ONNX Runtime's.
        target: "CPU", "GPU" or "Ascend".
        info: what it expects and tells apart; the variant, padding and epsilon of a file that does not describe itself
            are not known, and nothing here depends on them.
        described: whether the file said so itself.
        input_name, output_name: its tensors.
        input_type: float32 or float16 for normalised images (N, 3, S, S), uint8 for pixels (N, S, S, 3).
        fixed_batch: the only batch size that it takes, or None for any.
    """

    path: str
    session: onnxruntime.InferenceSession
    target: str
    info: ModelInfo
    described: bool
    input_name: str
    output_name: str
    input_type: type
    fixed_batch: int | None

    def describe(self) -> str:
        """A line on what runs and how an image is prepared."""
        preprocess = self.info.preprocess
        kind = self.info.variant.upper() if self.described else "described by flags"
        steps = f"shorter side to {preprocess.resize} ({preprocess.interpolation}), centre {preprocess.image_size}"
        if self.input_type != np.uint8:
            steps += f", mean {format_setting(preprocess.mean)}, std {format_setting(preprocess.std)}"
        return f"{self.path}: {kind}, {self.info.num_classes} classes; {steps}"

    def new_batch(self, images: int) -> np.ndarray:
        """An input for this many images, not filled in; of `fixed_batch` rows of zeros where there is one."""
        side = self.info.preprocess.image_size
        shape = (side, side, 3) if self.input_type == np.uint8 else (3, side, side)
        if self.fixed_batch:
            return np.zeros((self.fixed_batch, *shape), self.input_type)
        return np.empty((images, *shape), self.input_type)

    def fill_row(self, row: np.ndarray, crop: np.ndarray) -> None:
        """Write a uint8 crop of shape (S, S, 3) to a row of a batch."""
        if self.input_type == np.float32:
            normalise(crop, self.info.preprocess, out=row)
        elif self.input_type == np.uint8:
            row[...] = crop
        else:
            row[...] = normalise(crop, self.info.preprocess)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Logits of a batch: float32 of shape (N, num_classes).

        Raises:
            RunError: if ONNX Runtime fails.
        """
        return run_session(self.session, self.path, self.input_name, self.output_name, batch).astype(
            np.float32, copy=False
        )


def open_model(
    path: str,
    given: GivenSettings,
    target: str | None = None,
    device_id: int | None = None,
    threads: int = 1,
) -> OnnxModel:
    """Open a file, settle what it expects, and run it once.

    Args:
        path: the ONNX file.
        given: what the user said of it.
        target: "CPU", "GPU" or "Ascend"; None takes the best that works.
        device_id: number of the GPU or NPU.
        threads: that one call on the CPU uses.

    Raises:
        UsageError: if the device is not there, settings are missing, or they contradict the file.
        RunError: if the file is missing, broken, or no classifier of images.
    """
    session, target = open_session(path, target, device_id, threads)
    tensor, output = single_input(session, path), pick_output(session)
    batch, input_type, side = check_input(tensor, path)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    info = ModelInfo.from_json(text, path) if text else None
    if info:
        check_agreement(given, info, path)
        preprocess = info.preprocess
    else:
        preprocess = complete_settings(given, side, input_type, path)
    if side not in (None, preprocess.image_size):
        error = UsageError if given.image_size else RunError
        raise error(f"{path}: its input is {side} pixels wide, but its images are to be {preprocess.image_size}")
    draft = ModelInfo(num_classes=1, preprocess=preprocess)
    model = OnnxModel(path, session, target, draft, info is not None, tensor.name, output, input_type, batch)
    num_classes = count_classes(model)
    return dataclasses.replace(model, info=settle_classes(info, given, preprocess, num_classes, path))


# The session


def open_session(
    path: str, target: str | None, device_id: int | None, threads: int
) -> tuple[onnxruntime.InferenceSession, str]:
    """A session on the device asked for, or on the best that works, and that device's name."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise RunError(describe_os_error(error)) from None
    available = onnxruntime.get_available_providers()
    if target is not None:
        provider, package = PROVIDERS[target]
        if provider not in available:
            raise UsageError(
                f"--device_target is {target}, but this ONNX Runtime cannot use it: install the package {package} "
                "in place of onnxruntime, or take --device_target CPU"
            )
    for candidate in (
        [target] if target else [name for name, (provider, _) in PROVIDERS.items() if provider in available]
    ):
        session = create_session(path, candidate, device_id, threads)
        # Where a driver or a library is missing, ONNX Runtime takes the CPU without a word.
        if PROVIDERS[candidate][0] in session.get_providers():
            return session, candidate
        sentence = f"ONNX Runtime has its {PROVIDERS[candidate][0]}, but it did not start; check driver and libraries"
        if target:
            raise RunError(f"--device_target is {target}: {sentence}")
        print(f"note: {candidate} is not used: {sentence}", file=sys.stderr, flush=True)
    raise RunError("ONNX Runtime has no provider that could be used")


def create_session(path: str, target: str, device_id: int | None, threads: int) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a file.

    Raises:
        RunError: if the file is no ONNX file, truncated, or of operators that this ONNX Runtime does not know.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What goes wrong comes back as an exception, too.
    options.log_severity_level = FATAL_ONLY
    settings = {} if target == "CPU" or device_id is None else {"device_id": str(device_id)}
    try:
        return onnxruntime.InferenceSession(
            path, options, providers=[(PROVIDERS[target][0], settings)], enable_fallback=0
        )
    except Exception as error:
        # ONNX Runtime's exceptions have no common class below Exception.
        if "INVALID_PROTOBUF" in str(error) or "No graph was found" in str(error):
            raise RunError(f"{path}: it is not an ONNX file, or it is truncated") from None
        raise RunError(f"{path}: ONNX Runtime cannot use it: {runtime_sentence(error)}") from None


def runtime_sentence(error: Exception) -> str:
    """An exception's text without ONNX Runtime's error numbers."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip()) or type(error).__name__


def run_session(
    session: onnxruntime.InferenceSession, path: str, input_name: str, output_name: str, batch: np.ndarray
) -> np.ndarray:
    """One output of a session.

    Raises:
        RunError: with ONNX Runtime's reason.
    """
    try:
        return session.run([output_name], {input_name: batch})[0]
    except Exception as error:
        raise RunError(
            f"{path}: running it on a batch of shape {batch.shape} failed: {runtime_sentence(error)}"
        ) from None


# What it expects


def single_input(session: onnxruntime.InferenceSession, path: str):
    """The one input of a file.

    Raises:
        RunError: if it has none or several.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise RunError(f"{path}: it has {len(inputs)} inputs, expected one, the image")
    return inputs[0]


def pick_output(session: onnxruntime.InferenceSession) -> str:
    """`logits` where there is such an output, else the first."""
    names = [output.name for output in session.get_outputs()]
    return LOGITS if LOGITS in names else names[0]


def check_input(tensor, path: str) -> tuple[int | None, type, int | None]:
    """Refuse an input that is no batch of images.

    Returns:
        Its fixed batch size or None, NumPy type, and side in pixels or None where any goes.

    Raises:
        RunError: with what it has and what was expected.
    """
    expected = "expected images of shape (N, 3, S, S) in float, or (N, S, S, 3) in uint8"
    shape = tensor.shape
    if tensor.type not in INPUT_TYPES:
        raise RunError(f"{path}: its input '{tensor.name}' is a {tensor.type}; {expected}")
    if len(shape) != 4:
        raise RunError(f"{path}: its input '{tensor.name}' has {len(shape)} dimensions; {expected}")
    input_type = INPUT_TYPES[tensor.type]
    batch, *rest = (dimension if isinstance(dimension, int) else None for dimension in shape)
    height, width, channels = rest if input_type == np.uint8 else (rest[1], rest[2], rest[0])
    if channels not in (3, None) or (height and width and height != width):
        raise RunError(f"{path}: its input '{tensor.name}' has the shape {tuple(shape)}; {expected}")
    return batch, input_type, height or width


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


# Which classes


def count_classes(model: OnnxModel) -> int:
    """Run a black image; the length of its logits.

    Raises:
        RunError: if the output is not a row of numbers for each image.
    """
    batch = model.new_batch(1)
    batch[:] = 0
    logits = model.run(batch)
    if logits.ndim != 2 or len(logits) != len(batch) or logits.shape[1] == 0:
        raise RunError(
            f"{model.path}: its output '{model.output_name}' has the shape {logits.shape} for {len(batch)} images; "
            "expected a row of logits for each"
        )
    return logits.shape[1]


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
