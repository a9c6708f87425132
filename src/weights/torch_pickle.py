"""The pickles that `torch.save` writes, read without PyTorch and without running anything that they name.

A pickle is a program that may call whatever it names. Here a name leads to an entry of `NAMES` or to an error, opcodes
that files of weights have no need of do not exist, and nothing is allocated by a size that the file merely states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import math
import pickle
from collections.abc import Iterator

import ml_dtypes
import numpy as np

from src.common.cli import RunError, printable

# Real pickles have a few hundred bytes for each tensor. One byte of a hostile one costs up to 80 bytes of memory.
MAX_PICKLE_BYTES = 16 << 20
TOO_LONG = f"its pickle, or its list of members, takes more than {MAX_PICKLE_BYTES >> 20} MB; weights need less"
# NumPy 1 has no more.
MAX_DIMENSIONS = 32
MAX_ARGUMENTS = 16
UNKNOWN = "it is no file of PyTorch's, or a truncated one"
DAMAGED = "it is a damaged or truncated file of PyTorch's"


class Fault(Exception):
    """What is wrong with a file, without its name."""


@contextlib.contextmanager
def sentences(path: str) -> Iterator[None]:
    """Turn what a damaged file leads to, which are errors of many types, into a RunError."""
    try:
        yield
    except Fault as fault:
        raise RunError(f"{path}: {fault}") from None
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.EIO:
            raise
        raise RunError(f"{path}: {UNKNOWN}") from None


@dataclasses.dataclass
class Storage:
    """A run of numbers in the file.

    Attributes:
        dtype: of its elements.
        numel: how many there are.
        start: where they begin, in bytes of the file.
        checksum: CRC-32 of its bytes, where the file has one.
    """

    dtype: np.dtype
    numel: int
    start: int = 0
    checksum: int | None = None

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A view of a storage that lies within it; offset and strides count elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        if len(self.shape) != len(self.strides) or len(self.shape) > MAX_DIMENSIONS:
            raise Fault(DAMAGED)
        numbers = (self.offset, *self.shape, *self.strides)
        if any(type(number) is not int or not 0 <= number < 1 << 62 for number in numbers):
            raise Fault(f"{DAMAGED}, a tensor has a negative or huge size")
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides))
        if math.prod(self.shape) and (last + 1) * self.dtype.itemsize > self.storage.nbytes:
            raise Fault(f"{DAMAGED}, a tensor reaches beyond its storage")
        if math.prod(max(n, 1) for n in self.shape) >= 1 << 59:
            raise Fault(f"{DAMAGED}, a tensor has a negative or huge size")

    @property
    def result_dtype(self) -> np.dtype:
        """What it is read as: NumPy lacks bfloat16, and each of its values is one of float32."""
        return np.dtype(np.float32) if self.dtype == ml_dtypes.bfloat16 else self.dtype

    @property
    def result_bytes(self) -> int:
        return math.prod(self.shape) * self.result_dtype.itemsize

    def copy_of(self, data: bytearray, swapped: bool) -> np.ndarray:
        """The tensor as an array of its own, out of its storage's bytes."""
        if not math.prod(self.shape):
            return np.zeros(self.shape, self.result_dtype)
        size = self.dtype.itemsize
        # Any stride is right where there is one element.
        strides = [stride * size if n > 1 else 0 for n, stride in zip(self.shape, self.strides)]
        array = np.ndarray(self.shape, self.dtype, data, self.offset * size, strides).copy()
        return (array.byteswap() if swapped else array).astype(self.result_dtype, copy=False)


def call(function, arguments):
    """Call one of the functions below; thousands of arguments would be copied each time."""
    if not callable(function) or type(arguments) is not tuple or len(arguments) > MAX_ARGUMENTS:
        raise Fault(DAMAGED)
    return function(*arguments)


# What names lead to. These get whatever a hostile file hands them: they copy nothing and keep only what they check.


def rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None) -> StoredTensor:
    return rebuild_typed(storage, offset, shape, strides, requires_grad, hooks, None, metadata)


def rebuild_typed(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None) -> StoredTensor:
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise Fault(DAMAGED)
    dtype = storage.dtype if dtype is None else dtype
    if metadata or not isinstance(dtype, np.dtype):
        raise Fault("one of its tensors is of a kind that weights are not")
    return StoredTensor(storage=storage, dtype=dtype, offset=offset, shape=shape, strides=strides)


def rebuild_parameter(data, *_):
    return data


def rebuild_with_attributes(function, kind, arguments, state):
    return call(function, arguments)


def rebuild_dict(*_) -> dict:
    return {}


def rebuild_nothing(*_) -> None:
    """In place of values that do not matter here, such as the flags of the training program."""


