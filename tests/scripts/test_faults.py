"""Programs that are killed, run out of disk or memory, or whose files change meanwhile: a whole result, or none.

The moments and sizes are random; the tests print how many of each there were.
"""

import hashlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.weights.checkpoint import read_checkpoint, write_checkpoint
from tests.published.test_take import NAME, Place
from tests.support import small_imagenet
from tests.support.hub_server import HubServer
from tests.support.small_disk import can_mount, run_on_small_disk
from tests.support.terminal import cpu_seconds
from tests.support.training_runs import assert_same_state, checkpoint_path, copy_images, run, train_b0

ROOT = Path(__file__).parent.parent.parent
SECONDS = 600
SENTENCE = re.compile(r"^error: .+$", re.MULTILINE)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(digits, few_images, tmp_path_factory):
    """A folder with a checkpoint of B0 in two formats, and images."""
    folder = tmp_path_factory.mktemp("files")
    train_b0(few_images / "train", folder / "b0.ckpt")
    # The same with another classifier.
    checkpoint = read_checkpoint(str(folder / "b0.ckpt"))
    weights = {name: -3 * value if "classifier" in name else value for name, value in checkpoint.weights.items()}
    write_checkpoint(str(folder / "other_b0.ckpt"), weights, checkpoint.info)
    for name in ("b0", "other_b0"):
        for program, *flags in (
            ("convert_weights.py", "--source", f"{name}.ckpt", "--target", f"{name}.safetensors", "--to", "timm"),
            ("export.py", "--checkpoint_path", f"{name}.ckpt", "--file_name", f"{name}.onnx", "--file_format", "ONNX"),
        ):
            command = [sys.executable, ROOT / program, *flags]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    copy_images(digits, folder / "digits", "0123456789", 30, 3)
    shutil.copytree(few_images, folder / "few")
    small_imagenet.write(folder / "imagenet")
    return folder


COMMANDS = {
    "ONNX": "export.py --checkpoint_path {files}/b0.ckpt --file_name {out}/b0.onnx --file_format ONNX",
    "MINDIR": "export.py --checkpoint_path {files}/b0.ckpt --file_name {out}/b0.mindir --file_format MINDIR",
    "to ckpt": "convert_weights.py --source {files}/b0.safetensors --target {out}/b.ckpt --architecture "
    "tf_efficientnet_b0",
    "MindRecord": "scripts/convert_to_mindrecord.py {files}/digits/train {out}/packed --shards 5",
    "digits": "scripts/write_digits.py {out}/digits",
    "ImageNet": "tests/support/small_imagenet.py {files}/imagenet {out}",
    "ImageNet as MindRecord": "tests/support/small_imagenet.py {files}/imagenet {out} --form mindrecord --shards 7",
}
GO_ON = ("MindRecord", "ImageNet", "ImageNet as MindRecord")
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
        if name not in GO_ON or process.returncode == 0:
            shutil.rmtree(out)
            out.mkdir()
    done = subprocess.run(command_of(name, files, out), capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, contents(out)) == (0, whole), done.stderr
    print(f"{name}: {kills} kills")


def test_a_download_that_is_killed_at_random_moments(tmp_path):
    """Half of the kills come while the file is on its way. What the cache shows under a name of its own is whole."""
    content = os.urandom(30 << 20)
    digest = hashlib.sha256(content).hexdigest()
    draw, kills, on_the_way = random.Random(0), 0, 0
    with HubServer(content) as hub:
        hub.manner = "trickle"
        place = Place(tmp_path, hub.url)
        for number in range(8):
            before = len(hub.downloads())
            process = subprocess.Popen(place.command(NAME), env=place.environment, cwd=ROOT, stdout=subprocess.DEVNULL)
            while number % 2 and process.poll() is None and len(hub.downloads()) == before:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 1))
            process.kill()
            kills += process.wait() < 0
            on_the_way += len(hub.downloads()) > before
            assert {name for name in place.files() if name[0] != "."} <= {digest, f"{NAME}.json"}
            for path in (tmp_path / "hub").rglob(f"blobs/{digest}"):
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        hub.manner = None
        code, taken, error = place.take()
    assert (code, error) == (0, "")
    assert hashlib.sha256(Path(taken["path"]).read_bytes()).hexdigest() == taken["origin"]["sha256"] == digest
    print(f"download: {kills} kills, {on_the_way} of them on the way")


READERS = {
    "eval.py": ("b0.ckpt", "--checkpoint_path b0.ckpt --dataset_path {files}/few/val --report r.csv", "r.csv"),
    "infer_onnx.py": ("b0.onnx", "--onnx_path b0.onnx --dataset_path {files}/few/val --report r.csv", "r.csv"),
    "convert_weights.py": ("b0.safetensors", "--source b0.safetensors --target r.ckpt {named}", "r.ckpt"),
}
"""Programs, the model's file that they read, their flags, and what they write."""
SIZES = {
    "address space": {"eval.py": (780, 3600), "infer_onnx.py": (120, 900), "convert_weights.py": (780, 1600)},
    "control group": {"eval.py": (100, 900), "infer_onnx.py": (20, 200), "convert_weights.py": (100, 600)},
}
"""MiB: with the least not all libraries can be loaded, with the most there is enough."""
CONTROL_GROUPS = Path("/sys/fs/cgroup/memory")
ENDED_BY_OTHERS = (127, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS)
"""How the C library and MindSpore's threads end a process that has no memory left; nothing of ours is asked."""


