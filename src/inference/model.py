"""An ONNX file that is ready to classify images.

A file of `export.py` says all of it itself. Another program's file needs `GivenSettings` for what it does not say.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

from src.common.cli import RunError, UsageError, printable
from src.common.machine import count_cores
from src.images.preprocess import normalise
from src.inference.openvino_session import MANY_STEPS, OpenVinoSession, is_installed
from src.inference.session import LOGITS, name_fallen_back, open_session, run_session
from src.inference.settings import GivenSettings, check_agreement, complete_settings, format_setting, settle_classes
from src.weights.model_info import METADATA_KEY, ModelInfo

INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@dataclasses.dataclass(frozen=True)
class OnnxModel:
    """A file that is ready to run; threads may share it.

    Attributes:
        path: the file.
        session: ONNX Runtime's or OpenVINO's.
        target: "CPU", "GPU" or "Ascend".
        info: what it expects and tells apart; the variant, padding and epsilon of a file that does not describe itself
            are not known, and nothing here depends on them.
        described: whether the file said so itself.
        input_name, output_name: its tensors.
        input_type: float32 or float16 for normalised images (N, 3, S, S), uint8 for pixels (N, S, S, 3).
        fixed_batch: the only batch size that it takes, or that its device is to get; None for any.
        runner: the one thread that runs it, where the device wants one; None: each caller's own.
        on_cpu: what its NPU leaves to the CPU, in words; empty where there is nothing, or no NPU.
        engine: "onnxruntime" or "openvino".
    """

    path: str
    session: onnxruntime.InferenceSession | OpenVinoSession
    target: str
    info: ModelInfo
    described: bool
    input_name: str
    output_name: str
    input_type: type
    fixed_batch: int | None
    runner: ThreadPoolExecutor | None = None
    on_cpu: str = ""
    engine: str = "onnxruntime"

    def describe(self) -> str:
        """A line on what runs and how an image is prepared."""
        preprocess = self.info.preprocess
        kind = self.info.variant.capitalize() if self.described else "described by flags"
        steps = f"shorter side to {preprocess.resize} ({preprocess.interpolation}), centre {preprocess.image_size}"
        if self.input_type != np.uint8:
            steps += f", mean {format_setting(preprocess.mean)}, std {format_setting(preprocess.std)}"
        return f"{self.path}: {kind}, {self.info.num_classes} classes; {steps}"

    def describe_device(self) -> str:
        """What it runs on, and by which engine where that is not ONNX Runtime."""
        return f"{self.target} by OpenVINO" if self.engine == "openvino" else self.target

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
        call = functools.partial(run_session, self.session, self.path, self.input_name, self.output_name, batch)
        logits = self.runner.submit(call).result() if self.runner else call()
        return logits.astype(np.float32, copy=False)


def open_model(
    path: str,
    given: GivenSettings,
    target: str | None = None,
    device_id: int | None = None,
    threads: int = 1,
    batch_size: int | None = None,
    engine: str | None = None,
) -> OnnxModel:
    """Open a file, settle what it expects, and run it once.

    On an NPU every batch has the same size, because CANN compiles the network for each size that it meets, and one
    thread runs them all, because a model of CANN's must not be run by two at once.

    Args:
        path: the ONNX file.
        given: what the user said of it.
        target: "CPU", "GPU" or "Ascend"; None takes the best that works.
        device_id: number of the GPU or NPU.
        threads: that one call on the CPU uses.
        batch_size: of an NPU's batches, where the file does not have one.
        engine: see `choose_engine`.

    Raises:
        UsageError: if the device is not there, settings are missing, or they contradict the file.
        RunError: if the file is missing, broken, or no classifier of images.
    """
    session, target = open_session(path, target, device_id, threads)
    tensor, output = single_input(session, path), pick_output(session)
    batch, input_type, side = check_input(tensor, path)
    metadata = session.get_modelmeta().custom_metadata_map
    info = ModelInfo.from_json(metadata[METADATA_KEY], path) if metadata.get(METADATA_KEY) else None
    if info:
        check_agreement(given, info, path)
        preprocess = info.preprocess
    else:
        preprocess = complete_settings(given, side, input_type, path)
    if side not in (None, preprocess.image_size):
        error = UsageError if given.image_size else RunError
        raise error(f"{path}: its input is {side} pixels wide, but its images are to be {preprocess.image_size}")
    draft = ModelInfo(num_classes=1, preprocess=preprocess)
    on_npu = target == "Ascend"
    model = OnnxModel(
        path=path,
        session=session,
        target=target,
        info=draft,
        described=info is not None,
        input_name=tensor.name,
        output_name=output,
        input_type=input_type,
        fixed_batch=batch or (batch_size if on_npu else None),
        runner=ThreadPoolExecutor(1, "npu") if on_npu else None,
    )
    info = settle_classes(info, given, preprocess, count_logits(model), path)
    on_cpu = name_fallen_back(session) if on_npu else ""
    model = dataclasses.replace(model, info=info, on_cpu=on_cpu)
    return choose_engine(model, engine, threads, metadata.get("precision") == "int8")


def choose_engine(model: OnnxModel, engine: str | None, threads: int, int8: bool) -> OnnxModel:
    """The model with the session of the engine that computes.

    Args:
        model: with ONNX Runtime's session.
        engine: "onnxruntime" or "openvino"; None takes OpenVINO, where it is installed, for int8 files with swish on a
            CPU, and ONNX Runtime for all others.
        threads: that one call uses.
        int8: whether the file says that it is int8.

    Raises:
        UsageError: if OpenVINO is asked for where it is not.
        RunError: if it is asked for and cannot use the file.
    """
    if engine == "openvino" and model.target != "CPU":
        raise UsageError(f"--engine openvino computes on the CPU, but --device_target is {model.target}")
    if engine == "openvino" and not is_installed():
        raise UsageError("--engine openvino: it is not installed; pip install openvino")
    wanted = engine == "openvino" if engine else int8 and model.target == "CPU" and is_installed()
    if not wanted:
        return model
    try:
        session = OpenVinoSession(model.path, model.output_name, threads, max(1, count_cores() // threads))
    except RunError as error:
        if engine:
            raise
        print(f"note: OpenVINO is not used: {printable(str(error))}", file=sys.stderr, flush=True)
        return model
    if engine or session.steps_left_out > MANY_STEPS:
        return dataclasses.replace(model, session=session, engine="openvino")
    return model


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


def count_logits(model: OnnxModel) -> int:
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
