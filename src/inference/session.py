"""ONNX Runtime on a device: which one is there, a file opened on it, and what goes wrong as a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections import Counter

import numpy as np
import onnxruntime

from src.common.cli import RunError, UsageError, describe_os_error
from src.common.files import unchanged

LOGITS = "logits"
PROVIDERS = {
    "Ascend": ("CANNExecutionProvider", "onnxruntime-cann"),
    "GPU": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "CPU": ("CPUExecutionProvider", "onnxruntime"),
}
"""Device to ONNX Runtime's provider and the package that has it; the first that is there is taken."""
FATAL_ONLY = 4


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
        with unchanged(path):
            session = create_session(path, candidate, device_id, threads)
        # Where a driver or a library is missing, ONNX Runtime takes the CPU without a word.
        if PROVIDERS[candidate][0] in session.get_providers():
            return session, candidate
        if candidate == "Ascend":
            name_fallen_back(session)  # removes the profile
        sentence = f"ONNX Runtime has its {PROVIDERS[candidate][0]}, but it did not start; check driver and libraries"
        if target:
            raise RunError(f"--device_target is {target}: {sentence}")
        print(f"note: {candidate} is not used: {sentence}", file=sys.stderr, flush=True)
    raise RunError("ONNX Runtime has no provider that could be used")


def create_session(
    path: str, target: str, device_id: int | None, threads: int, changed: bytes | None = None
) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session of a file, or of what it was `changed` to.

    Raises:
        RunError: if the file is no ONNX file, truncated, or of operators that this ONNX Runtime does not know.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What goes wrong comes back as an exception, too.
    options.log_severity_level = FATAL_ONLY
    if target == "Ascend":
        # Of the first run; see `name_fallen_back`.
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(tempfile.mkdtemp(), "profile")
    settings = {} if target == "CPU" or device_id is None else {"device_id": str(device_id)}
    try:
        return onnxruntime.InferenceSession(
            changed or path, options, providers=[(PROVIDERS[target][0], settings)], enable_fallback=0
        )
    except Exception as error:
        if options.enable_profiling:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(options.profile_file_prefix))
        # ONNX Runtime's exceptions have no common class below Exception.
        # The last words are those of ONNX Runtime 1.19 of an empty file.
        if any(words in str(error) for words in ("INVALID_PROTOBUF", "No graph was found", "not have a graph")):
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


def name_fallen_back(session: onnxruntime.InferenceSession) -> str:
    """What a session that was told to profile has run on the CPU instead of its device; empty if there is nothing.

    Ends the profile and removes its file. A provider that cannot run an operator leaves it to the CPU without a word.
    """
    path = session.end_profiling()
    try:
        with open(path, encoding="utf-8") as file:
            events = json.load(file)
    except (OSError, ValueError):
        return "ONNX Runtime does not say what it ran on the CPU"
    finally:
        with contextlib.suppress(OSError):
            os.remove(path)
            os.rmdir(os.path.dirname(path))
    nodes = Counter(
        event["args"].get("op_name", "?")
        for event in events
        if event.get("cat") == "Node" and event["args"].get("provider") == PROVIDERS["CPU"][0]
    )
    return ", ".join(f"{count} x {operator}" for operator, count in sorted(nodes.items()))
