"""Checkpoints: write, verify, find and load weights, training state and what the weights expect of their input.

The file is MindSpore's own .ckpt with its CRC at the end, so `mindspore.load_checkpoint` reads it as well. Beside the
weights under the network's parameter names it holds

- `model_info`: a ModelInfo as JSON,
- `training_state`: epoch, step and the like as JSON, where the file comes from a training run,
- `ema.<weight>`: the moving average of a weight, where the run kept one,
- the optimiser's parameters under MindSpore's names (`mean_square.<weight>`, `moment.<weight>`, ...).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator

import mindspore as ms
import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError
from mindspore.train.checkpoint_pb2 import Checkpoint as CheckpointMessage

from src.common.cli import RunError
from src.common.files import atomic_path, unchanged
from src.models.family import VARIANTS
from src.weights.layouts import LAYOUTS, recognise
from src.weights.model_info import ModelInfo
from src.weights.names import Weights, parameter_shapes, to_ours
from src.weights.sources import source_of

EMA_PREFIX = "ema."
INFO_ENTRY = "model_info"
STATE_ENTRY = "training_state"
BEST_NAME = "best.ckpt"
NUMBERS = {
    **{name: np.dtype(name.lower()) for name in "Int8 UInt8 Int16 UInt16 Int32 UInt32 Int64 UInt64".split()},
    **{name: np.dtype(name.lower()) for name in "Float16 Float32 Float64 Bool".split()},
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
}
"""MindSpore's names of what a tensor consists of."""
# MindSpore ends a checked file with "crc_num" and the CRC-32 of all before it in 10 bytes, most significant first.
CRC_MARK = b"crc_num"
CRC_BYTES = 10
NAME_PATTERN = re.compile(rf"Efficientnet_({'|'.join(VARIANTS)})-rank(\d+)-(\d+)_(\d+)\.ckpt")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        info: the network and the input that it expects.
        weights: parameter name to array, all parameters of the network, batch-norm statistics included.
        ema: the same names with averaged values, or None.
        training: the optimiser's parameters and the like, by MindSpore's names; empty outside of training.
        state: epoch, step and the like; empty outside of training.
        described: whether the file holds `info`; for one that another project published it comes from a table.
    """

    path: str
    info: ModelInfo
    weights: Weights
    ema: Weights | None
    training: Weights
    state: dict
    described: bool = True


def checkpoint_name(variant: str, rank: int, epoch: int, step: int) -> str:
    """The model zoo's file name; `epoch` counts from 1, `step` is the step within the epoch."""
    return f"Efficientnet_{variant}-rank{rank}-{epoch}_{step}.ckpt"


def parse_name(path: str) -> tuple[int, int] | None:
    """Epoch and step from a file name of `checkpoint_name`, or None."""
    match = NAME_PATTERN.fullmatch(os.path.basename(path))
    return (int(match[3]), int(match[4])) if match else None


