"""Weight files of PyTorch projects, read with NumPy alone and without running code in them."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from src.common.cli import RunError
from src.common.files import atomic_path
from src.weights.names import WeightFile, Weights
from src.weights.torch_pickle import (
    DAMAGED,
    MAX_PICKLE_BYTES,
    TOO_LONG,
    UNKNOWN,
    Fault,
    PickleStream,
    Storage,
    StoredTensor,
    sentences,
    unpickle,
)

# Where training programs keep the weights within their checkpoints: timm's names, torchvision's.
RAW_KEYS = ("state_dict", "model")
AVERAGED_KEYS = ("state_dict_ema", "model_ema")
# Where timm's training program writes the name of the network.
ARCHITECTURE_KEY = "arch"
# PyTorch's wrapper for several devices puts this before every name.
WRAPPER = "module."
# The format's own bound on its header.
MAX_HEADER_BYTES = 100_000_000
# Copies may take more memory than the file has bytes: bfloat16 becomes float32, and tensors may share storages.
MAX_GROWTH = 4
# With what files of before PyTorch 1.6 begin.
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ZIP_SIGNATURE = b"PK\x03\x04"
# The numbers of a .safetensors file; files of training programs hold no others.
SAFETENSORS = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "BOOL": np.bool_},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16},
}
# How files begin that are often taken for PyTorch's.
STRANGERS = {
    b"<": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, not the file that it points to",
    b"\x1f\x8b": "a gzip archive",
    b"\x89HDF": "an HDF5 file",
}


def read_safetensors(path: str) -> WeightFile:
    """All tensors and texts of a .safetensors file.

    Raises:
        RunError: if the file is truncated, its header is wrong, or a name occurs twice.
    """
    from safetensors import SafetensorError, deserialize

    # Once, and not mapped: of a file that is cut short meanwhile, a page that is gone would end the process.
    with open(path, "rb") as file:
        data = file.read()
    texts = read_header(path, data).get("__metadata__", {})
    try:
        tensors = {
            name: np.frombuffer(view["data"], SAFETENSORS[view["dtype"]]).reshape(view["shape"])
            for name, view in sorted(deserialize(data), key=lambda pair: pair[0])
        }
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: the .safetensors file is damaged or truncated ({error})") from None
    return WeightFile(path, tensors, {str(key): str(value) for key, value in texts.items()})


def read_header(path: str, data: bytes) -> dict:
    """The header of a .safetensors file that holds `data`: 8 bytes of its length, then JSON.

    Raises:
        RunError: if it is not that, or has a name twice.
    """

    def unique(pairs):
        names = [name for name, _ in pairs]
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise RunError(f"{path}: the name {twice} occurs twice in its header")
        return dict(pairs)

    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, MAX_HEADER_BYTES):
        raise RunError(f"{path}: it is no .safetensors file, or a truncated one")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=unique)
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

    Args:
        averaged: take the moving average of the weights where the file has one.

    Raises:
        RunError: if the file is truncated, names anything beside tensors and plain values, or holds no weights.
    """
    with TorchFile(path) as file:
        state = find_state(file.value, averaged)
        if state is None:
            raise RunError(f"{path}: it holds no weights, neither by themselves nor under {', '.join(RAW_KEYS)}")
        tensors = file.arrays(state)
    name = file.value.get(ARCHITECTURE_KEY)
    return WeightFile(path, tensors, timm_name=name if isinstance(name, str) else None)


def find_state(loaded, averaged: bool):
    """The dict of tensors within what was loaded, or None."""

    def holds_tensors(value) -> bool:
        return isinstance(value, dict) and any(isinstance(item, StoredTensor) for item in value.values())

    keys = AVERAGED_KEYS + RAW_KEYS if averaged else RAW_KEYS
    found = [loaded[key] for key in keys if isinstance(loaded, dict) and holds_tensors(loaded.get(key))]
    return found[0] if found else loaded if holds_tensors(loaded) else None


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


