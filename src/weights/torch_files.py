"""Weight files of PyTorch projects, read without running code in them: .safetensors, and .pth if PyTorch is there."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import warnings
from collections.abc import Mapping

import numpy as np

from src.common.cli import RunError
from src.common.files import atomic_path
from src.weights.names import WeightFile, Weights

# Where training programs keep the weights within their checkpoints: timm's names, torchvision's.
RAW_KEYS = ("state_dict", "model")
AVERAGED_KEYS = ("state_dict_ema", "model_ema")
# Where timm's training program writes the name of the network.
ARCHITECTURE_KEY = "arch"
# PyTorch's wrapper for several devices puts this before every name.
WRAPPER = "module."
# The format's own bound on its header.
MAX_HEADER_BYTES = 100_000_000


def read_safetensors(path: str) -> WeightFile:
    """All tensors and texts of a .safetensors file.

    Raises:
        RunError: if the file is truncated, its header is wrong, or a name occurs twice.
    """
    from safetensors import SafetensorError, safe_open

    texts = read_header(path).get("__metadata__", {})
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: the .safetensors file is damaged or truncated ({error})") from None
    return WeightFile(path, tensors, {str(key): str(value) for key, value in texts.items()})


def read_header(path: str) -> dict:
    """The header of a .safetensors file: 8 bytes of its length, then JSON.

    Raises:
        RunError: if it is not that, or has a name twice.
    """

    def unique(pairs):
        names = [name for name, _ in pairs]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise RunError(f"{path}: the name {twice} occurs twice in its header")
        return dict(pairs)

    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(os.path.getsize(path) - 8, MAX_HEADER_BYTES):
            raise RunError(f"{path}: it is no .safetensors file, or a truncated one")
        try:
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=unique)
        except (ValueError, RecursionError):
            raise RunError(f"{path}: it is no .safetensors file, its header is not JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise RunError(f"{path}: it is no .safetensors file, its header does not name tensors")
    return header


def write_safetensors(path: str, tensors: Weights, texts: Mapping[str, str]) -> None:
    """Write tensors and texts to a .safetensors file that appears whole or not at all.

    Raises:
        OSError: if the file cannot be written.
    """
    from safetensors.numpy import save_file

    with atomic_path(path) as temporary:
        save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, temporary, dict(texts))


def read_pth(path: str, averaged: bool) -> WeightFile:
    """The tensors of a file that `torch.save` wrote: a state dict, or a training checkpoint with one inside.

    Only tensors and plain values are unpickled, so a file that would run code is refused before it does.

    Args:
        averaged: take the moving average of the weights where the file has one.

    Raises:
        RunError: if PyTorch is missing, or the file is truncated, holds code or no weights.
    """
    try:
        import torch
    except ImportError:
        raise RunError(
            f"{path}: reading it needs PyTorch (pip install torch); a .safetensors file can be read without"
        ) from None
    # Opened here, so that an OSError below is one of PyTorch's about a damaged file.
    with open(path, "rb") as file:
        try:
            # timm's training checkpoints carry their flags; a Namespace only holds values.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise RunError(f"{path}: refused, it holds more than weights and could run code when loaded") from None
        except MemoryError:
            raise
        except Exception:
            # A damaged file meets PyTorch's reader anywhere, with errors of many types.
            raise RunError(f"{path}: it is no file of PyTorch's, or a truncated one") from None
    state = find_state(loaded, averaged)
    if state is None:
        raise RunError(f"{path}: it holds no weights, neither by themselves nor under {', '.join(RAW_KEYS)}")
    try:
        tensors = {str(name): to_numpy(value) for name, value in state.items()}
    except (AttributeError, TypeError, RuntimeError):
        raise RunError(f"{path}: its weights are not plain tensors") from None
    name = loaded.get(ARCHITECTURE_KEY)
    return WeightFile(path, tensors, timm_name=name if isinstance(name, str) else None)


def find_state(loaded, averaged: bool):
    """The dict of tensors within what was loaded, or None."""

    def holds_tensors(value) -> bool:
        return isinstance(value, dict) and any(hasattr(item, "ndim") for item in value.values())

    keys = AVERAGED_KEYS + RAW_KEYS if averaged else RAW_KEYS
    found = [loaded[key] for key in keys if isinstance(loaded, dict) and holds_tensors(loaded.get(key))]
    return found[0] if found else loaded if holds_tensors(loaded) else None


def to_numpy(tensor) -> np.ndarray:
    """A PyTorch tensor as NumPy; bfloat16, which NumPy lacks, as float32."""
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).contiguous().numpy()


def without_wrapper(entries: Weights, source: str) -> Weights:
    """Take the prefix of PyTorch's multi-device wrapper off the names.

    Raises:
        RunError: if two names become one.
    """
    result = {}
    for name, value in entries.items():
        short = name[len(WRAPPER) :] if name.startswith(WRAPPER) else name
        if short in result:
            raise RunError(f"{source}: it has both {short} and {WRAPPER}{short}")
        result[short] = value
    return result
