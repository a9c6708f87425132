"""train.py as a process: what it prints and leaves behind, how it fails; and what it does with its flags."""

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import train
from src.common.cli import RunError, run_cli
from src.common.files import locked
from src.config import Config
from src.data.batches import Loading, Sharding
from src.data.image_folder import read_image_folder
from src.data.listing import ImageFolder
from src.data.training_batches import Steps, training_order
from src.dataset import create_training_stream
from src.images.bad_images import BadImages
from src.images.preprocess import Preprocess
from src.models.effnet import create_network
from src.runtime.device import Device
from src.training import report, setup
from src.training.schedule import Progress, Sink, choose_sink, create_learning_rates, create_schedule
from src.training.step import network_weights
from src.weights.checkpoint import read_checkpoint, read_entries, write_checkpoint
from src.weights.model_info import ModelInfo
from tests.mistakes.test_report import data_of
from tests.support.small_disk import can_mount, run_on_small_disk
from tests.support.training_runs import (
    EPOCHS,
    FLAGS,
    ROOT,
    STEPS,
    checkpoint_path,
    copy_images,
    run,
    saved,
    state_of,
    train_command,
)

NUMBER = r"\d+\.\d{3}"


class TestTheLog:
    def test_says_at_the_start_what_is_going_to_happen(self, training_run, few_images):
        lines = training_run[1].splitlines()
        assert re.match(r"device: CPU\b.*, amp level O0, data sink off", lines[0])
        assert re.match(
            r"network: EfficientNet-B0, 0\.20 M trainable parameters, 0\.001 G multiply-adds for an image of 32 pixels",
            lines[1],
        )
        assert lines[2].startswith(f"data: 18 images in 2 classes in {few_images}/train")
        assert lines[3] == "schedule: 3 epochs of 4 steps, global batch 8, peak learning rate 0.003"

    def test_then_how_long_the_first_step_took_and_how_long_the_run_will(self, training_run):
        lines = training_run[1].splitlines()
        assert re.fullmatch(r"first step: \d+\.\d s, compilation included", lines[4])
        pattern = r"^estimate: an epoch takes about \d+:\d\d, the run about \d+:\d\d, evaluations apart$"
        assert len(re.findall(pattern, training_run[1], re.MULTILINE)) == 1

    def test_has_the_model_cards_line_for_each_epoch(self, training_run):
        pattern = rf"^epoch (\d): epoch time: ({NUMBER}), per step time: ({NUMBER}), avg loss: ({NUMBER})$"
        found = re.findall(pattern, training_run[1], re.MULTILINE)
        assert [int(epoch) for epoch, *_ in found] == [1, 2, 3]
        for _, seconds, each, _ in found:
            assert abs(float(seconds) / STEPS - float(each)) < 0.001

    def test_has_plain_lines_of_steps_where_there_is_no_terminal(self, training_run):
        pattern = r"^epoch (\d): step (\d)/4, loss: [\d.]+, lr: [\d.e-]+, [\d.]+ images/s, time left: \d+:\d\d$"
        found = re.findall(pattern, training_run[1], re.MULTILINE)
        assert found == [(str(epoch), str(step)) for epoch in (1, 2, 3) for step in (1, 2, 3)]
        assert "\r" not in training_run[1]

    def test_the_average_is_that_of_the_epochs_losses(self, training_run):
        """The last step of an epoch has no line of its own; it follows from the average."""
        losses = re.findall(r"^epoch 1: step \d/4, loss: ([\d.]+)", training_run[1], re.MULTILINE)
        average = float(re.search(r"^epoch 1: epoch time.*avg loss: ([\d.]+)", training_run[1], re.MULTILINE)[1])
        last = 4 * average - sum(map(float, losses))
        assert len(losses) == 3 and 0 < last < 50

    def test_has_the_evaluation_of_the_weights_and_of_their_average(self, training_run):
        pattern = r"^epoch (\d): evaluation( of the averaged weights)?: loss: [\d.]+, top-1: ([\d.]+)$"
        found = re.findall(pattern, training_run[1], re.MULTILINE)
        assert [(epoch, bool(averaged)) for epoch, averaged, _ in found] == [
            (epoch, averaged) for epoch in "123" for averaged in (False, True)
        ]
        for *_, top_1 in found:
            assert min(abs(float(top_1) - hits / 14) for hits in range(15)) < 1e-4

    def test_says_at_the_end_what_came_of_it(self, training_run):
        *_, best, last, report, total = training_run[1].splitlines()
        pattern = r"best: top-1 [\d.]+ after epoch \d \((raw|ema) weights\), in \./checkpoint/model_0/best\.ckpt"
        assert re.fullmatch(pattern, best)
        assert last == "last checkpoint: ./checkpoint/model_0/Efficientnet_b0-rank0-3_4.ckpt"
        assert report.startswith("report: ./checkpoint/model_0/report.html; expected calibration error ")
        assert re.fullmatch(r"total time: \d+:\d\d", total)


