"""Compiled graphs kept for the next start: compiling a training step takes seconds, reading it a part of one.

MindSpore can keep what it has compiled, but finds it again by the names of the program's files alone: another flag or
another order of graphs would get a graph that is not its own. Here every graph has a folder of its own, named by
everything that it was made from.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.common.files import atomic_write
from src.common.native import CompileError, cache_folder, is_private_folder

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SEAL = "sha256"
# A graph takes about one MB.
KEPT = 30
DAY = 86400.0
# Bytes. On a full disk MindSpore complains on standard error.
LEAST_FREE = 50_000_000
# What differs between two cells or functions that are alike: when they were made, what they have compiled.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
INCIDENTAL = frozenset(
    "_create_time _id _compile_cache _compiled _exist_names _exist_objs arguments_key hash_obj".split()
)


def find_graph_folder() -> str | None:
    """A folder of this user's for compiled graphs, or None."""
    try:
        return os.path.join(cache_folder(), "graphs")
    except CompileError:
        return None


def compile_once(cell: nn.Cell, arguments: tuple, folder: str, compile_cell: Callable[[], None]) -> None:
    """Compile a cell, or take what an earlier process has compiled from the same things.

    Args:
        cell: what is compiled.
        arguments: tensors that it is called with.
        folder: where graphs are kept; used only if nobody else can write to it.
        compile_cell: compiles.
    """
    # Whoever uses MindSpore's own switch gets what it does.
    own_switch = ms.get_context("enable_compile_cache") or "MS_COMPILER_CACHE_ENABLE" in os.environ
    if own_switch or not is_private_folder(folder):
        return compile_cell()
    path = os.path.join(folder, graph_key(cell, arguments))
    kept = is_intact(path)
    if not kept and shutil.disk_usage(folder).free < LEAST_FREE:
        return compile_cell()
    try:
        if kept:
            with graphs_in(path):
                compile_cell()
            os.utime(path)
        else:
            compile_and_keep(compile_cell, path)
    except (OSError, RuntimeError):
        # What MindSpore cannot read or write can be computed nevertheless.
        compile_cell()


