"""The scripts in places like those of a cluster: what they may not write to, odd paths, few rights, few resources."""

import json
import os
import stat
import sys

import pytest

from tests.support.small_disk import can_mount, run_with_read_only
from tests.support.training_runs import ROOT, checkpoint_path, copy_images, train_command

pytestmark = pytest.mark.skipif(not can_mount(), reason="this process may not mount")


@pytest.fixture(scope="module")
def place(digits, tmp_path_factory):
    """A folder whose name has spaces and other letters than ASCII's, with images in it."""
    folder = tmp_path_factory.mktemp("cluster") / "nach Größe 数据"
    copy_images(digits, folder / "Bilder é", "01", 9, 7)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    """What a training run there printed: C locale, tight umask, a repository and a /dev/shm that may only be read."""
    command = train_command("Bilder é/train", epoch_size=1, eval_dataset_path="Bilder é/val")
    before = os.umask(0o077)
    try:
        return run_there(place, command)
    finally:
        os.umask(before)


def run_there(place, command):
    """Run a command in the place; HOME does not exist and cannot be made."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "XDG_"))}
    environment |= {"LANG": "C", "LC_ALL": "C", "HOME": f"{ROOT}/nowhere", "TMPDIR": str(place)}
    return run_with_read_only(command, ROOT, "/dev/shm", cwd=place, env=environment)


def test_training_leaves_a_checkpoint_that_only_its_owner_reads(place, trained):
    assert trained.returncode == 0, trained.stderr
    mode = os.stat(checkpoint_path(place, 1, 4)).st_mode
    assert stat.S_IMODE(mode) & 0o077 == 0


def test_an_onnx_file_is_run_there(place):
    onnx = ROOT / "tests" / "data" / "previous_version" / "b0.onnx"
    command = [sys.executable, ROOT / "infer_onnx.py", "--onnx_path", onnx, "--dataset_path", "Bilder é/val", "--json"]
    done = run_there(place, command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 14
