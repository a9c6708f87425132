"""The formats that an export can write, a class for each. Nothing of what one needs is imported before it is used."""

from __future__ import annotations

import os
from typing import Callable

from src.common.cli import UsageError
from src.export.plan import PRECISIONS, ExportPlan, Format, Run
from src.weights.names import Weights


class Mindir(Format):
    """MindSpore's own file, which MindSpore Lite converts for every device."""

    name = "MINDIR"
    suffix = ".mindir"

    def write(self, path: str, plan: ExportPlan, weights: Weights, source: str, calibration: list, say: Callable):
        from src.export.mindir_file import write_mindspore

        write_mindspore(path, plan, weights)

    def open(self, path: str, plan: ExportPlan) -> Run:
        from src.export.mindir_file import open_mindir

        return open_mindir(path, plan.batch_size)


class Onnx(Format):
    """An ONNX file, built without MindSpore."""

    name = "ONNX"
    suffix = ".onnx"
    precisions = PRECISIONS
    fixed_batch = False
    describes_itself = True

    def write(self, path: str, plan: ExportPlan, weights: Weights, source: str, calibration: list, say: Callable):
        from src.export.onnx_file import write_onnx

        write_onnx(path, plan, weights, source, calibration, say)

    def open(self, path: str, plan: ExportPlan) -> Run:
        from src.export.onnx_file import open_onnx

        return open_onnx(path)


class Air(Mindir):
    """Ascend's file, which MindSpore writes on an Ascend device and nothing here can run."""

    name = "AIR"
    suffix = ".air"
    runs_here = False
    device_target = "Ascend"


FORMATS: dict[str, Format] = {kind.name: kind for kind in (Mindir(), Onnx(), Air())}


def name_formats(wanted: Callable[[Format], bool], conjunction: str = "and") -> str:
    """The names of some formats in a sentence."""
    return f" {conjunction} ".join(kind.name for kind in FORMATS.values() if wanted(kind))


def check_plan(plan: ExportPlan) -> None:
    """Refuse wishes that contradict each other, or that the format cannot fulfil.

    Raises:
        UsageError: naming the flags, and the formats that can.
    """
    kind, precision = plan.file_format, plan.precision
    if plan.batch_size is not None and not kind.fixed_batch:
        fixed = name_formats(lambda other: other.fixed_batch)
        raise UsageError(f"--batch_size is for {fixed}; an {kind.name} file takes any batch size")
    if precision not in kind.precisions:
        able = name_formats(lambda other: precision in other.precisions)
        raise UsageError(f"--precision {precision} is for {able}; MindSpore Lite converts a MINDIR file itself")
    if precision == "int8" and plan.calibration_path is None:
        raise UsageError("--precision int8 needs --calibration_path, a folder of images like those to come")
    if precision == "int8" and not plan.fold_bn:
        raise UsageError("--precision int8 needs --fold_bn True: batch norms cannot be quantised")
    for flag in ("calibration_path", "reduce_range"):
        if getattr(plan, flag) is not None and precision != "int8":
            raise UsageError(f"--{flag} is for --precision int8, but the precision is {precision}")
    if plan.verify_path is not None and not kind.runs_here:
        able = name_formats(lambda other: other.runs_here)
        raise UsageError(f"--verify is for {able}; nothing here can run an {kind.name} file")


def check_device(kind: Format, target: str) -> None:
    """Refuse a device that a format cannot be written on.

    Raises:
        UsageError: with both, and the formats that can be.
    """
    if kind.device_target not in (None, target):
        others = name_formats(lambda other: other.device_target in (None, target), "or")
        raise UsageError(
            f"--file_format {kind.name} needs an {kind.device_target} device, this is a {target}; take {others}"
        )


def complete_path(file_name: str, kind: Format) -> str:
    """The file's path by MindSpore's rule: the format's suffix is appended where it is missing.

    Raises:
        UsageError: if the name is none, or has another format's suffix.
    """
    if os.path.basename(file_name) in ("", ".", ".."):
        raise UsageError(f"--file_name is '{file_name}', which names no file")
    given = os.path.splitext(file_name)[1].lower()
    for other in FORMATS.values():
        if given == other.suffix and other is not kind:
            raise UsageError(f"--file_name is {file_name}, but --file_format is {kind.name}; is {other.name} meant?")
    return file_name if file_name.endswith(kind.suffix) else file_name + kind.suffix