def reader_of(name, files):
    """(the command, the file that it reads, the file that it writes)."""
    read, flags, written = READERS[name]
    named = "--architecture tf_efficientnet_b0"
    return [sys.executable, str(ROOT / name), *flags.format(files=files, named=named).split()], read, written


@pytest.fixture(params=SIZES)
def limit(request):
    """(what is limited, a function that limits the process that calls it to so many bytes)."""
    if request.param == "address space":
        yield request.param, lambda size: resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return
    group = CONTROL_GROUPS / f"efficientnet-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("control groups of version 1 cannot be made here")

    def enter(size):
        (group / "memory.limit_in_bytes").write_text(str(size))
        (group / "cgroup.procs").write_text(str(os.getpid()))

    yield request.param, enter
    group.rmdir()


@pytest.mark.parametrize("name", READERS)
def test_within_memory_of_random_sizes(name, limit, files, tmp_path):
    """A whole result, or a sentence and none; below a size the C library, or the system, ends the process."""
    command, read, written = reader_of(name, files)
    shutil.copy(files / read, tmp_path)
    kind, enter = limit
    draw, outcomes = random.Random(name), []
    for _ in range(8):
        size = int(draw.uniform(*SIZES[kind][name])) << 20
        done = subprocess.run(
            command,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            preexec_fn=lambda: enter(size),  # noqa: B023
        )
        outcomes.append(done.returncode)
        killed = kind == "control group" and done.returncode == -signal.SIGKILL
        assert done.returncode in (0, 1, *ENDED_BY_OTHERS) or killed, done.stderr
        if done.returncode == 1:
            (sentence,) = SENTENCE.findall(done.stderr)
            assert re.search("memory|bad_alloc|ulimit", sentence), sentence
        assert os.listdir(tmp_path).count(written) == (done.returncode == 0)
        if not killed:
            assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        (tmp_path / written).unlink(missing_ok=True)
    print(f"{name}, {kind}: exit codes {outcomes}")
    assert any(outcomes) and 0 in outcomes


def write_over(source, target):
    """Replace a file's bytes in place, in pieces, as a careless copy does."""
    data = source.read_bytes()
    with open(target, "r+b") as file:
        file.truncate(len(data) // 2)
        for start in range(0, len(data), 1 << 20):
            file.write(data[start : start + (1 << 20)])
            file.flush()
            time.sleep(0.005)


def has_opened(process, path):
    """Whether a process has a file open."""
    try:
        return any(os.path.realpath(entry) == str(path) for entry in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:
        return False


@pytest.mark.parametrize("change", [write_over, shutil.move])
@pytest.mark.parametrize("name", READERS)
def test_a_model_that_is_replaced_while_it_is_read(name, change, files, tmp_path):
    """While it is open or soon after: the result is the one's or the other's, or there is a sentence."""
    command, read, written = reader_of(name, files)
    models = [files / read, files / f"other_{read}"]
    expected = []
    for model in models:
        shutil.copy(model, tmp_path / read)
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        expected.append((tmp_path / written).read_bytes())
        (tmp_path / written).unlink()
    assert expected[0] != expected[1]
    draw, refused = random.Random(name), 0
    for _ in range(6):
        shutil.copy(models[0], tmp_path / read)
        shutil.copy(models[1], tmp_path / "new")
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not has_opened(process, tmp_path / read):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        change(tmp_path / "new", tmp_path / read)
        _, error = process.communicate(timeout=SECONDS)
        if process.returncode:
            refused += 1
            assert process.returncode == 1 and len(SENTENCE.findall(error)) == 1 and "Traceback" not in error, error
            assert not (tmp_path / written).exists()
        else:
            assert (tmp_path / written).read_bytes() in expected
            (tmp_path / written).unlink()
    print(f"{name}, {change.__name__}: {refused} of 6 refused")


def test_a_clock_that_jumps_changes_nothing_of_a_run(few_images, tmp_path):
    """By up to a day, at each look at it, forwards and backwards."""
    steady, jumping = tmp_path / "steady", tmp_path / "jumping"
    for folder, program in ((steady, "tests/support/shallow_train.py"), (jumping, "tests/support/jumping_clock.py")):
        folder.mkdir()
        flags = {"eval_dataset_path": few_images / "val", "tensorboard": True}
        code, out, err = run(folder, few_images / "train", program=program, **flags)
        assert (code, err) == (0, "")
        assert min(float(rate) for rate in re.findall(r"([-\d.]+) images/s", out)) > 0
    assert_same_state(checkpoint_path(steady, 3, 4), checkpoint_path(jumping, 3, 4))


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
