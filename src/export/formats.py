"""The formats that an export can write, a class for each. Nothing of what one needs is imported before it is used."""

from __future__ import annotations

import dataclasses
import os
import re
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


class OmSource(Onnx):
    """The ONNX file that an OM file is made of: in an opset that all versions of ATC read."""

    opset = 11


class Om(Onnx):
    """A file for AscendCL on one kind of NPU, converted by ATC; AIPP on the device normalises its pixels."""

    name = "OM"
    suffix = ".om"
    precisions = ("fp16",)
    fixed_batch = True
    describes_itself = False
    takes_pixels = True

    def destination(self, path: str) -> str:
        from src.export.om_file import SOURCE_SUFFIX, find_atc

        return path if find_atc() else path + SOURCE_SUFFIX

    def write(self, path: str, plan: ExportPlan, weights: Weights, source: str, calibration: list, say: Callable):
        changes = {"include_preprocessing": False, "batch_size": None, "precision": "fp32"}
        inner = dataclasses.replace(plan, file_format=OmSource(), **changes)
        super().write(path, inner, weights, source, calibration, say)

    def open(self, path: str, plan: ExportPlan) -> Run:
        from src.export.om_file import open_source

        return open_source(path, plan)

    def finish(self, path: str, plan: ExportPlan, say: Callable) -> None:
        from src.export.om_file import finish_om

        finish_om(path, plan, say)


FORMATS: dict[str, Format] = {kind.name: kind for kind in (Mindir(), Onnx(), Air(), Om())}
SOC_VERSION = re.compile(r"Ascend\d{3}\w*")


def name_formats(wanted: Callable[[Format], bool], conjunction: str = "and") -> str:
    """The names of some formats in a sentence."""
    names = [kind.name for kind in FORMATS.values() if wanted(kind)]
    return f" {conjunction} ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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
        why = "MindSpore Lite converts a MINDIR file itself, and an OM file computes in float16"
        raise UsageError(f"--precision {precision} is for {able}; {why}")
    check_soc_version(kind, plan.soc_version)
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


def check_soc_version(kind: Format, soc_version: str | None) -> None:
    """Refuse an OM file for no NPU, and an NPU for another file.

    Raises:
        UsageError: if the two do not go together.
    """
    if kind.name != "OM":
        if soc_version is not None:
            raise UsageError(f"--soc_version is for OM, but --file_format is {kind.name}")
    elif not SOC_VERSION.fullmatch(soc_version or ""):
        given = f"is '{soc_version}', which is no name of an NPU" if soc_version else "is missing"
        raise UsageError(
            f"--soc_version {given}; --file_format OM needs it, such as Ascend310P3: 'Ascend' and the name that "
            "npu-smi info shows on the machine where the file is to run"
        )


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
