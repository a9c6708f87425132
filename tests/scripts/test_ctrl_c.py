"""Ctrl-C in a terminal ends every program with exit code 130 and one sentence, at any moment."""

import ast
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import Terminal, cpu_seconds
from tests.support.training_runs import (
    assert_same_state,
    checkpoint_path,
    copy_images,
    run,
    saved,
    train_b0,
    train_command,
)

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = [
    path for folder in (ROOT, ROOT / "scripts") for path in folder.glob("*.py") if "__main__" in path.read_text()
]
LOADS_QUICKLY = set("__future__ ast contextlib functools os re sys time".split())
"""What a program may import before it listens."""
SAID = "error: stopped by the user"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_listens_before_it_imports_what_takes_time(path):
    body = ast.parse(path.read_text()).body
    first = next(place for place, node in enumerate(body) if isinstance(node, ast.If))
    assert ast.unparse(body[first]) in (
        "if __name__ == '__main__':\n    listen()",
        "if __name__ == '__main__':\n    leave_while_loading()",
    )
    imports = [node for node in body[:first] if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    assert names <= {*LOADS_QUICKLY, "src.common.interrupt"}


def test_processes_are_started_where_it_is_known_that_they_inherit_what_is_blocked():
    """By `run_child`; the other two places are the launcher, which blocks nothing, and the quickstart's own."""
    known = {"src/common/interrupt.py", "src/launch/processes.py", "scripts/quickstart_photos.py"}
    sources = [*PROGRAMS, *(ROOT / "src").rglob("*.py"), ROOT / "scripts/quickstart_photos.py"]
    starting = {path for path in sources if re.search(r"subprocess\.(run|Popen|check_\w+)\(", path.read_text())}
    assert {str(path.relative_to(ROOT)) for path in starting} == known


def test_it_ends_train_py_while_mindspore_loads(tmp_path):
    terminal = Terminal([sys.executable, str(ROOT / "train.py"), "--dataset_path", "x"], tmp_path)
    maps = Path(f"/proc/{terminal.process.pid}/maps")
    while "mindspore" not in maps.read_text():
        assert terminal.process.poll() is None, terminal.text
    terminal.press_ctrl_c()
    code, text, as_found = terminal.finish()
    assert (code, as_found) == (130, True)
    assert text.replace("^C", "").split() == SAID.split()


@pytest.fixture(scope="module")
def files(digits, few_images, tmp_path_factory):
    """A folder with a checkpoint of B0 and its ONNX file, which know two classes, and images of these."""
    folder = tmp_path_factory.mktemp("files")
    train_b0(few_images / "train", folder / "b0.ckpt")
    export = [sys.executable, str(ROOT / "export.py"), "--checkpoint_path", "b0.ckpt", "--file_name", "b0.onnx"]
    subprocess.run([*export, "--file_format", "ONNX"], cwd=folder, check=True)
    copy_images(digits, folder / "digits", "01", 140, 30)
    return folder


COMMANDS = {
    "eval.py": ("--checkpoint_path {files}/b0.ckpt --dataset_path {files}/digits/train --report report.html", 12),
    "export.py": ("--checkpoint_path {files}/b0.ckpt --file_name out.mindir --file_format MINDIR", 10),
    "convert_weights.py": ("--source {files}/b0.ckpt --target out.safetensors --to timm", 8),
    "infer_onnx.py": ("--onnx_path {files}/b0.onnx --dataset_path {files}/digits/train --report report.html", 10),
    "scripts/convert_to_mindrecord.py": ("{files}/digits/train out --shards 4", 8),
    "scripts/write_digits.py": ("out", 8),
    "create_imagenet2012_label.py": ("--img_path {files}/digits/train", 4),
}
"""Program: its flags, and how many times it is stopped."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_ends_a_program_at_random_moments(name, files, tmp_path):
    """From just after Python has started to its usual end; no result is half written, and nothing is left behind.

    Moments are drawn by the processor's time that a whole run takes, which other programs on the machine do not change.
    While Python ends, after the last line of a result, Ctrl-C changes nothing any more.
    """
    flags, times = COMMANDS[name]
    command = [sys.executable, str(ROOT / name), *flags.format(files=files).split()]
    (tmp_path / "whole").mkdir()
    terminal = Terminal(command, tmp_path / "whole")
    seconds = 0
    while terminal.process.poll() is None:
        seconds = max(seconds, cpu_seconds(terminal.process))
        terminal.read()
    assert terminal.finish()[0] == 0, terminal.text
    expected = set(os.listdir(tmp_path / "whole"))
    draw = random.Random(name)
    stopped = 0
    for number in range(times):
        folder = tmp_path / str(number)
        folder.mkdir()
        terminal = Terminal(command, folder)
        moment = draw.uniform(0.1, 0.8 * seconds)
        while terminal.process.poll() is None and cpu_seconds(terminal.process) < moment:
            terminal.read()
        terminal.press_ctrl_c()
        code, text, as_found = terminal.finish()
        assert as_found
        assert code in (0, 130), text
        if code:
            stopped += 1
            assert text.count(SAID) == 1 and text.endswith(f"{SAID}\r\n") and "Traceback" not in text, text
            assert set(os.listdir(folder)) <= expected
            assert not [path for path in folder.rglob(".*")], text
        else:
            assert set(os.listdir(folder)) == expected
    print(f"{name}: {stopped} of {times} stopped")
    assert stopped >= times // 4


@pytest.mark.slow
def test_a_run_of_train_py_that_is_stopped_at_random_moments_ends_as_the_undisturbed_one(few_images, tmp_path):
    flags = {"dataset_path": few_images / "train", "epoch_size": 30}
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    for folder in (undisturbed, stopped):
        folder.mkdir()
    assert run(undisturbed, **flags)[0] == 0
    draw = random.Random(2)
    while_loading = 0
    for number in range(12):
        terminal = Terminal(train_command(**flags, resume="auto"), stopped)
        before = saved(stopped)
        if number % 4:
            # Once steps are being computed; else while Python loads, reads or compiles.
            while "epoch " not in terminal.read() and "loss " not in terminal.text:
                assert terminal.process.poll() is None, terminal.text
        moment = cpu_seconds(terminal.process) + draw.uniform(0.1, 0.3 if number % 4 else 5)
        while terminal.process.poll() is None and cpu_seconds(terminal.process) < moment:
            terminal.read()
        terminal.press_ctrl_c()
        code, text, as_found = terminal.finish()
        assert (code, as_found) == (130, True), text
        assert "Traceback" not in text
        assert (SAID in text) + ("stopped by signal 2 after step " in text) == 1, text
        while_loading += SAID in text
        assert saved(stopped)[-1:] >= before[-1:]
        if SAID not in text:
            assert saved(stopped) != before
    print(f"12 times, {while_loading} of them before training began")
    assert run(stopped, **flags, resume="auto")[::2] == (0, "")
    assert_same_state(checkpoint_path(stopped, 30, 4), checkpoint_path(undisturbed, 30, 4))
