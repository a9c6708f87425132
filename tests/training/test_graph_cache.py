"""Compiled graphs kept for the next start: taken where everything is the same, made anew where anything differs."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

import train
from src.config import Config
from src.loss import CrossEntropySmooth
from src.models.effnet import EfficientNet
from src.models.family import VARIANTS
from src.models.layers import LayerSettings
from src.runtime.device import Device
from src.training import graph_cache
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep
from tests.support.training_runs import finish, start

ROOT = pathlib.Path(__file__).parent.parent.parent

# A process that trains a small cell for three steps and prints the result.
PROGRAM = """
import hashlib, sys
from src.runtime.device import prepare_device
prepare_device("CPU")
import numpy as np
import mindspore as ms
from mindspore import nn, ops
from src.config import Config
from src.loss import CrossEntropySmooth
from src.training.optimizer import create_optimizer
from src.training.step import TrainStep

folder, factor, others = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])

class Network(nn.Cell):
    def __init__(self):
        super().__init__()
        self.dense = nn.Dense(12, 10)
        self.factor = factor

    def construct(self, x):
        return self.dense(x.reshape((-1, 12))) * self.factor

for _ in range(others):  # graphs that are compiled before ours
    nn.Dense(5, 3)(ms.Tensor(np.ones((2, 5), np.float32)))