class TestWhatARunLeaves:
    def test_checkpoints_under_the_model_cards_names(self, training_run):
        assert saved(training_run[0]) == [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4)]
        assert not [name for name in os.listdir(training_run[0] / "checkpoint" / "model_0") if name.startswith(".")]

    def test_the_resolved_parameters(self, training_run, few_images):
        values = json.loads((training_run[0] / "checkpoint" / "model_0" / "config.json").read_text())
        expected = {
            "class_num": 2,
            "dropout_rate": 0.2,
            "amp_level": "O0",
            "accumulate_steps": 2,
            "lr_max": 0.003,
            "opt": "rmsprop",
            "dataset_path": str(few_images / "train"),
            "device_target": "CPU",
            "num_workers": Loading().choose_threads(1),
        }
        assert {name: values[name] for name in expected} == expected
        assert values.keys() == Config().as_dict().keys()

    def test_metrics_with_a_row_for_each_epoch(self, training_run):
        with open(training_run[0] / "checkpoint" / "model_0" / "metrics.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8"), ("3", "12")]
        lines = re.findall(r"avg loss: ([\d.]+)", training_run[1])
        assert [f"{float(row['loss']):.3f}" for row in rows] == lines
        # Two updates in the first epoch's warm-up from 0.0001 to 0.003, then four down to 0.00001.
        rates = [0.00155, 0.003 + (0.00001 - 0.003) * 1 / 4, 0.003 + (0.00001 - 0.003) * 3 / 4]
        assert np.allclose([float(row["learning_rate"]) for row in rows], rates, rtol=1e-5)
        assert all(float(row["images_per_second"]) > 0 and row["ema_top_1"] for row in rows)

    def test_a_picture_of_the_curves(self, training_run):
        with Image.open(training_run[0] / "checkpoint" / "model_0" / "curves.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 200
            assert len(set(picture.convert("L").getdata())) > 50

    def test_the_best_checkpoint_is_that_of_the_best_epoch(self, training_run):
        folder, out = training_run
        epoch = re.search(r"^best: top-1 [\d.]+ after epoch (\d)", out, re.MULTILINE)[1]
        best = folder / "checkpoint" / "model_0" / "best.ckpt"
        assert best.read_bytes() == checkpoint_path(folder, int(epoch), STEPS).read_bytes()

    def test_a_report_on_the_best_weights(self, training_run, few_images):
        folder, out = training_run
        top_1, epoch, kind = re.search(r"^best: top-1 ([\d.]+) after epoch (\d) \((\w+) weights", out, re.M).groups()
        page = data_of(folder / "checkpoint" / "model_0" / "report.html")
        kind = {"raw": "raw", "ema": "averaged"}[kind]
        assert page["description"] == f"EfficientNet-B0, {kind} weights after epoch {epoch}, the best"
        assert page["model"] == "./checkpoint/model_0/best.ckpt" and page["folder"] == str(few_images / "val")
        assert f"{page['scores']['top1'][0]:.4f}" == top_1 and len(page["thumbnails"]) == 14

    def test_the_checkpoint_knows_itself_and_the_run(self, training_run):
        arrays, info, state = state_of(checkpoint_path(training_run[0], EPOCHS, STEPS))
        assert (info["variant"], info["num_classes"], info["class_names"]) == ("b0", 2, ["0", "1"])
        assert info["preprocess"]["image_size"] == 32
        assert state["progress"]["step"] == EPOCHS * STEPS
        assert state["rank_size"] == 1
        assert arrays["global_step"].item() == arrays["ema_updates"].item() == EPOCHS * STEPS // 2
        assert arrays["random_step"].item() == EPOCHS * STEPS
        assert arrays["loss_sum"].item() == 0
        for prefix in ("ema.", "mean_square.", "moment.", "gradient_sum."):
            assert arrays[prefix + "stem.conv.weight"].shape == arrays["stem.conv.weight"].shape
        assert np.abs(arrays["moment.stem.conv.weight"]).max() > 0
        assert not np.array_equal(arrays["ema.stem.conv.weight"], arrays["stem.conv.weight"])


def test_the_model_cards_command_in_a_real_shell(few_images, tmp_path):
    """The real B0, by scripts/run_standalone_train.sh, which waits and leaves log.txt."""
    command = ["sh", str(ROOT / "scripts" / "run_standalone_train.sh"), "0", str(few_images / "train")]
    flags = {"image_size": 32, "batch_size": 8, "epoch_size": 2, "warmup_epochs": 1, "keep_checkpoint_max": 1}
    flags.update(lr_max=2048 * 0.001 / 8, scale_lr=True)
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {**os.environ, "WAIT": "1", "PYTHON": sys.executable}
    done = subprocess.run(command + given, cwd=tmp_path, env=environment, capture_output=True, text=True)
    log = (tmp_path / "log.txt").read_text()
    assert done.returncode == 0, done.stderr + log
    assert "network: EfficientNet-B0, 4.01 M trainable parameters" in log
    assert "schedule: 2 epochs of 2 steps, global batch 8, peak learning rate 0.001" in log
    assert len(re.findall(rf"^epoch \d: epoch time: {NUMBER}, per step time: {NUMBER}, avg loss: ", log, re.M)) == 2
    assert saved(tmp_path) == [(2, 2)]
    checkpoint = read_checkpoint(str(checkpoint_path(tmp_path, 2, 2)))
    assert checkpoint.ema is None
    assert sum(value.size for name, value in checkpoint.weights.items() if "moving_" not in name) == 4010110


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(few_images, tmp_path):
    flags = {"accumulate_steps": None, "keep_checkpoint_max": 1}
    code, out, err = run(tmp_path, few_images / "train", environment={"NAN_AT": "3"}, **flags)
    assert code == 1
    sentence = re.fullmatch(
        r"error: the loss became nan at step 3 of epoch 1 with learning rate 0\.00155; try a smaller --lr_max, more "
        r"--warmup_epochs or --clip_norm 5 \(the last good checkpoint is (\S+)\)\n",
        err,
    )
    assert sentence, err
    assert saved(tmp_path) == [(1, 2)]
    entries = read_entries(str(tmp_path / sentence[1]))
    assert all(np.isfinite(value).all() for value in entries.values() if not isinstance(value, str))


@pytest.mark.skipif(not can_mount(), reason="a small file system needs user namespaces")
def test_a_full_disk_ends_the_run_with_a_sentence_and_earlier_checkpoints_intact(few_images, tmp_path):
    """A real file system of 10 MB: two checkpoints of 4 MB fit, the third does not."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    command = train_command(few_images / "train", save_checkpoint_path=tmp_path / "disk")
    done = run_on_small_disk(command, tmp_path / "disk", "10m", tmp_path / "kept")
    assert done.returncode == 1
    path = f"{tmp_path}/disk/model_0/Efficientnet_b0-rank0-1_3.ckpt"
    assert done.stderr == f"error: {path}: there is no space left on the device\n"
    kept = sorted(os.listdir(tmp_path / "kept" / "model_0"))
    assert [name for name in kept if "ckpt" in name] == [f"Efficientnet_b0-rank0-1_{step}.ckpt" for step in (1, 2)]
    assert not [name for name in kept if name.startswith(".")]
    for step in (1, 2):
        assert read_entries(str(tmp_path / "kept" / "model_0" / f"Efficientnet_b0-rank0-1_{step}.ckpt"))


def test_fine_tuning_another_number_of_classes_with_the_first_stages_held(training_run, digits, tmp_path):
    """Weights, padding, epsilon and preprocessing come from the checkpoint; the dense layer begins anew."""
    images = copy_images(digits, tmp_path / "images", "345", 6, 1)
    source = checkpoint_path(training_run[0], EPOCHS, STEPS)
    code, out, err = run(
        tmp_path,
        images / "train",
        pretrained=source,
        freeze=3,
        image_size=None,
        lr_max=None,
        epoch_size=1,
        save_checkpoint_steps=None,
        accumulate_steps=None,
        use_ema=None,
    )
    assert (code, err) == (0, "")
    assert f"pretrained: {source}, averaged weights of 2 classes" in out
    assert "an image of 32 pixels" in out
    assert json.loads((tmp_path / "checkpoint" / "model_0" / "config.json").read_text())["lr_max"] == 0.02
    before, _, _ = state_of(source)
    after, info, _ = state_of(checkpoint_path(tmp_path, 1, STEPS))
    assert info["num_classes"] == 3
    assert after["classifier.weight"].shape == (3, 320)
    # Of 10 blocks, the stem, stage 1 (block 0) and stage 2 (block 1) are held, batch-norm statistics included.
    held = ("stem.", "blocks.0.", "blocks.1.")
    for name in (name for name in after if name.startswith(("stem.", "blocks.", "head."))):
        same = np.array_equal(after[name], before["ema." + name])
        assert same == name.startswith(held), name
    assert not [name for name in after if name.startswith(("moment.stem", "mean_square.blocks.1."))]
    assert "moment.blocks.2.expand.conv.weight" in after


# What follows starts no training: it ends before, or looks at what a run is made of.


def call(capsys, *arguments, **flags):
    """train.py in this process; returns (exit code, standard output, standard error)."""
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    code = run_cli(train.main, [*map(str, arguments), *given])
    out, err = capsys.readouterr()
    return code, out, err


def write_weights(path, state=None, **settings):
    """A checkpoint of random weights."""
    info = ModelInfo(**settings)
    network = create_network(info.variant, num_classes=info.num_classes)
    write_checkpoint(str(path), network_weights(network), info, state=state)
    return path


@pytest.fixture(scope="module")
def run_of_two_ranks(training_run, tmp_path_factory):
    """A checkpoint that says that two ranks wrote it; class count and names are those of `few_images`."""
    path = tmp_path_factory.mktemp("ranks") / "Efficientnet_b0-rank0-1_1.ckpt"
    progress = {"steps_per_epoch": 4, "epochs": 3, "images": 18, "step": 1}
    state = {"config": {**Config().as_dict(), "class_num": 2}, "progress": progress, "rank_size": 2}
    return write_weights(path, state, num_classes=2, class_names=("0", "1"), preprocess=Preprocess(image_size=64))


@pytest.fixture(scope="module")
def run_of_one_rank(run_of_two_ranks, tmp_path_factory):
    path = tmp_path_factory.mktemp("rank") / "Efficientnet_b0-rank0-1_1.ckpt"
    entries = read_checkpoint(str(run_of_two_ranks))
    write_checkpoint(str(path), entries.weights, entries.info, state={**entries.state, "rank_size": 1})
    return path


class TestBadInput:
    """One sentence, the exit code, and nothing written."""

    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path, monkeypatch):
        empty = tmp_path / "here"
        empty.mkdir()
        monkeypatch.chdir(empty)
        yield
        assert os.listdir(empty) == []

    def refuse(self, capsys, expected_code, sentence, *arguments, **flags):
        code, out, err = call(capsys, *arguments, **flags)
        assert code == expected_code
        assert re.fullmatch(f"error: {sentence}\n", err), err

    def test_no_images(self, capsys, tmp_path):
        self.refuse(capsys, 2, "--dataset_path is needed: .*")
        self.refuse(capsys, 1, ".*missing.*", dataset_path=tmp_path / "missing")
        (tmp_path / "empty").mkdir()
        self.refuse(capsys, 1, ".*empty.*", dataset_path=tmp_path / "empty")

    def test_another_class_count_than_the_folder(self, capsys, few_images):
        sentence = "--class_num is 10, but .*train has 2 class folders"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", class_num=10)

    def test_more_images_in_a_batch_than_there_are(self, capsys, few_images):
        sentence = "a global batch of 32 images is more than the 18 in .*; a smaller --batch_size makes a step"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", batch_size=16, accumulate_steps=2)

    def test_a_held_out_set_of_other_classes(self, capsys, few_images, digits):
        sentence = ".*val has other class folders than .*train"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", eval_dataset_path=digits / "val")

    @pytest.mark.parametrize("name", ["early_stop", "eval_interval"])
    def test_a_best_score_without_an_evaluation_set(self, capsys, few_images, name):
        sentence = f"--{name} needs --eval_dataset_path or --val_share: .*"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", **{name: 2})

    def test_contradictory_recipe_and_flags(self, capsys, few_images):
        sentence = "--auto_augment none contradicts --recipe timm_ra, which sets it to randaugment; .*"
        flags = {"recipe": "timm_ra", "auto_augment": "none"}
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", **flags)
        sentence = "--warmup_epochs 3 is more than --epoch_size 2"
        flags = {"recipe": "timm_ra", "epoch_size": 2, "warmup_epochs": 3}
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", **flags)

    def test_contradictory_beginnings(self, capsys, few_images):
        self.refuse(capsys, 2, "--freeze needs --pretrained: .*", dataset_path=few_images / "train", freeze=1)
        flags = {"resume": "a.ckpt", "pretrained": "b.ckpt"}
        self.refuse(capsys, 2, "--resume and --pretrained contradict .*", dataset_path=few_images / "train", **flags)

    def test_checkpoints_that_are_none(self, capsys, few_images, tmp_path):
        broken = tmp_path / "broken.ckpt"
        broken.write_bytes(b"no checkpoint")
        for flag in ("resume", "pretrained"):
            for path, what in ((tmp_path / "missing.ckpt", "there is no such checkpoint"), (broken, ".*")):
                self.refuse(capsys, 1, f"{path}: {what}", dataset_path=few_images / "train", **{flag: path})

    def test_weights_of_another_variant(self, capsys, few_images, tmp_path):
        path = write_weights(tmp_path / "b1.ckpt", variant="b1", num_classes=2)
        sentence = f"--variant is b0, but {path} was trained with b1"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", pretrained=path, variant="b0")
        sentence = f"--resume {path}: it holds weights but no training state; --pretrained starts from it"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", resume=path)

    def test_a_run_of_another_variant_class_count_world_size_or_rate(self, capsys, few_images, digits, run_of_one_rank):
        same = {"dataset_path": few_images / "train", "resume": run_of_one_rank}
        for name, value, before in (("variant", "b3", "b0"), ("lr_max", 0.1, 0.2), ("class_num", 3, 2)):
            sentence = f"--{name} {value} contradicts the resumed run, which has {name} {before}"
            self.refuse(capsys, 2, sentence, **same, **{name: value})
        sentence = "the run has 2 classes, but .*train has 10 class folders"
        self.refuse(capsys, 2, sentence, **{**same, "dataset_path": digits / "train"})

    def test_a_run_of_another_number_of_ranks(self, capsys, few_images, run_of_two_ranks):
        sentence = ".*: it was written by 2 ranks, but 1 run now"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", resume=run_of_two_ranks)

    def test_a_run_on_classes_of_other_names(self, capsys, digits, tmp_path, run_of_one_rank):
        images = copy_images(digits, tmp_path / "images", "78", 9, 1)
        sentence = "--resume: the checkpoint was trained on classes of other names than those in --dataset_path"
        self.refuse(capsys, 2, sentence, dataset_path=images / "train", resume=run_of_one_rank)

    def test_wrong_devices(self, capsys, few_images):
        sentence = "--device_target is Ascend, but this MindSpore finds no Ascend device; .*"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", device_target="Ascend")
        sentence = "argument --device_target: expected one of Ascend, GPU, CPU, not 'TPU' .*"
        self.refuse(capsys, 2, sentence, dataset_path=few_images / "train", device_target="TPU")


class Stop(Exception):
    """Ends train.py where training would begin."""


@pytest.fixture
def begun(monkeypatch):
    """Let train.py do all but the steps; returns a function of flags to what `run_steps` would have had."""

    def begin(dataset_path, **flags):
        got = {}

        def run_steps(run, loop):
            got.update(config=run.config, step_cell=loop.step_cell, progress=loop.progress, loop=loop)
            raise Stop

        monkeypatch.setattr(train, "run_steps", run_steps)
        given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        with pytest.raises(Stop):
            train.main(["--dataset_path", str(dataset_path), *given])
        return got

    return begin


SMALL = {"image_size": 32, "batch_size": 4, "tensorboard": False}


class TestTheRunsFolder:
    def test_an_earlier_runs_checkpoints_are_set_aside_not_overwritten(self, begun, few_images, tmp_path, capsys):
        path = tmp_path / "out" / "model_0" / "Efficientnet_b0-rank0-9_9.ckpt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"precious")
        begun(few_images / "train", save_checkpoint_path=tmp_path / "out", **SMALL)
        assert (tmp_path / "out" / "model_0.before-1" / path.name).read_bytes() == b"precious"
        assert os.listdir(tmp_path / "out" / "model_0") == ["config.json"]
        assert f"an earlier run were moved to {tmp_path}/out/model_0.before-1" in capsys.readouterr().out

    def test_one_process_at_a_time(self, begun, few_images, tmp_path, capsys):
        flags = {**SMALL, "save_checkpoint_path": tmp_path / "out"}
        (tmp_path / "out").mkdir()
        with locked(str(tmp_path / "out")):
            code, _, err = call(capsys, dataset_path=few_images / "train", **flags)
        assert code == 2
        assert err.startswith(f"error: another training writes to {tmp_path}/out; ")
        begun(few_images / "train", **flags)

    def test_what_a_killed_process_was_writing_is_removed(self, begun, few_images, tmp_path):
        folder = tmp_path / "out" / "model_0"
        folder.mkdir(parents=True)
        for name in (".abc.tmp-metrics.csv", ".abc.tmp-Efficientnet_b0-rank0-1_1.tmp", "notes.tmp-1"):
            (folder / name).write_bytes(b"half")
        begun(few_images / "train", save_checkpoint_path=tmp_path / "out", **SMALL)
        assert sorted(os.listdir(folder)) == ["config.json", "notes.tmp-1"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written(self, few_images, tmp_path, capsys):
        (tmp_path / "out").mkdir(mode=0o500)
        folder = tmp_path / "out" / "a"
        code, _, err = call(capsys, dataset_path=few_images / "train", save_checkpoint_path=folder, **SMALL)
        assert (code, "permission was denied" in err) == (1, True)

    def test_a_file_in_the_folders_place(self, few_images, tmp_path, capsys):
        (tmp_path / "out").write_bytes(b"")
        code, _, err = call(capsys, dataset_path=few_images / "train", save_checkpoint_path=tmp_path / "out", **SMALL)
        assert code == 1
        out = tmp_path / "out"
        assert err == f"error: --save_checkpoint_path {out}: {out} is a file, and a folder is needed there\n"


def test_a_complete_run_says_so_and_changes_nothing(training_run, few_images):
    folder = training_run[0] / "checkpoint" / "model_0"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    command = train_command(few_images / "train", resume="auto")
    done = subprocess.run(command, cwd=training_run[0], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *_, complete, best = done.stdout.splitlines()
    assert complete == "the run is complete: 3 epochs in ./checkpoint/model_0/Efficientnet_b0-rank0-3_4.ckpt"
    assert best in training_run[1]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


class TestTheSmallFolder:
    """Where the published settings, left as they are, meet few images, the other recipe is named."""

    NOTE = "note: these are the settings published for the 1.28 million images of ImageNet, and here are 18: --recipe "

    def told(self, begun, few_images, tmp_path, capsys, **flags):
        flags = {"save_checkpoint_path": tmp_path / "out", "norm_momentum": 0.9, **SMALL, **flags}
        begun(few_images / "train", **flags)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]

    def test_is_told_of_the_other_recipe(self, begun, few_images, tmp_path, capsys):
        (note,) = self.told(begun, few_images, tmp_path, capsys)
        assert note.startswith(self.NOTE + "finetune ")

    @pytest.mark.parametrize("flags", [{"epoch_size": 30}, {"lr_max": 0.01}, {"recipe": "timm_ra"}])
    def test_is_not_told_where_the_settings_were_chosen(self, begun, few_images, tmp_path, capsys, flags):
        assert self.told(begun, few_images, tmp_path, capsys, **flags) == []

    def test_is_not_told_where_trained_weights_are_taken(self, begun, few_images, tmp_path, capsys, run_of_one_rank):
        flags = {"pretrained": run_of_one_rank, "image_size": 64}
        assert self.told(begun, few_images, tmp_path, capsys, **flags) == []

    def test_nor_where_there_are_enough_images(self, monkeypatch, begun, few_images, tmp_path, capsys):
        monkeypatch.setattr(report, "SMALL_FOLDER", 18)
        assert self.told(begun, few_images, tmp_path, capsys) == []


class TestFlags:
    def test_class_count_image_size_and_dropout_follow_folder_and_variant(self, begun, few_images, tmp_path):
        flags = {"save_checkpoint_path": tmp_path / "out", "batch_size": 4, "variant": "b3", "tensorboard": False}
        config = begun(few_images / "train", **flags)["config"]
        assert (config.class_num, config.image_size, config.dropout_rate) == (2, 300, 0.3)

    def test_accumulation_rounds_the_epoch_to_whole_updates(self, begun, few_images, tmp_path):
        got = begun(few_images / "train", save_checkpoint_path=tmp_path / "out", **SMALL, accumulate_steps=3)
        assert got["progress"].steps_per_epoch == 3
        assert len(got["loop"].monitor.learning_rates) == 350

    @pytest.mark.parametrize(
        ("batch_size", "accumulate", "ranks", "peak"), [(256, 1, 8, 0.2), (256, 2, 8, 0.4), (64, 1, 1, 0.2 / 32)]
    )
    def test_scale_lr_scales_all_rates_to_the_global_batch(self, batch_size, accumulate, ranks, peak):
        config = Config(batch_size=batch_size, accumulate_steps=accumulate, scale_lr=True, epoch_size=4)
        images = ImageFolder("images", ["0"], [""] * (10 * batch_size * accumulate * ranks), np.zeros(0))
        rates = create_schedule(config, Device("CPU", 0, 0, ranks), images).learning_rates
        assert rates.shape == (40,)
        assert np.isclose(rates.max(), peak, rtol=1e-6)
        assert np.isclose(rates[0], 1e-4 * peak / 0.2, rtol=1e-6)

    def test_without_scale_lr_the_rates_are_as_given(self):
        rates = create_learning_rates(Config(epoch_size=4), 256, 10)
        assert np.isclose(rates.max(), 0.2, rtol=1e-6)

    def test_timm_ra_is_timms_recipe(self, begun, few_images, tmp_path):
        """efficientnet_b0 on 2 GPUs of 384 images at 0.048."""
        config = begun(few_images / "train", save_checkpoint_path=tmp_path / "out", recipe="timm_ra", **SMALL)["config"]
        rates = create_learning_rates(config, 2 * 384, 1668)
        # The rate falls after 2.4 epochs, before the three of the warm-up have passed.
        assert 0.0479 < rates.max() < 0.048
        assert len(rates) == 450 * 1668

    @pytest.mark.parametrize("level", [pytest.param("O1", marks=pytest.mark.slow), "O2", "O3"])
    def test_mixed_precision_keeps_names_types_and_what_is_held_fixed(self, level, few_images, tmp_path, monkeypatch):
        # MindSpore writes the rewritten network of O1 to the current folder.
        monkeypatch.chdir(tmp_path)
        network = create_network("b0", num_classes=2)
        names = {p.name: (p.shape, p.dtype) for p in network.get_parameters()}
        config = Config(class_num=2, amp_level=level, freeze=2, epoch_size=2)
        schedule = setup.Schedule(2, 2, 256, 256, np.ones(4, np.float32))
        run = setup.Run(config, Device("CPU"), None, None, "", None, None, ModelInfo(num_classes=2), schedule)
        step_cell = setup.create_train_step(run, network)
        assert {p.name: (p.shape, p.dtype) for p in network.get_parameters()} == names
        assert {name: value.shape for name, value in network_weights(step_cell.network).items()} == {
            name: value.shape for name, value in network_weights(network).items()
        }
        norms = {
            name: cell.training
            for name, cell in step_cell.network.cells_and_names()
            if type(cell).__name__.startswith("BatchNorm")
        }
        held = {name for name, training in norms.items() if not training}
        assert {name for name in norms if ".stem." in f".{name}" or ".blocks.0." in f".{name}"} == held
        assert len(norms) == 49


@pytest.mark.parametrize("ranks", [1, 3])
def test_repeated_sampling_is_timms(ranks, monkeypatch):
    """Of the same shuffle, which is drawn here by NumPy and there by PyTorch."""
    from benchmarks.peers import torch

    sampler = importlib.import_module("timm.data.distributed_sampler").RepeatAugSampler
    images, seed, epoch = 600, 5, 2
    shuffle = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(images))
    monkeypatch.setattr(torch, "randperm", lambda count, generator: shuffle[:count])
    for rank in range(ranks):
        peer = sampler(range(images), ranks, rank, num_repeats=3, selected_round=0)
        assert training_order(images, seed, epoch, ranks, rank, 3).tolist() == list(peer)
    assert np.array_equal(training_order(images, seed, epoch, 1, 0), shuffle.numpy())


@pytest.mark.parametrize(
    ("progress", "most", "save_steps", "size", "look"),
    [
        (Progress(625, 350, 1), 100, None, 25, 100),
        (Progress(625, 350, 1), 700, None, 625, 625),
        (Progress(100, 4, 1, step=50), 100, None, 50, 100),
        (Progress(100, 10, 1), 100, 20, 20, 100),
        (Progress(5003, 3, 1), 100, None, 1, 100),
        (Progress(7, 3, 1, step=2), 100, None, 1, 100),
    ],
)
def test_a_device_is_given_groups_of_steps_that_end_with_epochs_and_checkpoints(progress, most, save_steps, size, look):
    """A prime number of steps makes groups of one, but the host looks no more often for it."""
    assert choose_sink(progress, most, save_steps) == Sink(size, look)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O2", "O3"])
def test_a_run_in_mixed_precision_goes_through_and_keeps_its_weights_in_float32(level, few_images, tmp_path):
    flags = {"amp_level": level, "loss_scale": 64, "eval_dataset_path": few_images / "val", "accumulate_steps": None}
    code, out, err = run(tmp_path, few_images / "train", **flags)
    assert (code, err) == (0, "")
    assert f"amp level {level}" in out
    arrays, _, _ = state_of(checkpoint_path(tmp_path, EPOCHS, STEPS))
    assert {value.dtype for name, value in arrays.items() if name.endswith("weight")} == {np.dtype(np.float32)}


def test_too_many_bad_images_end_the_run_with_one_sentence(few_images, tmp_path):
    """The failure comes out of MindSpore's threads in the middle of a step."""
    shutil.copytree(few_images / "train", tmp_path / "images")
    for path in list((tmp_path / "images" / "0").iterdir())[:4]:
        path.write_bytes(b"no image")
    folder = read_image_folder(str(tmp_path / "images"))
    bad = BadImages(len(folder), 0.05)
    loading = Loading(Preprocess(image_size=32, resize=37), bad=bad)
    stream = create_training_stream(folder, Sharding(4), Steps(4, 1), loading)
    with pytest.raises(RunError, match="images cannot be used, more than the share of 0.05"), bad.as_sentence():
        for _ in stream.create_tuple_iterator(num_epochs=1):
            pass


def test_flags_of_the_tests_are_parameters():
    assert FLAGS.keys() <= Config().as_dict().keys()


class TestHoldingOut:
    def test_val_share_holds_out_the_same_images_again_after_a_stop_and_keeps_the_lists(self, few_images, tmp_path):
        """The lists are data sets of their own, as any program takes them."""
        flags = {"save_checkpoint_steps": None, "use_ema": None, "epoch_size": 1}
        code, out, err = run(tmp_path, few_images / "train", **flags, val_share=0.25)
        assert (code, err) == (0, ""), err
        folder = tmp_path / "checkpoint" / "model_0"
        train, val = (read_image_folder(str(folder / f"{part}.tsv")) for part in ("train", "val"))
        everything = read_image_folder(str(few_images / "train"))
        assert len(train) + len(val) == len(everything) and len(val) == 4
        assert not {os.path.realpath(train.full_path(i)) for i in range(len(train))} & {
            os.path.realpath(val.full_path(i)) for i in range(len(val))
        }
        assert f"held out: {len(val)} images to evaluate on, listed in ./checkpoint/model_0/val.tsv" in out
        code, again, err = run(tmp_path, few_images / "train", **{**flags, "epoch_size": 2}, resume="auto")
        assert (code, err) == (0, ""), err
        assert f"held out: {len(val)} images" in again

    def test_given_images_and_a_share_contradict_each_other(self, few_images, tmp_path):
        flags = {"eval_dataset_path": few_images / "val", "val_share": 0.2}
        code, out, err = run(tmp_path, few_images / "train", **flags)
        assert code == 2 and "--val_share 0.2 holds out images, but those to evaluate on are given" in err
