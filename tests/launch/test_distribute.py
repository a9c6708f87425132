"""Training by several ranks, as real processes on the CPU, started by scripts/run_distribute_train.sh."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mindspore import nn
from mindspore.nn.layer import normalization

from src.common.cli import UsageError
from src.config import Config
from src.data.batches import Loading
from src.dataset import create_dataset
from src.evaluation.evaluate import evaluate
from src.launch.rank_table import write_rank_table
from src.models.effnet import create_network
from src.models.family import VARIANTS
from src.models.layers import ConvNormActivation, LayerSettings
from src.runtime.device import Device
from src.training.resume import merge_resumed
from src.training.setup import check_sync_bn
from src.weights.checkpoint import Checkpoint, read_entries
from tests.ranks import gradients
from tests.support.launcher import launcher_command, wait_for
from tests.support.loading import load_model

ROOT = Path(__file__).parent.parent.parent
RANKS = ROOT / "tests" / "ranks"
# Small and short, but the whole of train.py: two ranks of 4 images, 4 steps an epoch, 2 epochs.
FLAGS = {
    "image_size": 32,
    "batch_size": 4,
    "epoch_size": 2,
    "lr_max": 0.003,
    "warmup_epochs": 1,
    "norm_momentum": 0.9,
    "flip": False,
    "save_checkpoint_steps": 1,
    "keep_checkpoint_max": 20,
    "seed": 3,
}


@pytest.fixture(scope="session")
def images(digits, tmp_path_factory):
    """34 images to train on in 2 classes: 4 global batches of 8 and 2 images over; 13 to evaluate on."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 17), ("val", 7)):
        for label in "01":
            (root / split / label).mkdir(parents=True)
            for path in sorted((digits / split / label).iterdir())[: count - (split == "val" and label == "1")]:
                shutil.copy(path, root / split / label)
    return root


