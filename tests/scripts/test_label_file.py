import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*arguments, cwd):
    command = [sys.executable, str(ROOT / "create_imagenet2012_label.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def write_folder(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"an image")


def test_labels_are_the_sorted_class_folders_numbered_from_zero(tmp_path):
    write_folder(tmp_path / "data", ["n02/x.JPEG", "n01/b.JPEG", "n01/a.JPEG", "n10/x.JPEG"])
    done = run("--img_path", tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    labels = json.loads((tmp_path / "imagenet_label.json").read_text())
    assert labels == {"n01/a.JPEG": 0, "n01/b.JPEG": 0, "n02/x.JPEG": 1, "n10/x.JPEG": 2}
    assert list(labels) == sorted(labels)
    assert "4 images in 3 classes" in done.stdout


def test_one_file_name_in_two_classes_gives_two_labels(tmp_path):
    write_folder(tmp_path / "data", ["cat/1.jpg", "dog/1.jpg"])
    assert run("--img_path", tmp_path / "data", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "imagenet_label.json").read_text()) == {"cat/1.jpg": 0, "dog/1.jpg": 1}


def test_names_beyond_ascii_survive(tmp_path):
    write_folder(tmp_path / "data", ["猫/ё.jpg"])
    assert run("--img_path", tmp_path / "data", "--label_path", "out/labels.json", cwd=tmp_path).returncode == 0
    assert json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8")) == {"猫/ё.jpg": 0}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: None, "there is no such folder"),
        (lambda root: root.mkdir(), "no class folders"),
        (lambda root: (root / "cat").mkdir(parents=True), "hold no image"),
        (lambda root: root.write_text("a file"), "not a folder"),
    ],
)
def test_a_wrong_folder_is_one_sentence(tmp_path, make, sentence):
    make(tmp_path / "data")
    done = run("--img_path", tmp_path / "data", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and sentence in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "imagenet_label.json").exists()


def test_wrong_flags_are_wrong_usage(tmp_path):
    assert run(cwd=tmp_path).returncode == 2
    assert run("--img_path", "x", "--img", "y", cwd=tmp_path).returncode == 2


def test_an_unwritable_label_file_is_one_sentence(tmp_path):
    write_folder(tmp_path / "data", ["cat/1.jpg"])
    (tmp_path / "taken").mkdir()
    done = run("--img_path", "data", "--label_path", "taken", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: taken: it is a directory\n"
    assert os.listdir(tmp_path / "taken") == []
