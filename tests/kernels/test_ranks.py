"""Memory that ranks share: who may open it, that a lost rank is noticed, and the means themselves.

tests/cpp/kernels_test.cpp checks the barriers under sanitizers, tests/launch/test_distribute.py whole training runs.
"""

import os
import shutil
import threading
import time

import numpy as np
import pytest

from src.kernels import build, ranks
from tests.kernels.test_kernels import Library

SHAPES = ((3, 5), (40000,), (1,), (2, 3, 4, 5))


@pytest.fixture
def libraries(tmp_path):
    """Three copies of the library, each of which a rank has for itself, though they are of one process."""
    paths = [str(tmp_path / f"{rank}.so") for rank in range(3)]
    for path in paths:
        shutil.copy(build.library(), path)
    return paths


def rank_values(rank, step):
    generator = np.random.default_rng(10 * step + rank)
    return [generator.standard_normal(shape).astype(np.float32) for shape in SHAPES]


def test_the_mean_is_that_of_adding_in_the_order_of_ranks_bit_by_bit(libraries):
    memory = ranks.create_memory(libraries[0], 7, 3, SHAPES)
    found = {}

    def run(rank):
        opened = memory if rank == 0 else ranks.open_memory(7, os.getpid(), memory)
        assert ranks.map_memory(libraries[rank], opened, rank, 3, SHAPES)
        for step in range(10):
            time.sleep(0.002 * ((rank + step) % 3))
            found[rank, step] = Library(libraries[rank]).call("mean_over_ranks", rank_values(rank, step), SHAPES)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    for (_, step), means in found.items():
        first, second, third = (rank_values(rank, step) for rank in range(3))
        for a, b, c, mean in zip(first, second, third, means):
            assert np.array_equal((a + b + c) * np.float32(1 / 3), mean)


def test_tensors_of_another_size_are_refused(libraries):
    memory = ranks.create_memory(libraries[0], 7, 1, SHAPES)
    assert ranks.map_memory(libraries[0], memory, 0, 1, SHAPES)
    others = [np.zeros(4, np.float32)]
    assert Library(libraries[0]).status("mean_over_ranks", others, [np.zeros(4, np.float32)]) == 1
    os.close(memory)


def test_the_operator_fails_where_a_rank_has_ended(libraries):
    """Instead of waiting without end: on another server, its launcher would never hear of it."""
    memory = ranks.create_memory(libraries[0], 7, 2, SHAPES)
    other = os.fork()
    if other == 0:
        os._exit(not ranks.map_memory(libraries[1], memory, 1, 2, SHAPES))
    assert os.waitpid(other, 0)[1] == 0
    assert ranks.map_memory(libraries[0], memory, 0, 2, SHAPES)
    values = rank_values(0, 0)
    assert Library(libraries[0]).status("mean_over_ranks", values, [np.zeros_like(value) for value in values]) == 3
    os.close(memory)


def test_only_the_memory_that_is_meant_is_opened(libraries, tmp_path):
    """On another machine the numbers of process and descriptor may be those of anything."""
    memory = ranks.create_memory(libraries[0], 7, 2, SHAPES)
    (tmp_path / "file").write_text("a stranger's")
    with open(tmp_path / "file") as file:
        assert ranks.open_memory(7, os.getpid(), file.fileno()) is None
    assert ranks.open_memory(8, os.getpid(), memory) is None
    assert ranks.open_memory(7, os.getpid(), -1) is None
    os.close(memory)
    assert ranks.open_memory(7, os.getpid(), memory) is None


@pytest.mark.parametrize("function", ["memfd_create", "posix_fallocate"])
def test_without_memory_there_is_none(libraries, monkeypatch, function):
    def refuse(*_):
        raise OSError(28, "there is no space")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, function, refuse)
    assert ranks.create_memory(libraries[0], 7, 2, SHAPES) is None
    assert len(os.listdir("/proc/self/fd")) == before