def compile_and_keep(compile_cell: Callable[[], None], path: str) -> None:
    """Compile, and keep the graph as `path` where that can be done.

    Raises:
        OSError, RuntimeError: if compiling into a folder beside it fails.
    """
    unfinished = tempfile.mkdtemp(prefix=".", dir=os.path.dirname(path))
    try:
        with graphs_in(unfinished):
            compile_cell()
        with contextlib.suppress(OSError):
            keep(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def graphs_in(folder: str) -> Iterator[None]:
    """Let MindSpore write compiled graphs to a folder, and read them from it."""
    ms.set_context(enable_compile_cache=True, compile_cache_path=folder)
    try:
        yield
    finally:
        ms.set_context(enable_compile_cache=False)


def keep(unfinished: str, path: str) -> None:
    """Move a graph to its place, whole and sealed; drop those that have not been used for longest.

    Raises:
        OSError: if that fails, or another process was first.
    """
    digest = digest_of_files(unfinished)
    if digest is None:
        return
    with atomic_write(os.path.join(unfinished, SEAL), "w") as file:
        file.write(digest)
    if not is_intact(path):
        shutil.rmtree(path, ignore_errors=True)
    os.rename(unfinished, path)
    folder = os.path.dirname(path)
    graphs = sorted(glob.glob(os.path.join(folder, "*")), key=os.path.getmtime, reverse=True)
    # Processes that were killed leave what they had begun.
    begun = [path for path in glob.glob(os.path.join(folder, ".*")) if os.path.getmtime(path) < time.time() - DAY]
    for old in [*graphs[KEPT:], *begun]:
        shutil.rmtree(old, ignore_errors=True)


def is_intact(path: str) -> bool:
    """Whether a graph is there as it was written."""
    try:
        with open(os.path.join(path, SEAL)) as file:
            return file.read() == digest_of_files(path)
    except OSError:
        return False


def digest_of_files(folder: str) -> str | None:
    """A digest of what MindSpore has written to a folder; None where that is no graph."""
    paths = sorted(glob.glob(os.path.join(folder, "rank_*", "graph_cache", "*")))
    if not any(path.endswith(".mindir") for path in paths):
        return None
    return digest_of(paths, folder)


def digest_of(paths: Iterable[str], base: str) -> str:
    """A digest of files: what is in them, and where they lie below a folder."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(repr((os.path.relpath(path, base), hashlib.sha256(file.read()).hexdigest())).encode())
    return digest.hexdigest()


def graph_key(cell: nn.Cell, arguments: tuple) -> str:
    """A name for everything that a cell's graph is made from: programs, versions, settings, the cell, its inputs."""
    digest = hashlib.sha256()
    context = [ms.get_context(name) for name in ("mode", "device_target", "jit_syntax_level")]
    variables = sorted(item for item in os.environ.items() if item[0].startswith(("MS_", "GLOG_", "RANK")))
    versions = (ms.__version__, np.__version__, sys.version, platform.machine())
    parallel = ms.get_auto_parallel_context("parallel_mode")
    for part in (versions, context, parallel, variables, digest_of_sources()):
        digest.update(repr(part).encode())
    describe(digest.update, (cell, arguments), {})
    return digest.hexdigest()[:40]


def digest_of_sources() -> str:
    """A digest of this repository's programs and of the script that runs."""
    paths = sorted(glob.glob(os.path.join(ROOT, "src", "**", "*.py"), recursive=True))
    script = os.path.abspath(sys.argv[0])
    # Where they lie counts, too: graphs name their sources.
    return digest_of([path for path in (*paths, script) if os.path.isfile(path)], os.path.sep)


def describe(write: Callable[[bytes], None], value, seen: dict) -> None:
    """Write down a value and all that it holds: cells, operators, constants, functions and what these have captured.

    What is written too much makes a graph be compiled anew; so attributes are written unless known to be incidental.

    Args:
        write: takes bytes.
        value: anything.
        seen: objects that have been written, by id: the number that they have, and themselves.
    """
    plain = (type(None), bool, int, float, complex, str, bytes, np.generic, slice, range)
    if isinstance(value, plain) or isinstance(value, type):
        # MindSpore's layers keep sentences of their arguments, with addresses among them.
        return write(f"{type(value).__name__} {ADDRESS.sub('', repr(value))};".encode())
    if id(value) in seen:
        return write(f"again {seen[id(value)][0]};".encode())
    seen[id(value)] = len(seen), value
    write(f"{type(value).__module__}.{type(value).__qualname__}:".encode())
    go_on = functools.partial(describe, write, seen=seen)
    if isinstance(value, ms.Parameter):
        # Its numbers are no part of a graph.
        write(repr((value.name, value.shape, str(value.dtype), value.requires_grad)).encode())
    elif isinstance(value, (ms.Tensor, np.ndarray)):
        write(repr((value.shape, str(value.dtype))).encode())
        write(np.ascontiguousarray(value if isinstance(value, np.ndarray) else value.asnumpy()).tobytes())
    elif isinstance(value, (list, tuple)):
        for item in value:
            go_on(item)
    elif isinstance(value, (set, frozenset)):
        go_on(sorted(ADDRESS.sub("", repr(item)) for item in value))
    elif isinstance(value, dict):
        for name, item in value.items():
            go_on(name)
            go_on(item)
    elif isinstance(value, types.MethodType):
        go_on((value.__func__, value.__self__))
    elif isinstance(value, types.FunctionType):
        variables = zip(value.__code__.co_freevars, value.__closure__ or ())
        captured = {name: captured_value(variable) for name, variable in variables if name not in INCIDENTAL}
        go_on((value.__module__, value.__qualname__, captured, value.__defaults__, value.__kwdefaults__))
    elif isinstance(value, functools.partial):
        go_on((value.func, value.args, value.keywords))
    elif isinstance(value, type(ms.float32).__base__):
        write(str(value).encode())
    elif isinstance(value, (nn.Cell, ops.Primitive)):
        attributes = {name: item for name, item in vars(value).items() if name not in INCIDENTAL}
        go_on(attributes)
    write(b".")


def captured_value(variable: types.CellType):
    """What a function has captured; None where the variable has no value yet."""
    try:
        return variable.cell_contents
    except ValueError:
        return None