class BoundedFile(io.BufferedReader):
    """A file of which no more is read at once than a real pickle takes, or a real archive's list of members."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_PICKLE_BYTES:
            raise Fault(TOO_LONG)
        return super().read(size)


class TorchFile:
    """A file that `torch.save` wrote, open for reading: a zip archive, or, before PyTorch 1.6, pickles and numbers.

    Attributes:
        value: what was saved, with `StoredTensor` for tensors and None for what is neither plain nor a tensor.

    Raises:
        RunError: if it is none, is damaged, or names anything beside tensors and plain values.
    """

    def __init__(self, path: str):
        self.path = path
        self.swapped = False
        self.storages: dict[str, Storage] = {}
        self.file = BoundedFile(io.FileIO(path))
        try:
            with sentences(self.path):
                self.size = os.fstat(self.file.fileno()).st_size
                start = self.file.read(64)
                self.value = self.read_zip() if start.startswith(ZIP_SIGNATURE) else self.read_legacy(start)
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def arrays(self, tensors: Mapping) -> dict[str, np.ndarray]:
        """Copies of tensors of `value`, under the same names; bfloat16 as float32.

        Raises:
            RunError: if one is no tensor, or the file is damaged.
        """
        with sentences(self.path):
            if not all(isinstance(tensor, StoredTensor) for tensor in tensors.values()):
                raise Fault("its weights are not plain tensors")
            if sum(tensor.result_bytes for tensor in tensors.values()) > MAX_GROWTH * self.size + (1 << 20):
                raise Fault(f"its tensors would take more than {MAX_GROWTH} times its size in memory")
            of_storage: dict[int, list] = {}
            for name, tensor in tensors.items():
                of_storage.setdefault(id(tensor.storage), []).append((name, tensor))
            copies = {}
            for views in of_storage.values():
                data = self.read_storage(views[0][1].storage)
                copies.update({name: tensor.copy_of(data, self.swapped) for name, tensor in views})
            return {str(name): copies[name] for name in tensors}

    def read_storage(self, storage: Storage) -> bytearray:
        self.file.seek(storage.start)
        data = bytearray(storage.nbytes)
        if self.file.readinto(data) != storage.nbytes or storage.checksum not in (None, zlib.crc32(data)):
            raise Fault(DAMAGED)
        return data

    def place(self, storage: Storage, start: int, checksum: int | None = None) -> None:
        """Note where a storage begins, if all of it is there."""
        if start + storage.nbytes > self.size:
            raise Fault(DAMAGED)
        storage.start, storage.checksum = start, checksum

    def read_legacy(self, start: bytes):
        """Five pickles, then the storages in the order of the last pickle's keys: int64 length, numbers.

        All little-endian, whatever machine wrote it.
        """
        for beginning, name in STRANGERS.items():
            if start.lstrip().startswith(beginning):
                raise Fault(f"it is {name}")
        if start[8:9] == b"{":
            raise Fault("it is a .safetensors file by what it holds; give it a name that ends so")
        self.file.seek(0)
        stream = PickleStream(self.file.read(min(self.size, MAX_PICKLE_BYTES)))
        if unpickle(stream, {}) != MAGIC_NUMBER or unpickle(stream, {}) != LEGACY_PROTOCOL:
            raise Fault(UNKNOWN)
        unpickle(stream, {})
        value = unpickle(stream, self.storages)
        keys = unpickle(stream, {})
        position = stream.tell()
        if type(keys) is not list or sorted(keys) != sorted(self.storages):
            raise Fault(DAMAGED)
        for key in keys:
            storage = self.storages[key]
            self.file.seek(position)
            if int.from_bytes(self.file.read(8), "little", signed=True) != storage.numel:
                raise Fault(DAMAGED)
            self.place(storage, position + 8)
            position += 8 + storage.nbytes
        return value

    def read_zip(self):
        """NAME/data.pkl, NAME/byteorder, and NAME/data/KEY for each storage; all members are stored, not compressed."""
        with zipfile.ZipFile(self.file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise Fault(f"{DAMAGED}, it has two members of one name")
            folder = next((name[: -len("data.pkl")] for name in members if name.endswith("/data.pkl")), None)
            if folder is None:
                raise Fault("it is a zip archive, but none of PyTorch's")
            if f"{folder}constants.pkl" in members:
                raise Fault("refused, it is a TorchScript archive, which is a program; save the model's state_dict()")
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise Fault("its members are compressed, those that torch.save writes are not")
            if sum(info.file_size for info in members.values()) > self.size:
                raise Fault(DAMAGED)
            stream = PickleStream(archive.read(f"{folder}data.pkl"))
            self.swapped = f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") == b"big"
        value = unpickle(stream, self.storages)
        for key, storage in self.storages.items():
            info = members.get(f"{folder}data/{key}")
            if info is None or info.file_size != storage.nbytes:
                raise Fault(f"{DAMAGED}, a storage is missing or has another size than it should")
            self.place(storage, self.find_data(info), info.CRC)
        return value

    def find_data(self, info: zipfile.ZipInfo) -> int:
        """Where the numbers of a member of the archive begin, after a header with a name and padding."""
        self.file.seek(info.header_offset)
        signature, name, extra = struct.unpack("<4s22xHH", self.file.read(30))
        if signature != ZIP_SIGNATURE:
            raise Fault(DAMAGED)
        return info.header_offset + 30 + name + extra
