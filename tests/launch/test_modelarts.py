"""Copying on ModelArts, with a double of its library `moxing` whose object store is a folder of this machine."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from src.common.cli import RunError, UsageError
from src.config import Config
from src.launch import modelarts
from src.launch.modelarts import copied_folders
from tests.support.launcher import wait_for

ROOT = Path(__file__).parent.parent.parent

DOUBLE = '''
import os
import shutil

calls = []


class file:
    """obs://NAME stands for the folder that OBS names in the environment."""

    @staticmethod
    def local(path):
        return path.replace("obs:/", os.environ["OBS"])

    @staticmethod
    def exists(path):
        return os.path.exists(file.local(path))

    @staticmethod
    def list_directory(path):
        return os.listdir(file.local(path))

    @staticmethod
    def copy_parallel(source, target):
        calls.append((source, target))
        if not file.exists(source):
            raise Exception(f"NoSuchKey {source}")
        if not file.list_directory(source):
            raise Exception("No files to copy")
        shutil.copytree(file.local(source), file.local(target), dirs_exist_ok=True)

    @staticmethod
    def copy(source, target):
        calls.append((source, target))
        if "unreachable" in target:
            raise Exception("timed out")
        os.makedirs(os.path.dirname(file.local(target)), exist_ok=True)
        shutil.copyfile(file.local(source), file.local(target))

    @staticmethod
    def remove(path, recursive=False):
        os.remove(file.local(path))