STORAGES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
# Those of tensors; PyTorch and NumPy have the same names for them.
DTYPES = [np.dtype(kind) for kind in (*STORAGES.values(), np.uint16, np.uint32, np.uint64)]
BUILTINS = "bool bytearray bytes complex dict float frozenset int list range set slice str tuple xrange"
# What training programs put beside the weights, by module.
BESIDE = {
    "torch": "Size Tensor device",
    "torch.nn.parameter": "Buffer Parameter",
    "argparse": "Namespace",
    "builtins": BUILTINS,
    "__builtin__": BUILTINS,
    "_codecs": "encode",
    "numpy": "dtype ndarray",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
}
# All that is harmless, by module and name, and what it leads to.
NAMES = {
    ("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): rebuild_typed,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): rebuild_with_attributes,
    ("torch.storage", "UntypedStorage"): np.dtype(np.uint8),
    **{("torch", dtype.name): dtype for dtype in DTYPES},
    **{("torch", f"{name}Storage"): np.dtype(kind) for name, kind in STORAGES.items()},
    **{("collections", name): rebuild_dict for name in ("OrderedDict", "defaultdict", "Counter")},
    **{(module, name): rebuild_nothing for module, names in BESIDE.items() for name in names.split()},
}
PLAIN = (str, int, float, bool, type(None))
# Those of protocols 2 to 5 but for buffers and registered extensions.
OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BINSTRING SHORT_BINSTRING EMPTY_LIST APPEND "
    "APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL "
    "STACK_GLOBAL INST OBJ BINPERSID"
).split()


class PickleStream(io.BytesIO):
    """Pickles in memory; a name that the end cuts off is not taken for a shorter one."""

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class TorchUnpickler(pickle._Unpickler):
    """Python's own unpickler, written in Python, with less.

    The compiled one allocates by sizes that the file states. On the stack are plain values and what `NAMES` has, so
    whatever is called is one of the functions above.

    Args:
        stream: of which the next pickle is read.
        storages: key to storage; gets those that the pickle names.
    """

    def __init__(self, stream: PickleStream, storages: dict[str, Storage]):
        super().__init__(stream, encoding="utf-8")
        self.storages = storages

    def find_class(self, module: str, name: str):
        if (module, name) not in NAMES:
            raise Fault(
                f"refused, it would call {printable(f'{module}.{name}'[:200])}; weights need no more than tensors and "
                "plain values, those of a whole model are saved by torch.save(model.state_dict(), ...)"
            )
        return NAMES[module, name]

    def persistent_load(self, pid) -> Storage:
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
            raise Fault(DAMAGED)
        dtype, key, _, numel, *view = pid[1:]
        if not isinstance(dtype, np.dtype) or type(key) is not str or type(numel) is not int:
            raise Fault(DAMAGED)
        if not 0 <= numel < 1 << 59 or view not in ([], [None]):
            raise Fault(f"{DAMAGED}, a storage has a negative or huge size, or is a part of another")
        storage = self.storages.setdefault(key, Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise Fault(f"{DAMAGED}, it describes a storage in two ways")
        return storage

    def _instantiate(self, klass, args) -> None:
        self.append(call(klass, tuple(args)))

    def load_call(self) -> None:
        arguments = self.stack.pop()
        self.append(call(self.stack.pop(), arguments))

    def load_set_item(self) -> None:
        value = self.stack.pop()
        self.set_items([self.stack.pop(), value])

    def load_set_items(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        """Put keys and values into the dict on the stack.

        The hash of a deeply nested key would overflow the process's stack, and there are long integers of equal hash.
        """
        for key in items[::2]:
            if type(key) not in PLAIN or (type(key) is int and abs(key) >= 1 << 60):
                raise Fault(DAMAGED)
        if not isinstance(self.stack[-1], dict):
            raise Fault(DAMAGED)
        self.stack[-1].update(zip(items[::2], items[1::2]))

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in OPCODES)}
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_call
    # Lists instead of sets, which would hash what they hold.
    dispatch[pickle.EMPTY_SET[0]] = dispatch[pickle.EMPTY_LIST[0]]
    dispatch[pickle.ADDITEMS[0]] = dispatch[pickle.APPENDS[0]]
    dispatch[pickle.FROZENSET[0]] = pickle._Unpickler.dispatch[pickle.LIST[0]]
    # Attributes of objects are of no use here.
    dispatch[pickle.BUILD[0]] = dispatch[pickle.POP[0]]
    dispatch[pickle.SETITEM[0]] = load_set_item
    dispatch[pickle.SETITEMS[0]] = load_set_items


def unpickle(stream: PickleStream, storages: dict[str, Storage]):
    """The next pickle of `stream`; the storages that it names are added to `storages`."""
    try:
        return TorchUnpickler(stream, storages).load()
    except Exception as error:
        if isinstance(error, Fault) or stream.tell() < MAX_PICKLE_BYTES:
            raise
        raise Fault(TOO_LONG) from None
