"""OM: the file that ATC, CANN's converter, makes of an ONNX file for one kind of NPU."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Callable

from src.common.cli import RunError
from src.common.files import atomic_write, scratch_folder
from src.common.interrupt import run_child
from src.export.onnx_file import open_onnx
from src.export.plan import ExportPlan, Run
from src.images.aipp import Aipp
from src.weights.model_info import info_path

ATC = "atc"
SOURCE_SUFFIX = ".onnx"
"""Appended to the OM file's name where there is no ATC: what it is to be made of."""
MAGIC = b"IMOD"
"""How an OM file begins."""


def find_atc() -> str | None:
    """The path of ATC, which CANN's set_env.sh puts on the path; None where it is not."""
    return shutil.which(ATC)


def open_source(path: str, plan: ExportPlan) -> Run:
    """A function that runs what the OM is made of: AIPP's arithmetic, then the ONNX file, on pixels (N, S, S, 3).

    Raises:
        RunError: if ONNX Runtime refuses the file, or AIPP cannot do the preprocessing.
    """
    aipp, run = Aipp.from_preprocess(plan.info.preprocess), open_onnx(path)
    return lambda pixels: run(aipp.apply(pixels))


def atc_options(plan: ExportPlan, model: str, aipp: str, output: str) -> list[str]:
    """ATC's options.

    Args:
        plan: batch size, image size and kind of NPU.
        model: the ONNX file.
        aipp: AIPP's file.
        output: the OM file without its suffix, which ATC appends.
    """
    size = plan.info.preprocess.image_size
    return [
        "--framework=5",  # ONNX
        f"--model={model}",
        f"--output={output}",
        "--input_format=NCHW",
        f"--input_shape=image:{plan.batch_size},3,{size},{size}",
        f"--soc_version={plan.soc_version}",
        f"--insert_op_conf={aipp}",
        "--precision_mode=force_fp16",
        "--output_type=FP32",
    ]


def finish_om(path: str, plan: ExportPlan, say: Callable[[str], None]) -> None:
    """Convert the ONNX file that was proved, or leave it for ATC on another machine with all that ATC needs there.

    Args:
        path: the ONNX file; afterwards it is the OM file, unless `plan.path` ends in `SOURCE_SUFFIX`.
        plan: what is wanted.
        say: told what happens.

    Raises:
        RunError: if ATC fails, or writes something else than what was asked for.
        OSError: if a file cannot be written.
    """
    aipp = Aipp.from_preprocess(plan.info.preprocess).to_text()
    om = plan.path.removesuffix(SOURCE_SUFFIX)
    if om == plan.path:
        convert_onnx(path, plan, aipp, say)
    else:
        leave_for_atc(om, plan, aipp, say)
    with atomic_write(info_path(om), "w") as file:
        file.write(json.dumps({**json.loads(plan.info.to_json()), "aipp": True}, ensure_ascii=False, indent=2) + "\n")


def leave_for_atc(om: str, plan: ExportPlan, aipp: str, say: Callable[[str], None]) -> None:
    """Write what ATC needs on another machine beside the ONNX file, and tell what to do there."""
    name = os.path.basename(om)
    options = atc_options(plan, name + SOURCE_SUFFIX, f"{name}.aipp", name.removesuffix(".om"))
    command = shlex.join([ATC, *options])
    script = f'# Makes {name}, where CANN\'s set_env.sh was sourced.\nset -eu\ncd "$(dirname "$0")"\n{command}\n'
    for suffix, text in ((".aipp", aipp), (".sh", "#!/bin/sh\n" + script)):
        with atomic_write(om + suffix, "w") as file:
            file.write(text)
    say(
        f"{om} is not made, because there is no {ATC} on the path; copy {name}{SOURCE_SUFFIX}, {name}.aipp, {name}.sh "
        f"and {os.path.basename(info_path(om))} to a machine with CANN and run there: sh {name}.sh"
    )
    say(f"that runs: {command}")
    if os.path.exists(om):
        say(f"warning: {om} is of an earlier export, which {info_path(om)} does not describe any more")


def convert_onnx(path: str, plan: ExportPlan, aipp: str, say: Callable[[str], None]) -> None:
    """Replace an ONNX file by what ATC makes of it."""
    say(f"{ATC} converts it for {plan.soc_version}, which may take minutes")
    # In a folder of its own: ATC takes plain names only, and leaves logs and caches.
    with scratch_folder() as folder:
        shutil.copyfile(path, os.path.join(folder, "network.onnx"))
        with open(os.path.join(folder, "network.aipp"), "w", encoding="utf-8") as file:
            file.write(aipp)
        run_atc(plan, folder, atc_options(plan, "network.onnx", "network.aipp", "network"))
        # ATC may add the system and the processor to the name.
        written = sorted(glob.glob(os.path.join(glob.escape(folder), "network*.om")))
        if len(written) != 1:
            raise RunError(f"{plan.path} is not written: {ATC} wrote {len(written)} OM files, not one")
        check_om(plan, folder, os.path.basename(written[0]), say)
        shutil.copyfile(written[0], path)


def check_om(plan: ExportPlan, folder: str, name: str, say: Callable[[str], None]) -> None:
    """Read back what ATC wrote, with ATC itself.

    Raises:
        RunError: if it is no OM file, or ATC cannot read it.
    """
    with open(os.path.join(folder, name), "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise RunError(f"{plan.path} is not written: what {ATC} wrote is no OM file")
    run_atc(plan, folder, ["--mode=1", f"--om={name}", "--json=network.json"])
    try:
        with open(os.path.join(folder, "network.json"), encoding="utf-8", errors="replace") as file:
            shapes = set(pixel_inputs(json.load(file)))
    except (OSError, ValueError) as error:
        raise RunError(f"{plan.path} is not written: {ATC} does not read back what it wrote: {error}") from None
    wanted = (plan.batch_size, *plan.input_shape)
    if wanted in shapes:
        say(f"read back by {ATC}: its input is uint8 {wanted}")
    else:
        say(f"warning: {ATC} reads the file back, but shows no uint8 input {wanted}; classify a known image with it")


def pixel_inputs(part: object) -> Iterator[tuple[int, ...]]:
    """The shapes of all uint8 tensors in the JSON that ATC makes of an OM file."""
    if isinstance(part, dict):
        if part.get("dtype") == "DT_UINT8" and isinstance(part.get("shape"), dict):
            yield tuple(int(number) for number in part["shape"].get("dim", []))
        part = list(part.values())
    if isinstance(part, list):
        for value in part:
            yield from pixel_inputs(value)


def run_atc(plan: ExportPlan, folder: str, options: list[str]) -> None:
    """Run ATC in a folder.

    Raises:
        RunError: with ATC's reason.
    """
    try:
        done = run_child([find_atc() or ATC, *options], cwd=folder, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise RunError(f"{plan.path} is not written: {ATC} cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
        # Such as "E10016: Opname [x] specified in [input_shape] is not found in the model".
        reasons = [line for line in lines if re.match(r"E[A-Z0-9]?\d{4}", line)] or lines[-1:] or ["it says nothing"]
        raise RunError(f"{plan.path} is not written: {ATC} failed: {reasons[0]}")