'''


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The object store, with images in bucket/images; the machine's fast disk is tmp_path/cache."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "moxing.py").write_text(DOUBLE)
    images = tmp_path / "store" / "bucket" / "images" / "train" / "cat"
    images.mkdir(parents=True)
    (images / "1.jpg").write_bytes(b"image")
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("OBS", str(tmp_path / "store"))
    monkeypatch.delenv("RANK_ID", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(modelarts, "FAST_DISK", str(tmp_path / "cache"))
    yield tmp_path / "store"
    sys.modules.pop("moxing", None)


def job(**flags):
    return Config(run_modelarts=True, data_url="obs://bucket/images", train_url="obs://bucket/out", **flags)


def test_images_come_in_and_checkpoints_go_out(store, tmp_path):
    with copied_folders(job(dataset_path="train", eval_dataset_path="val")) as config:
        assert re.fullmatch(f"{tmp_path}/cache/efficientnet_data_[0-9a-f]{{8}}/train", config.dataset_path)
        assert config.eval_dataset_path == config.dataset_path[: -len("train")] + "val"
        assert Path(config.dataset_path, "cat", "1.jpg").read_bytes() == b"image"
        os.makedirs(f"{config.save_checkpoint_path}/model_0")
        Path(config.save_checkpoint_path, "model_0", "a.ckpt").write_bytes(b"weights")
    assert (store / "bucket" / "out" / "model_0" / "a.ckpt").read_bytes() == b"weights"


def test_without_dataset_path_the_url_is_the_data_set(store, tmp_path):
    with copied_folders(job()) as config:
        assert os.listdir(config.dataset_path).count("train") == 1


def test_checkpoints_go_out_of_a_run_that_fails_too(store):
    with pytest.raises(RunError, match="the loss became nan"), copied_folders(job()) as config:
        os.makedirs(config.save_checkpoint_path)
        Path(config.save_checkpoint_path, "a.ckpt").write_bytes(b"weights")
        raise RunError("the loss became nan")
    assert (store / "bucket" / "out" / "a.ckpt").exists()


def save(config, name, content=b"weights"):
    """Write a file as a run would."""
    path = Path(config.save_checkpoint_path, "model_0", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_images_are_copied_once_for_all_ranks_and_only_rank_0_sends(store, monkeypatch):
    for rank in "0123":
        monkeypatch.setenv("RANK_ID", rank)
        with copied_folders(job()) as config:
            save(config, f"of rank {rank}")
    import moxing

    assert [source for source, _ in moxing.calls] == [
        "obs://bucket/images",
        f"{config.save_checkpoint_path}/model_0/of rank 0",
    ]


def test_another_data_set_does_not_mix_with_the_one_before(store):
    (store / "bucket" / "other" / "dog").mkdir(parents=True)
    (store / "bucket" / "other" / "dog" / "1.jpg").write_bytes(b"image")
    with copied_folders(job()):
        pass
    with copied_folders(job().replace(data_url="obs://bucket/other")) as config:
        assert [name for name in os.listdir(config.dataset_path) if not name.startswith(".")] == ["dog"]


def test_checkpoints_go_out_while_the_run_goes_on_and_removed_ones_go(store, monkeypatch):
    """So that a machine that is taken away loses minutes, and the store does not fill."""
    monkeypatch.setattr(modelarts, "SEND_INTERVAL", 0.05)
    out = store / "bucket" / "out" / "model_0"
    out.mkdir(parents=True)
    (out / "of another.ckpt").write_bytes(b"stays")
    with copied_folders(job()) as config:
        first = save(config, "first.ckpt")
        save(config, ".unfinished.tmp")
        wait_for(lambda: (out / "first.ckpt").exists())
        save(config, "second.ckpt")
        first.unlink()
        wait_for(lambda: (out / "second.ckpt").exists() and not (out / "first.ckpt").exists())
        save(config, "second.ckpt", b"changed")
    assert (out / "second.ckpt").read_bytes() == b"changed"
    assert sorted(os.listdir(out)) == ["of another.ckpt", "second.ckpt"]


def test_a_store_that_cannot_be_reached_is_named_and_tried_again(store, monkeypatch, capfd):
    monkeypatch.setattr(modelarts, "SEND_INTERVAL", 0.05)
    config = job().replace(train_url="obs://unreachable")
    with pytest.raises(RunError, match="copying .*/a.ckpt to obs://unreachable failed: timed out"):
        with copied_folders(config) as config:
            save(config, "a.ckpt")
            time.sleep(0.3)
    assert capfd.readouterr().err.count("failed: timed out; it is tried again later") > 1


def test_a_failed_last_copy_does_not_hide_why_the_run_failed(store, capfd):
    config = job().replace(train_url="obs://unreachable")
    with pytest.raises(RunError, match="the loss became nan"), copied_folders(config) as config:
        save(config, "a.ckpt")
        raise RunError("the loss became nan")
    assert re.fullmatch("warning: copying .*/a.ckpt to obs://unreachable failed: timed out\n", capfd.readouterr().err)


def test_the_scheduler_of_msrun_copies_nothing(monkeypatch):
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    config = job()
    with copied_folders(config) as same:
        assert same is config


def test_resume_auto_fetches_what_an_earlier_job_left(store):
    (store / "bucket" / "out" / "model_0").mkdir(parents=True)
    (store / "bucket" / "out" / "model_0" / "a.ckpt").write_bytes(b"weights")
    with copied_folders(job(resume="auto")) as config:
        assert Path(config.save_checkpoint_path, "model_0", "a.ckpt").read_bytes() == b"weights"
        Path(config.save_checkpoint_path, "model_0", "a.ckpt").unlink()
        save(config, "b.ckpt")
    assert os.listdir(store / "bucket" / "out" / "model_0") == ["b.ckpt"]
    import moxing

    assert len(moxing.calls) == 3


@pytest.mark.parametrize("exists", [False, True])
def test_resume_auto_begins_where_no_earlier_job_was(store, exists):
    """ModelArts makes the folder before the job starts; moxing refuses to copy an empty one."""
    if exists:
        (store / "bucket" / "out").mkdir()
    with copied_folders(job(resume="auto")) as config:
        assert not Path(config.save_checkpoint_path, "model_0").exists()


def test_a_copy_that_fails_is_one_sentence(store):
    config = Config(run_modelarts=True, data_url="obs://bucket/none", train_url="obs://bucket/out")
    with pytest.raises(RunError, match="copying obs://bucket/none to .* failed: NoSuchKey"), copied_folders(config):
        pass


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ({"run_modelarts": True, "data_url": "obs://a"}, "--run_modelarts needs --train_url too"),
        ({"run_modelarts": True, "train_url": "obs://a"}, "--run_modelarts needs --data_url too"),
        ({"data_url": "obs://a"}, "--data_url needs --run_modelarts True"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, sentence):
    with pytest.raises(UsageError, match=sentence), copied_folders(Config(**flags)):
        pass


def test_elsewhere_nothing_changes():
    config = Config(dataset_path="here")
    with copied_folders(config) as same:
        assert same is config


def test_train_py_without_moxing_says_so():
    command = [sys.executable, ROOT / "train.py", "--run_modelarts", "True", "--data_url", "obs://a"]
    done = subprocess.run([*command, "--train_url", "obs://b"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --run_modelarts needs the package moxing, which ModelArts' own images carry")


class TestWithoutAFastDisk:
    """Images and checkpoints go to this user's folder of temporary files."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(modelarts, "FAST_DISK", str(tmp_path / "no such disk"))
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path / f"efficientnet-mindspore-{os.getuid()}"

    def test_only_this_user_may_enter_it(self, folder):
        assert modelarts.local_folder("data", "obs://bucket/images").startswith(f"{folder}/efficientnet_data_")
        assert folder.stat().st_mode & 0o777 == 0o700

    def test_what_another_user_may_have_put_there_is_refused(self, folder, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
        with pytest.raises(RunError, match=f"{folder}: it is a link, or a folder that others may write to"):
            modelarts.local_folder("data", "obs://bucket/images")
        folder.unlink()
        folder.mkdir()
        folder.chmod(0o777)
        with pytest.raises(RunError, match="others may write to"):
            modelarts.local_folder("data", "obs://bucket/images")
