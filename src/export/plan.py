"""What file an export is to write: the user's wishes in one checked value. Does without MindSpore."""

from __future__ import annotations

import dataclasses
import os

import numpy as np

from src.common.cli import UsageError
from src.images.preprocess import normalise
from src.weights.model_info import ModelInfo

SUFFIXES = {"MINDIR": ".mindir", "ONNX": ".onnx", "AIR": ".air"}
PRECISIONS = ("fp32", "fp16", "int8")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What file is wanted.

    Attributes:
        path: of the file.
        file_format: "MINDIR", "ONNX" or "AIR".
        info: the network and the input that the file expects.
        averaged: take the checkpoint's averaged weights.
        fold_bn: fold the batch norms into the convolutions.
        batch_size: of MINDIR and AIR, which have it fixed; None for ONNX, which takes any.
        include_preprocessing: the input is pixels, uint8 of shape (N, S, S, 3), instead of normalised images.
        include_softmax: there is a second output, `probabilities`.
        precision: "fp32", "fp16" or "int8".
        calibration_path: folder of images that int8's ranges are taken from.
        reduce_range: int8 weights of 7 bits, for CPUs that need it; None asks this machine's.
        verify_path: folder of images to prove the file on; None takes those of `calibration_path`, or noise.
        tolerance: largest difference allowed, see `verification.compare`; None takes the precision's.

    Raises:
        UsageError: if two wishes contradict each other.
    """

    path: str
    file_format: str
    info: ModelInfo
    averaged: bool = False
    fold_bn: bool = True
    batch_size: int | None = None
    include_preprocessing: bool = False
    include_softmax: bool = False
    precision: str = "fp32"
    calibration_path: str | None = None
    reduce_range: bool | None = None
    verify_path: str | None = None
    tolerance: float | None = None

    def __post_init__(self):
        int8 = self.precision == "int8"
        if self.file_format == "ONNX" and self.batch_size is not None:
            raise UsageError("--batch_size is for MINDIR and AIR; an ONNX file takes any batch size")
        if self.file_format != "ONNX" and self.precision != "fp32":
            raise UsageError(f"--precision {self.precision} is for ONNX; MindSpore Lite converts a MINDIR file itself")
        if int8 and self.calibration_path is None:
            raise UsageError("--precision int8 needs --calibration_path, a folder of images like those to come")
        if int8 and not self.fold_bn:
            raise UsageError("--precision int8 needs --fold_bn True: batch norms cannot be quantised")
        for flag, value in (("calibration_path", self.calibration_path), ("reduce_range", self.reduce_range)):
            if value is not None and not int8:
                raise UsageError(f"--{flag} is for --precision int8, but the precision is {self.precision}")
        if self.file_format == "AIR" and self.verify_path is not None:
            raise UsageError("--verify is for MINDIR and ONNX; nothing here can run an AIR file")
        if self.file_format != "ONNX" and self.batch_size is None:
            object.__setattr__(self, "batch_size", 1)

    @property
    def input_shape(self) -> tuple:
        """Of the file's input, without the batch."""
        size = self.info.preprocess.image_size
        return (size, size, 3) if self.include_preprocessing else (3, size, size)

    @property
    def input_type(self) -> type:
        """NumPy's type of the file's input."""
        return np.uint8 if self.include_preprocessing else np.float32

    def prepare_input(self, pixels: np.ndarray) -> np.ndarray:
        """Crops, uint8 of shape (N, S, S, 3), as the file's input wants them."""
        return pixels if self.include_preprocessing else normalise_all(pixels, self.info)

    def describe(self) -> str:
        """The file's inputs and outputs in a line."""
        batch = self.batch_size or "N"
        shape = ", ".join(map(str, (batch, *self.input_shape)))
        outputs = "logits" + (" and probabilities" if self.include_softmax else "")
        kind = np.dtype(self.input_type).name
        return f"input image {kind} ({shape}), output {outputs} float32 ({batch}, {self.info.num_classes})"


def normalise_all(pixels: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Crops, uint8 of shape (N, S, S, 3), as the network wants them: float32 of shape (N, 3, S, S)."""
    return np.stack([normalise(crop, info.preprocess) for crop in pixels])


def complete_path(file_name: str, file_format: str) -> str:
    """The file's path by MindSpore's rule: the format's suffix is appended where it is missing.

    Raises:
        UsageError: if the name is none, or has another format's suffix.
    """
    if os.path.basename(file_name) in ("", ".", ".."):
        raise UsageError(f"--file_name is '{file_name}', which names no file")
    given = os.path.splitext(file_name)[1].lower()
    for other, suffix in SUFFIXES.items():
        if given == suffix and other != file_format:
            raise UsageError(f"--file_name is {file_name}, but --file_format is {file_format}; is {other} meant?")
    return file_name if file_name.endswith(SUFFIXES[file_format]) else file_name + SUFFIXES[file_format]
