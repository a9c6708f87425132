"""Training by several ranks, as real processes on the CPU, started by scripts/run_distribute_train.sh."""

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

from src.checkpoint import read_checkpoint
from src.rank_table import write_rank_table

ROOT = Path(__file__).parent.parent
RANKS = ROOT / "tests" / "ranks"
LAUNCH = """
import sys
from src import launch
from src.cli import run_cli
sys.exit(run_cli(lambda argv: launch.main(argv, {!r})))
"""
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


def start(folder, images, ranks=2, program="train.py", table=None, **flags):
    """Start ranks of one of tests/ranks' programs in `folder`; returns the launcher's process."""
    if table is None:
        table = folder / "table.json"
        write_rank_table(str(table), "127.0.0.1", list(range(ranks)), {})
    arguments = [table, images / "train", *as_flags(**{**FLAGS, **flags})]
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH.format(str(RANKS / program)), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "CPU", "WAIT": "1"},
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
    assert len(trained) == 213
    assert all(np.array_equal(first[name], second[name]) for name in trained)
    assert not np.array_equal(first["stem.norm.moving_mean"], second["stem.norm.moving_mean"])


def test_rank_0_alone_writes_checkpoints_and_reports_the_global_batch(undisturbed):
    assert os.listdir(undisturbed / "checkpoint") == ["model_0"]
    assert read_checkpoint(str(undisturbed / "checkpoint" / "model_0" / "Efficientnet_b0-rank0-2_4.ckpt"))
    log = (undisturbed / "train_parallel0" / "log.txt").read_text()
    assert "CPU, rank 0 of 2" in log
    assert "2 epochs of 4 steps, global batch 8, peak learning rate 0.003" in log


def test_evaluation_over_all_ranks_counts_every_image_once(undisturbed):
    """13 images, an odd number over two ranks: the share of hits is a multiple of a 13th, and both ranks know it."""
    found = []
    for rank in range(2):
        log = (undisturbed / f"train_parallel{rank}" / "log.txt").read_text()
        found.append(re.findall(r"epoch \d: evaluation: loss: [\d.]+, top-1: ([\d.]+), top-5: ([\d.]+)", log))
    assert len(found[0]) == 2
    for top_1, top_5 in found[0]:
        assert min(abs(float(top_1) - hits / 13) for hits in range(14)) < 1e-4
        assert top_5 == "1.0000"
    assert found[1] in ([], found[0])


def test_two_ranks_of_8_give_the_gradients_of_one_process_of_16(images, tmp_path):
    """Batch norm in evaluation mode; the largest difference is relative to each gradient's largest entry."""
    finish(start(tmp_path, images, program="gradients.py"), tmp_path)
    subprocess.run([sys.executable, RANKS / "gradients.py"], cwd=tmp_path, check=True, capture_output=True)
    files = [tmp_path / "gradients.npz", *(tmp_path / f"train_parallel{rank}" / "gradients.npz" for rank in range(2))]
    alone, first, second = (np.load(file) for file in files)
    assert len(alone.files) == 213
    for name in alone.files:
        largest = np.abs(alone[name]).max()
        assert largest > 1e-6, name
        assert np.abs(first[name] - alone[name]).max() / largest < 1e-4, name
        assert np.array_equal(first[name], second[name]), name


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_killed_rank_brings_training_down_and_resume_ends_with_the_same_weights(undisturbed, images, tmp_path):
    process = start(tmp_path, images)
    ranks = {}
    for line in process.stdout:
        name, _, number = line.strip().rpartition(": process ")
        ranks[name] = int(number) if name else 0
        if name == "rank 1":
            break
    checkpoints = tmp_path / "checkpoint" / "model_0"
    wait_for(lambda: process.poll() is not None or list(checkpoints.glob("*-1_2.ckpt")))
    began = time.monotonic()
    os.kill(ranks["rank 1"], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert f"error: rank 1, process {ranks['rank 1']}, was killed by SIGKILL; the other ranks were stopped" in err
    assert not any(Path(f"/proc/{number}").exists() for number in ranks.values() if number)

    assert not list(checkpoints.glob("*-2_4.ckpt"))
    finish(start(tmp_path, images, resume="auto"), tmp_path)
    assert "resumed: " in (tmp_path / "train_parallel1" / "log.txt").read_text()
    for rank in range(2):
        expected, found = weights_of(undisturbed, rank), weights_of(tmp_path, rank)
        assert all(np.array_equal(found[name], expected[name]) for name in expected if not is_statistic(name))


def test_resume_with_another_number_of_ranks_is_refused(undisturbed, images, tmp_path):
    shutil.copytree(undisturbed / "checkpoint", tmp_path / "checkpoint")
    command = [sys.executable, ROOT / "train.py", "--dataset_path", images / "train", "--resume", "auto"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "it was written by 2 ranks, but 1 run now" in done.stderr


def test_run_distribute_without_a_launcher_is_one_sentence(images, tmp_path):
    command = [sys.executable, ROOT / "train.py", "--dataset_path", images / "train", "--run_distribute", "True"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --run_distribute needs the ranks to be started together")


def test_sync_bn_on_the_cpu_is_one_sentence(images, tmp_path):
    process = start(tmp_path, images, sync_bn=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "    error: --sync_bn needs " in err


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


@pytest.mark.slow
def test_two_servers_with_one_rank_each(images, tmp_path, monkeypatch):
    """Two launchers, as on two machines: the addresses 127.0.0.1 and 127.0.0.2 stand for them."""
    servers = [
        {"server_id": f"127.0.0.{number + 1}", "device": [{"device_id": "0", "rank_id": str(number)}]}
        for number in range(2)
    ]
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"version": "1.0", "server_list": servers}))
    monkeypatch.setenv("MASTER_PORT", free_port())
    started = []
    for server in servers:
        monkeypatch.setenv("SERVER_ID", server["server_id"])
        started.append(start(tmp_path, images, table=table))
    for process in started:
        finish(process, tmp_path)
    first, second = (weights_of(tmp_path, rank) for rank in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first if not is_statistic(name))


@pytest.mark.slow
def test_msrun_starts_the_same_training(undisturbed, images, tmp_path):
    command = [Path(sys.executable).parent / "msrun", "--worker_num=2", "--local_worker_num=2"]
    command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}", "--log_dir=logs", "--join=True"]
    flags = as_flags(dataset_path=images / "train", run_distribute=True, device_target="CPU", **FLAGS)
    done = subprocess.run([*command, ROOT / "train.py", *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    name = "checkpoint/model_0/Efficientnet_b0-rank0-2_4.ckpt"
    expected, found = (read_checkpoint(str(folder / name)).weights for folder in (undisturbed, tmp_path))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