def as_flags(**values):
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def start(folder, images, ranks=2, program="train.py", table=None, environment=None, **flags):
    """Start ranks of one of tests/ranks' programs in `folder`; returns the launcher's process."""
    if table is None:
        table = folder / "table.json"
        write_rank_table(str(table), "127.0.0.1", list(range(ranks)), {})
    arguments = [table, images / "train", *as_flags(**{**FLAGS, **flags})]
    return subprocess.Popen(
        [*launcher_command(RANKS / program), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU", "WAIT": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, folder):
    """Wait for the end of a run that must succeed."""
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err + (folder / "train_parallel0" / "log.txt").read_text()[-3000:]


def weights_of(folder, rank):
    with np.load(folder / f"train_parallel{rank}" / "weights.npz") as file:
        return {name: file[name] for name in file.files}


def is_statistic(name):
    """Batch norm's moving statistics are each rank's own, as in the model zoo."""
    return name.endswith(("moving_mean", "moving_variance"))


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory):
    """The folder of a run of two ranks with evaluation."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(folder, images, eval_dataset_path=images / "val"), folder)
    return folder


def test_two_ranks_end_with_the_same_weights(undisturbed):
    first, second = (weights_of(undisturbed, rank) for rank in range(2))
    trained = [name for name in first if not is_statistic(name)]
    assert len(trained) > 100
    assert all(np.array_equal(first[name], second[name]) for name in trained)
    assert not np.array_equal(first["stem.norm.moving_mean"], second["stem.norm.moving_mean"])


def test_rank_0_alone_writes_checkpoints_and_reports_the_global_batch(undisturbed):
    assert os.listdir(undisturbed / "checkpoint") == ["model_0"]
    saved = read_entries(str(undisturbed / "checkpoint" / "model_0" / "Efficientnet_b0-rank0-2_4.ckpt"))
    assert all(np.array_equal(saved[name], value) for name, value in weights_of(undisturbed, 0).items())
    log = (undisturbed / "train_parallel0" / "log.txt").read_text()
    assert "CPU, rank 0 of 2" in log
    assert "2 epochs of 4 steps, global batch 8, peak learning rate 0.003" in log


def test_evaluation_over_all_ranks_scores_the_saved_weights_on_every_image_once(undisturbed, images, monkeypatch):
    """13 images, an odd number over two ranks; the same numbers as one process gives for the checkpoint."""
    monkeypatch.setitem(VARIANTS, "b0", dataclasses.replace(VARIANTS["b0"], depth_coeff=0.5))
    with open(undisturbed / "checkpoint" / "model_0" / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    network, info = load_model(str(undisturbed / "checkpoint" / "model_0" / "Efficientnet_b0-rank0-2_4.ckpt"))
    dataset = create_dataset(str(images / "val"), False, 4, loading=Loading(info.preprocess))
    score = evaluate(network, dataset.create_tuple_iterator(num_epochs=1, output_numpy=True), 0.1)
    assert score.images == 13
    assert float(row["top_1"]) == pytest.approx(score.top_1 / 13, abs=1e-9)
    assert float(row["eval_loss"]) == pytest.approx(score.loss, rel=1e-4)
    evaluations = [re.findall(r"epoch \d: evaluation: .*", log_of(undisturbed, rank)) for rank in range(2)]
    assert len(evaluations[0]) == 2
    assert evaluations[0] == evaluations[1]


def log_of(folder, rank):
    return (folder / f"train_parallel{rank}" / "log.txt").read_text()


def images_seen(folder, rank):
    """The numbers of the images of each epoch of a rank: 4 steps of 4 images."""
    seen = json.loads((folder / f"train_parallel{rank}" / "seen.json").read_text())
    return [seen[:16], seen[16:]]


def test_every_image_is_seen_once_an_epoch_but_those_that_do_not_fill_a_global_batch(undisturbed):
    epochs = [first + second for first, second in zip(images_seen(undisturbed, 0), images_seen(undisturbed, 1))]
    for seen in epochs:
        assert len(seen) == len(set(seen)) == 32
        assert set(seen) < set(range(34))
    assert epochs[0] != epochs[1]


def test_two_ranks_of_8_give_the_gradients_of_one_process_of_16(images, tmp_path):
    """Batch norm in evaluation mode; the largest difference is relative to each gradient's largest entry."""
    gradients.write_statistics(tmp_path / "statistics.npz")
    process = start(tmp_path, images, program="gradients.py")
    gradients.write_gradients(tmp_path / "gradients.npz", tmp_path / "statistics.npz")
    finish(process, tmp_path)
    alone = np.load(tmp_path / "gradients.npz")
    assert len(alone.files) == 213
    for file in ("messages.npz", "memory.npz"):
        first, second = (np.load(tmp_path / f"train_parallel{rank}" / file) for rank in range(2))
        for name in alone.files:
            largest = np.abs(alone[name]).max()
            assert largest > 1e-6, name
            assert np.abs(first[name] - alone[name]).max() / largest < 1e-4, (file, name)
            assert np.array_equal(first[name], second[name]), (file, name)


def processes_of(process, last="rank 1"):
    """The processes that a launcher says it has started, up to the `last`: name to number."""
    numbers = {}
    for line in process.stdout:
        name, _, number = line.strip().rpartition(": process ")
        if name:
            numbers[name] = int(number)
        if name == last:
            return numbers
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mishaps")


class TestARunWithMishaps:
    """One run of two ranks, brought down four times: each start goes on, and it ends as the undisturbed run did."""

    def saved(self, folder):
        return sorted(path.stem.rpartition("-")[2] for path in (folder / "checkpoint" / "model_0").glob("Eff*.ckpt"))

    def wait_for_checkpoint(self, process, folder, name):
        wait_for(lambda: process.poll() is not None or name in self.saved(folder), 120)

    def test_numbers_that_are_none_on_one_rank_end_the_run_before_they_are_saved(self, folder, images):
        process = start(folder, images, environment={"NAN_AT": "1,3"})
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1
        # Rank 1 sees its own loss, rank 0 what the averaged gradients made of the weights; either may end first.
        assert "error: the loss became nan at step 3 of epoch 1" in log_of(folder, 1)
        assert re.search(r"    error: (the loss became nan|\S+ became infinite or NaN) at step 3 of epoch 1", err)
        assert self.saved(folder) == ["1_1", "1_2"]

    def test_a_signal_to_one_rank_stops_all_after_the_same_step(self, folder, images):
        process = start(folder, images, resume="auto")
        ranks = processes_of(process)
        self.wait_for_checkpoint(process, folder, "1_3")
        os.kill(ranks["rank 1"], signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "ended with exit code 143" in err
        stops = [re.findall(r"stopped by signal 15 after step (\d) of 8", log_of(folder, rank)) for rank in range(2)]
        assert stops[0] == stops[1] and len(stops[0]) == 1
        assert len(self.saved(folder)) == int(stops[0][0])
        first, second = (weights_of(folder, rank) for rank in range(2))
        assert all(np.array_equal(first[name], second[name]) for name in first if not is_statistic(name))

    def test_a_killed_rank_brings_the_run_down(self, folder, images):
        process = start(folder, images, resume="auto")
        ranks = processes_of(process)
        self.wait_for_checkpoint(process, folder, "2_2")
        began = time.monotonic()
        os.kill(ranks["rank 1"], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 30
        assert process.returncode == 1
        assert f"the last lines of {folder}/train_parallel1/log.txt:\n" in err
        assert f"error: rank 1, process {ranks['rank 1']}, was killed by SIGKILL; the other ranks were stopped" in err
        assert not any(Path(f"/proc/{number}").exists() for number in ranks.values())
        assert "2_4" not in self.saved(folder)

    def test_all_ranks_pass_over_a_damaged_checkpoint_and_end_with_the_undisturbed_weights(
        self, folder, images, undisturbed
    ):
        *_, before, newest = self.saved(folder)
        path = next((folder / "checkpoint" / "model_0").glob(f"*-{newest}.ckpt"))
        path.write_bytes(path.read_bytes()[:-100])
        finish(start(folder, images, resume="auto"), folder)
        for rank in range(2):
            assert f"passed over: {path}" in log_of(folder, rank)
            assert f"-{before}.ckpt, after step " in log_of(folder, rank)
            expected, found = weights_of(undisturbed, rank), weights_of(folder, rank)
            assert all(np.array_equal(found[name], expected[name]) for name in expected if not is_statistic(name))
            if rank == 0:
                assert all(np.array_equal(found[name], expected[name]) for name in expected)


def run_alone(folder, images, **flags):
    command = [sys.executable, ROOT / "train.py", *as_flags(dataset_path=images / "train", batch_size=4, **flags)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_resume_with_another_number_of_ranks_is_refused(undisturbed):
    """The state of a run of two ranks in one process."""
    state = json.loads(read_entries(str(next(undisturbed.glob("checkpoint/*/*-2_4.ckpt"))))["training_state"])
    checkpoint = Checkpoint("a.ckpt", None, {}, None, {}, state)
    with pytest.raises(UsageError, match="it was written by 2 ranks, but 1 run now"):
        merge_resumed(Config(), checkpoint, 1)


def test_run_distribute_without_a_launcher_is_one_sentence(images, tmp_path):
    done = run_alone(tmp_path, images, run_distribute=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --run_distribute needs the ranks to be started together")
    assert done.stderr.count("\n") == 1


def test_sync_bn_where_it_cannot_be_is_one_sentence(images, tmp_path):
    done = run_alone(tmp_path, images, sync_bn=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --sync_bn needs Ascend devices, MindSpore cannot on CPU")
    assert done.stderr.count("\n") == 1
    with pytest.raises(UsageError, match="--sync_bn needs several ranks"):
        check_sync_bn(Device("Ascend", 0, 0, 1))
    check_sync_bn(Device("Ascend", 3, 3, 8))


def test_sync_bn_takes_mindspores_layer_over_all_ranks(monkeypatch):
    """As far as a machine without NPUs goes: what the layer is told, with rank 3 of 8 on Ascend pretended."""
    plain, network = (create_network("b0", num_classes=10, sync_norm=sync) for sync in (False, True))
    shapes = [{p.name: p.shape for p in each.get_parameters()} for each in (plain, network)]
    assert shapes[0] == shapes[1]
    kinds = [type(cell) for _, cell in network.cells_and_names()]
    assert kinds.count(nn.SyncBatchNorm) == 49
    assert nn.BatchNorm2d not in kinds

    monkeypatch.setattr(normalization, "get_rank", lambda: 3)
    monkeypatch.setattr(normalization, "get_group_size", lambda: 8)
    monkeypatch.setattr(normalization.context, "get_context", lambda name: "Ascend")
    layer = ConvNormActivation(4, 8, 1, settings=LayerSettings("same", 0.001, 0.99, sync_norm=True)).norm
    assert (layer.bn_train.group, layer.bn_train.device_num) == ("hccl_world_group", 8)
    assert layer.bn_train.epsilon == 0.001
    assert layer.bn_train.momentum == pytest.approx(0.01)


@pytest.mark.slow
def test_early_stopping_stops_all_ranks_after_the_same_epoch(images, tmp_path):
    """Nothing is learned at a rate of next to nothing, so that the second evaluation is not better."""
    still = {"lr_init": 0, "lr_max": 1e-30, "lr_end": 0, "norm_momentum": 0.9999}
    finish(start(tmp_path, images, eval_dataset_path=images / "val", early_stop=1, epoch_size=4, **still), tmp_path)
    for rank in range(2):
        assert "stopped early: no better top-1 in 1 evaluations" in log_of(tmp_path, rank)
        assert re.findall(r"^epoch (\d): epoch time", log_of(tmp_path, rank), re.M) == ["1", "2"]


@pytest.mark.slow
def test_ranks_that_do_not_find_the_same_images_do_not_start(images, tmp_path):
    """Two servers whose folders differ in one image; the addresses 127.0.0.1 and 127.0.0.2 stand for them."""
    shutil.copytree(images, tmp_path / "other")
    next((tmp_path / "other" / "train" / "0").iterdir()).rename(tmp_path / "other" / "train" / "0" / "renamed.jpg")
    started = start_servers(tmp_path, [images, tmp_path / "other"])
    for rank, process in enumerate(started):
        process.communicate(timeout=200)
        assert process.returncode == 1
        sentence = "error: the images to train on are not the same on all ranks"
        assert sentence in log_of(tmp_path, rank)


@pytest.mark.slow
def test_an_eight_rank_table_runs_eight_processes(images, tmp_path):
    finish(start(tmp_path, images, ranks=8, epoch_size=1, warmup_epochs=0), tmp_path)
    first = weights_of(tmp_path, 0)
    for rank in range(1, 8):
        other = weights_of(tmp_path, rank)
        assert all(np.array_equal(first[name], other[name]) for name in first if not is_statistic(name))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start_servers(folder, images, **flags):
    """Two launchers with one rank each, as on two machines; `images` are what each of them finds."""
    servers = [
        {"server_id": f"127.0.0.{number + 1}", "device": [{"device_id": "0", "rank_id": str(number)}]}
        for number in range(2)
    ]
    table = folder / "table.json"
    table.write_text(json.dumps({"version": "1.0", "server_list": servers}))
    port = free_port()
    return [
        start(
            folder, found, table=table, environment={"SERVER_ID": f"127.0.0.{number + 1}", "MASTER_PORT": port}, **flags
        )
        for number, found in enumerate(images)
    ]


@pytest.mark.slow
def test_two_servers_with_one_rank_each(images, tmp_path):
    for process in start_servers(tmp_path, [images, images]):
        finish(process, tmp_path)
    first, second = (weights_of(tmp_path, rank) for rank in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first if not is_statistic(name))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_run_on_the_other_server_too(images, tmp_path, rank):
    """Launchers know of their own ranks only; the failure reaches the other server through MindSpore's collectives."""
    started = start_servers(tmp_path, [images, images], epoch_size=10000)
    wait_for(lambda: list((tmp_path / "checkpoint" / "model_0").glob("Eff*.ckpt")), 240)
    os.kill(processes_of(started[rank], f"rank {rank}")[f"rank {rank}"], signal.SIGKILL)
    for process in started:
        _, err = process.communicate(timeout=150)
        assert process.returncode == 1
        assert "the other ranks of this server were stopped\n" in err


@pytest.mark.slow
def test_msrun_starts_the_same_training(undisturbed, images, tmp_path):
    command = [Path(sys.executable).parent / "msrun", "--worker_num=2", "--local_worker_num=2"]
    command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}", "--log_dir=logs", "--join=True"]
    flags = as_flags(dataset_path=images / "train", run_distribute=True, device_target="CPU", **FLAGS)
    # msrun takes the Python of the activated environment.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [*command, RANKS / "train.py", *flags], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    name = "checkpoint/model_0/Efficientnet_b0-rank0-2_4.ckpt"
    found = read_entries(str(tmp_path / name))
    assert all(np.array_equal(found[name], value) for name, value in weights_of(undisturbed, 0).items())
