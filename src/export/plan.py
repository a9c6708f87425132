"""What file an export is to write: the user's wishes in one value, and what a format is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Callable

import numpy as np

from src.common.files import atomic_write
from src.images.preprocess import normalise
from src.weights.model_info import ModelInfo, info_path
from src.weights.names import Weights

PRECISIONS = ("fp32", "fp16", "int8")
Run = Callable[[np.ndarray], np.ndarray]
"""A written file at work: images as its input wants them, any number, to logits of shape (N, C)."""


class Format(abc.ABC):
    """A kind of file that an export can write; `formats.FORMATS` has one of each.

    Attributes:
        name: as --file_format takes it.
        suffix: of the file's name.
        precisions: those of PRECISIONS that it can store, the default first.
        fixed_batch: whether a file takes batches of one size only.
        describes_itself: whether a file holds its description; else that lies beside it, see `info_path`.
        runs_here: whether a written file can be opened for the proof.
        device_target: the device that MindSpore needs to write it; None is any.
        takes_pixels: whether its input is uint8 pixels in any case.
        opset: of the ONNX file that it is, or is made of.
    """

    name: str
    suffix: str
    precisions: tuple[str, ...] = ("fp32",)
    fixed_batch = True
    describes_itself = False
    runs_here = True
    device_target: str | None = None
    takes_pixels = False
    opset = 17

    def destination(self, path: str) -> str:
        """Where the file is written that a user calls `path`."""
        return path

    def finish(self, path: str, plan: ExportPlan, say: Callable) -> None:
        """What remains to be done once the file is proved, before it gets its name.

        Raises:
            RunError: if it cannot be done.
            OSError: if a file cannot be written.
        """
        if not self.describes_itself:
            with atomic_write(info_path(plan.path), "w") as file:
                file.write(plan.info.to_json(indent=2) + "\n")

    @abc.abstractmethod
    def write(
        self, path: str, plan: ExportPlan, weights: Weights, source: str, calibration: list[str], say: Callable
    ) -> None:
        """Write a file.

        Args:
            path: of the file.
            plan: what is wanted.
            weights: of the network, batch norms and all.
            source: the checkpoint that they come from.
            calibration: images for int8.
            say: told what else is to be known.

        Raises:
            RunError: if the network, a weight or an image cannot be used.
            OSError: if the file cannot be written.
        """

    @abc.abstractmethod
    def open(self, path: str, plan: ExportPlan) -> Run:
        """Open what was written for the proof, where `runs_here`.

        Raises:
            RunError: if it cannot be loaded.
        """


@dataclasses.dataclass(frozen=True)
class ExportPlan:
    """What file is wanted; `formats.check_plan` refuses wishes that contradict each other.

    Attributes:
        path: of the file.
        file_format: what kind of file it is to be.
        info: the network and the input that the file expects.
        averaged: take the checkpoint's averaged weights.
        fold_bn: fold the batch norms into the convolutions.
        batch_size: where the format has it fixed, 1 unless given; else None, the file takes any.
        include_preprocessing: the input is pixels, uint8 of shape (N, S, S, 3), instead of normalised images.
        include_softmax: there is a second output, `probabilities`.
        precision: one of PRECISIONS; None becomes the format's.
        calibration_path: folder of images that int8's ranges are taken from.
        reduce_range: int8 weights of 7 bits, for CPUs that need it; None asks this machine's.
        verify_path: folder of images to prove the file on; None takes those of `calibration_path`, or seeded ones.
        tolerance: largest difference allowed, see `verification.compare`; None takes the precision's.
        soc_version: the kind of NPU that an OM file is for, such as "Ascend310P3".
    """

    path: str
    file_format: Format
    info: ModelInfo
    averaged: bool = False
    fold_bn: bool = True
    batch_size: int | None = None
    include_preprocessing: bool = False
    include_softmax: bool = False
    precision: str | None = None
    calibration_path: str | None = None
    reduce_range: bool | None = None
    verify_path: str | None = None
    tolerance: float | None = None
    soc_version: str | None = None

    def __post_init__(self):
        if self.precision is None:
            object.__setattr__(self, "precision", self.file_format.precisions[0])
        if self.file_format.takes_pixels:
            object.__setattr__(self, "include_preprocessing", True)
        if self.file_format.fixed_batch and self.batch_size is None:
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