def find_checkpoints(folder: str) -> list[str]:
    """The checkpoints of a run in `folder`, newest first by epoch and step; empty where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    named = [(parse_name(name), name) for name in os.listdir(folder)]
    return [os.path.join(folder, name) for key, name in sorted((pair for pair in named if pair[0]), reverse=True)]


def write_checkpoint(
    path: str,
    weights: Weights,
    info: ModelInfo,
    ema: Weights | None = None,
    training: Weights | None = None,
    state: dict | None = None,
) -> None:
    """Write a checkpoint that appears whole, with its checksum, or not at all.

    Args: the attributes of `Checkpoint`.

    Raises:
        OSError: if the file cannot be written.
    """
    entries = dict(weights)
    entries.update({EMA_PREFIX + name: value for name, value in (ema or {}).items()})
    entries.update(training or {})
    tensors = [{"name": name, "data": ms.Tensor(np.asarray(value, order="C"))} for name, value in entries.items()]
    texts = {INFO_ENTRY: info.to_json()}
    if state is not None:
        texts[STATE_ENTRY] = json.dumps(state)
    with atomic_path(path) as temporary:
        # MindSpore appends ".ckpt" to other names; atomic_path's temporary name ends as the final one does.
        named = temporary if temporary.endswith(".ckpt") else temporary + ".ckpt"
        try:
            with quiet_logging():
                ms.save_checkpoint(tensors, named, append_dict=texts, crc_check=True)
            if not has_valid_checksum(named):
                raise RunError(f"{path}: the checkpoint could not be written whole; is there space on the disk?")
            if named != temporary:
                os.replace(named, temporary)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            # MindSpore writes beside that name first, and leaves it there when it fails.
            for leftover in {named, named[: -len(".ckpt")] + ".tmp"} - {temporary}:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(leftover)


def read_checkpoint(path: str) -> Checkpoint:
    """Read and verify a checkpoint of this project, or one that the model zoo or MindCV published.

    Raises:
        RunError: if the file is missing, truncated, altered, of another network, or no checkpoint.
    """
    entries = read_entries(path)
    text = entries.pop(INFO_ENTRY, None)
    state = entries.pop(STATE_ENTRY, None)
    if not isinstance(text, str):
        return read_published(path, entries)
    info = ModelInfo.from_json(text, path)
    entries = {name: value for name, value in entries.items() if not isinstance(value, str)}
    names = network_shapes(info)
    weights = {name: entries.pop(name) for name in list(entries) if name in names}
    ema = {name: entries.pop(EMA_PREFIX + name) for name in names if EMA_PREFIX + name in entries}
    check_weights(path, info, weights)
    if ema:
        check_weights(path, info, ema)
    try:
        state = json.loads(state) if isinstance(state, str) else {}
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise RunError(f"{path}: its training state is broken")
    return Checkpoint(path=path, info=info, weights=weights, ema=ema or None, training=entries, state=state)


def read_published(path: str, entries: Weights) -> Checkpoint:
    """Translate the entries of a checkpoint that the model zoo or MindCV wrote.

    Raises:
        RunError: if it is neither's, or has no classifier.
    """
    layout = recognise(entries)
    if layout not in (LAYOUTS["zoo"], LAYOUTS["mindcv"]):
        raise RunError(f"{path}: it is a checkpoint of another network, or one that does not say what it is")
    translated = to_ours(entries, path)
    if translated.num_classes is None:
        raise RunError(f"{path}: it has no classifier; convert_weights.py can give it a new one")
    info = source_of(layout).describe(translated.variant, translated.num_classes)
    check_weights(path, info, translated.weights)
    return Checkpoint(
        path=path, info=info, weights=translated.weights, ema=None, training={}, state={}, described=False
    )


def read_entries(path: str) -> Weights:
    """All entries of a .ckpt file, verified: names to arrays, or to str where an entry is a text.

    Raises:
        RunError: if the file is missing, unreadable, truncated or altered.
    """
    if not os.path.exists(path):
        raise RunError(f"{path}: there is no such checkpoint")
    if os.path.isdir(path):
        raise RunError(f"{path}: it is a folder, not a checkpoint file")
    if os.path.getsize(path) == 0:
        raise RunError(f"{path}: the checkpoint is empty")
    with unchanged(path):
        return read_verified(path)


def read_verified(path: str) -> Weights:
    """The entries of a file that is there; see `read_entries`."""
    checked = has_valid_checksum(path)
    if checked is False:
        raise RunError(f"{path}: the checkpoint is damaged, its checksum does not match")
    with open(path, "rb") as file:
        data = file.read()
    try:
        entries = parse_checkpoint(data[: -len(CRC_MARK) - CRC_BYTES] if checked else data)
    except (DecodeError, ValueError, KeyError) as error:
        foreign = path.endswith((".safetensors", ".pth", ".pt", ".bin", ".tar"))
        hint = ", convert_weights.py makes one of it" if foreign else ""
        raise RunError(
            f"{path}: the checkpoint cannot be read; it is truncated or not a MindSpore checkpoint{hint}"
        ) from error
    if INFO_ENTRY in entries and not checked:
        # This project's checkpoints always have one, so the end of the file is missing.
        raise RunError(f"{path}: the checkpoint is damaged, its checksum is missing")
    return entries


def parse_checkpoint(data: bytes) -> dict[str, np.ndarray | str]:
    """The entries of a .ckpt file without its checksum.

    `mindspore.load_checkpoint` does not compare the bytes of a tensor with its shape, and writes beyond its memory.

    Raises:
        DecodeError, ValueError, KeyError: if it is none.
    """
    content = CheckpointMessage()
    content.ParseFromString(data)
    if not content.value:
        raise ValueError("it is empty")
    entries = {}
    # A large tensor comes in several pieces of one name.
    for name, group in itertools.groupby(content.value, lambda entry: entry.tag):
        pieces = [entry.tensor for entry in group]
        kind, shape = pieces[-1].tensor_type, list(pieces[-1].dims)
        whole = bytearray().join(piece.tensor_content for piece in pieces)
        if kind == "str":
            entries[name] = whole.decode("utf-32-le", "surrogatepass")
        else:
            entries[name] = np.frombuffer(whole, NUMBERS[kind]).reshape([] if shape == [0] else shape)
    return entries


def has_valid_checksum(path: str) -> bool | None:
    """Whether the file's CRC-32 matches; None if the file has none, like the model zoo's.

    Raises:
        OSError: if the file cannot be read.
    """
    tail = len(CRC_MARK) + CRC_BYTES
    size = os.path.getsize(path) - tail
    with open(path, "rb") as file:
        checksum = 0
        while size > 0:
            chunk = file.read(min(size, 1 << 22))
            if not chunk:
                return False
            checksum = zlib.crc32(chunk, checksum)
            size -= len(chunk)
        end = file.read(tail)
    if not end.startswith(CRC_MARK):
        return None
    return int.from_bytes(end[len(CRC_MARK) :], "big") == checksum


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence MindSpore's Python log while it handles a file that may be broken: the error's sentence says it."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(level)


def network_shapes(info: ModelInfo) -> dict[str, tuple[int, ...]]:
    """Parameter names and shapes of the network that `info` describes."""
    return parameter_shapes(VARIANTS[info.variant], info.num_classes)


def check_weights(path: str, info: ModelInfo, weights: Weights) -> None:
    """Refuse weights that are not exactly those of the network that `info` describes.

    Raises:
        RunError: if one is missing or has another shape.
    """
    shapes = network_shapes(info)
    missing = sorted(set(shapes) - set(weights))
    if missing:
        raise RunError(f"{path}: {len(missing)} parameters are missing, {missing[0]} among them")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise RunError(
                f"{path}: {name} has shape {weights[name].shape}, but {info.variant} with "
                f"{info.num_classes} classes needs {shape}"
            )
