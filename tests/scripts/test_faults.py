"""Programs that are killed or run out of disk: a whole result, or none.

The moments and sizes are random; the tests print how many of each there were.
"""

import hashlib
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.small_disk import can_mount, run_on_small_disk
from tests.support.terminal import cpu_seconds
from tests.support.training_runs import copy_images, train_b0

ROOT = Path(__file__).parent.parent.parent
SECONDS = 600
SENTENCE = re.compile(r"^error: .+$", re.MULTILINE)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(digits, few_images, tmp_path_factory):
    """A folder with a checkpoint of B0 in two formats, and images."""
    folder = tmp_path_factory.mktemp("files")
    train_b0(few_images / "train", folder / "b0.ckpt")
    convert = [sys.executable, ROOT / "convert_weights.py", "--source", "b0.ckpt", "--target", "b0.safetensors"]
    subprocess.run([*convert, "--to", "timm"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    copy_images(digits, folder / "digits", "0123456789", 30, 3)
    return folder


COMMANDS = {
    "ONNX": "export.py --checkpoint_path {files}/b0.ckpt --file_name {out}/b0.onnx --file_format ONNX",
    "MINDIR": "export.py --checkpoint_path {files}/b0.ckpt --file_name {out}/b0.mindir --file_format MINDIR",
    "to ckpt": "convert_weights.py --source {files}/b0.safetensors --target {out}/b.ckpt --architecture "
    "tf_efficientnet_b0",
    "MindRecord": "scripts/convert_to_mindrecord.py {files}/digits/train {out}/packed --shards 5",
    "digits": "scripts/write_digits.py {out}/digits",
}
GO_ON = ("MindRecord",)
"""Those that keep the parts that are whole, and go on from there."""


def command_of(name, files, out):
    program, *flags = COMMANDS[name].format(files=files, out=out).split()
    return [sys.executable, str(ROOT / program), *flags]


def contents(folder):
    """Digest by path of the files of a folder that have their names; what begins with a dot is none's result.

    The size alone of a MINDIR: MindSpore writes its parts in an order that changes.
    """
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            changes = path.suffix == ".mindir"
            found[str(name)] = path.stat().st_size if changes else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def run_whole(name, files, folder):
    """What a command makes when nothing happens, and how many seconds of a processor it takes."""
    folder.mkdir()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command_of(name, files, folder), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return contents(folder), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def wait_until(process, seconds):
    """Wait until a process has taken so much of a processor's time, or has ended."""
    while process.poll() is None and cpu_seconds(process) < seconds:
        time.sleep(0.005)


def check_results(name, found, whole):
    """Every result that is there is whole."""
    assert found.items() <= whole.items(), f"{name}: {sorted(set(found) - set(whole))}"


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, files, tmp_path):
    whole, seconds = run_whole(name, files, tmp_path / "whole")
    draw, out = random.Random(name), tmp_path / "out"
    out.mkdir()
    kills = 0
    for _ in range(8):
        process = subprocess.Popen(command_of(name, files, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(process, draw.uniform(0.1, seconds))
        process.kill()
        kills += process.wait() < 0
        check_results(name, contents(out), whole)
        if name not in GO_ON:
            shutil.rmtree(out)
            out.mkdir()
    done = subprocess.run(command_of(name, files, out), capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, contents(out)) == (0, whole), done.stderr
    print(f"{name}: {kills} kills")


@pytest.mark.skipif(not can_mount(), reason="a small file system needs user namespaces")
@pytest.mark.parametrize("name", ["ONNX", "MINDIR", "to ckpt"])
def test_on_disks_of_random_sizes(name, files, tmp_path):
    whole, _ = run_whole(name, files, tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    draw = random.Random(name)
    full = 0
    for number in range(6):
        disk, kept = tmp_path / f"disk{number}", tmp_path / f"kept{number}"
        disk.mkdir()
        kept.mkdir()
        kilobytes = int(draw.uniform(4, 1.1 * size / 1024))
        done = run_on_small_disk(command_of(name, files, disk), disk, f"{kilobytes}k", kept)
        found = contents(kept)
        check_results(name, found, whole)
        if done.returncode:
            full += 1
            assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
            assert len(SENTENCE.findall(done.stderr)) == 1, done.stderr
            assert not [path for path in kept.rglob(".*")]
        else:
            assert found == whole
    print(f"{name}: {full} of 6 disks were full")
    assert full