ms.set_seed(1)
network = Network()
optimizer = create_optimizer(network.trainable_params(), np.full(3, 0.1, np.float32), Config())
step = TrainStep(network, CrossEntropySmooth(0.1, 10), optimizer, graph_folder=folder).set_train()
x, y = ms.Tensor(np.linspace(0, 1, 48).reshape(4, 3, 2, 2).astype(np.float32)), ms.Tensor(np.arange(4, dtype=np.int32))
losses = [float(step(x, y).asnumpy()) for _ in range(3)]
numbers = b"".join(p.asnumpy().tobytes() for p in step.get_parameters())
print("result", losses, hashlib.sha256(numbers).hexdigest())
"""


def run(tmp_path, factor=1.0, others=0, folder="graphs"):
    """The result of PROGRAM in a process of its own."""
    script = tmp_path / "program.py"
    if not script.exists():
        script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(tmp_path / folder), str(factor), str(others)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout.split("result ")[1]


def graphs(tmp_path, folder="graphs"):
    """The graphs that are kept, and when they were written."""
    paths = (tmp_path / folder).glob("*/rank_0/graph_cache/*.mindir")
    return {path.parent.parent.parent.name: path.stat().st_mtime_ns for path in paths}


def test_second_start_takes_the_graph_and_ends_with_the_same_bits(tmp_path):
    first = run(tmp_path)
    kept = graphs(tmp_path)
    assert len(kept) == 1
    assert run(tmp_path) == first
    # As many graphs before it as there may be.
    assert run(tmp_path, others=2) == first
    assert graphs(tmp_path) == kept


def test_another_constant_or_another_source_makes_another_graph(tmp_path):
    first = run(tmp_path)
    other = run(tmp_path, factor=2.0)
    assert other != first
    assert len(graphs(tmp_path)) == 2
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.replace("* self.factor", "* self.factor * 2.0"))
    assert run(tmp_path) == other
    assert len(graphs(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "seal"])
def test_damaged_graph_is_not_taken_and_made_anew(tmp_path, damage):
    first = run(tmp_path)
    (path,) = (tmp_path / "graphs").glob("*/rank_0/graph_cache/*.mindir")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content[:-10] + bytes(10))
    elif damage == "removed":
        path.unlink()
    else:
        (path.parent.parent.parent / graph_cache.SEAL).unlink()
    assert run(tmp_path) == first
    assert graph_cache.is_intact(str(path.parent.parent.parent))


def test_graph_that_mindspore_cannot_read_is_passed_over(tmp_path):
    first = run(tmp_path)
    (path,) = (tmp_path / "graphs").glob("*/rank_0/graph_cache/*.mindir")
    path.write_bytes(b"no graph")
    folder = str(path.parent.parent.parent)
    pathlib.Path(folder, graph_cache.SEAL).write_text(graph_cache.digest_of_files(folder))
    assert run(tmp_path) == first


def test_folder_that_others_can_write_to_or_that_is_none_is_not_used(tmp_path):
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs").chmod(0o777)
    first = run(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(tmp_path, folder="file") == first
    assert not os.listdir(tmp_path / "graphs")


def test_oldest_graphs_go(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_cache, "KEPT", 3)
    for number in range(5):
        unfinished = tmp_path / f".{number}"
        (unfinished / "rank_0" / "graph_cache").mkdir(parents=True)
        (unfinished / "rank_0" / "graph_cache" / "a.mindir").write_text(str(number))
        graph_cache.keep(str(unfinished), str(tmp_path / str(number)))
        os.utime(tmp_path / str(number), (number, number))
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "4"]


def test_what_a_killed_process_has_begun_goes_after_a_day(tmp_path):
    for name, age in ((".killed", 90000), (".compiling", 60), ("kept", 90000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, times=(time.time() - age,) * 2)
    (tmp_path / ".new" / "rank_0" / "graph_cache").mkdir(parents=True)
    (tmp_path / ".new" / "rank_0" / "graph_cache" / "a.mindir").write_text("")
    graph_cache.keep(str(tmp_path / ".new"), str(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == [".compiling", "kept", "new"]


def test_a_graph_that_cannot_be_written_is_computed_nevertheless(tmp_path, monkeypatch):
    attempts = []

    def compile_cell():
        attempts.append(ms.get_context("enable_compile_cache"))
        if attempts[-1]:
            raise RuntimeError("no space")

    monkeypatch.setattr(graph_cache, "graph_key", lambda *_: "key")
    graph_cache.compile_once(None, (), str(tmp_path / "graphs"), compile_cell)
    assert attempts == [True, False]
    assert not os.listdir(tmp_path / "graphs")


def test_only_a_single_process_on_a_cpu_keeps_its_step(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = train.choose_graph_folder(Config(), Device("CPU"))
    assert kept == str(tmp_path / "efficientnet-mindspore" / "graphs")
    assert train.choose_graph_folder(Config(keep_graph=False), Device("CPU")) is None
    assert train.choose_graph_folder(Config(), Device("CPU", rank_size=2)) is None
    assert train.choose_graph_folder(Config(), Device("Ascend")) is None


def test_training_takes_the_step_that_an_earlier_run_has_kept(tmp_path, few_images):
    losses, times = [], []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        environment = {"XDG_CACHE_HOME": str(tmp_path)}
        process = start(tmp_path / str(number), few_images / "train", environment, epoch_size=1, save_checkpoint=False)
        code, out, err = finish(process, tmp_path / str(number))
        assert code == 0, err
        losses.append(out.split("avg loss: ")[1].split()[0])
        times.append(graphs(tmp_path, "efficientnet-mindspore/graphs"))
    assert losses[0] == losses[1]
    assert len(times[0]) == 1 and times[0] == times[1]


def test_on_a_full_disk_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(graph_cache, "LEAST_FREE", 1 << 62)
    monkeypatch.setattr(graph_cache, "graph_key", lambda *_: "key")
    used = []
    graph_cache.compile_once(
        None, (), str(tmp_path / "graphs"), lambda: used.append(ms.get_context("enable_compile_cache"))
    )
    assert used == [False] and not os.listdir(tmp_path / "graphs")


# What the key of a training step depends on.


# Deep enough for blocks that are left out at random.
SHALLOW = dataclasses.replace(VARIANTS["b0"], width_coeff=0.25, depth_coeff=0.5)


def key(
    network=None, optimizer=None, step=None, images=(2, 3, 8, 8), dtype=np.float32, classes=10, freeze=0, kernels=None
):
    """The key of a training step of a small network; each argument differs from the defaults in what it names."""
    ms.set_seed(1)
    made = EfficientNet(SHALLOW, classes, **(network or {}))
    if kernels:
        assert kernels.install(made)
    frozen = made.freeze(freeze)
    rates = np.full(4, 0.1, np.float32)
    rule = create_optimizer(made.trainable_params(), rates, Config(**(optimizer or {})))
    cell = TrainStep(made, CrossEntropySmooth(0.1, classes), rule, frozen=frozen, **(step or {})).set_train()
    return graph_cache.graph_key(cell, (Tensor(np.zeros(images, dtype)), Tensor(np.zeros(2, np.int32))))


def test_steps_that_are_alike_have_one_key():
    assert key() == key()


@pytest.mark.parametrize(
    "difference",
    [
        {"network": {"seed": 2}},
        {"network": {"drop_connect_rate": 0.3}},
        {"network": {"dropout_rate": 0.3}},
        {"network": {"layers": LayerSettings(padding="symmetric")}},
        {"network": {"layers": LayerSettings(norm_eps=1e-4)}},
        {"network": {"layers": LayerSettings(norm_momentum=0.9)}},
        {"optimizer": {"opt": "sgd"}},
        {"optimizer": {"momentum": 0.8}},
        {"optimizer": {"weight_decay": 1e-4}},
        {"optimizer": {"decay_all": True}},
        {"optimizer": {"opt_eps": 1e-4}},
        {"step": {"loss_scale": 2.0}},
        {"step": {"clip_norm": 1.0}},
        {"step": {"accumulate": 2}},
        {"step": {"ema_decay": 0.9}},
        {"step": {"mean": (1.0, 2.0, 3.0)}},
        {"images": (4, 3, 8, 8)},
        {"images": (2, 3, 16, 8)},
        {"dtype": np.uint8},
        {"classes": 11},
        {"freeze": 1},
    ],
    ids=str,
)
def test_every_setting_makes_another_key(difference):
    assert key(**difference) != key()


def test_kernels_make_another_key():
    from src.kernels import load_kernels

    assert key(kernels=load_kernels()) != key()


def test_weights_and_order_of_construction_make_no_other_key():
    before = key()
    nn.Dense(3, 4)
    assert key() == before


def test_environment_and_sources_make_another_key(monkeypatch):
    before = key()
    monkeypatch.setenv("MS_SOMETHING", "1")
    assert key() != before
    monkeypatch.delenv("MS_SOMETHING")
    monkeypatch.setattr(graph_cache, "digest_of_sources", lambda: "others")
    assert key() != before


def description(value):
    """What `describe` writes."""
    written = []
    graph_cache.describe(written.append, value, {})
    return b"".join(written)


def test_description_goes_into_functions_operators_and_constants():
    def function(number):
        return lambda: number

    assert description(function(1)) == description(function(1)) != description(function(2))
    assert description(Tensor([1.0])) != description(Tensor([2.0]))
    assert description(Tensor([1.0])) != description(Tensor([1.0], ms.float16))
    assert description(ms.float32) != description(ms.float16)
    assert description({1, 2}) == description({2, 1}) != description({1, 3})
    assert description(ops.ReduceMean(True)) != description(ops.ReduceMean(False))
    one, two = (Parameter(Tensor([value]), name="p") for value in (1.0, 2.0))
    assert description(one) == description(two)
    shared = []
    assert description([shared, shared]) != description([[], []])
