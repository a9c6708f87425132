import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from src.common.cli import UsageError
from src.preparation.digits import SPLITS, load_digits, split_digits, write_digits

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "write_digits.py"


def read_tree(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*.jpg")}


def test_counts_and_class_folders(digits):
    tree = read_tree(digits)
    assert len(tree) == 1797
    for split, count in SPLITS.items():
        assert sum(path.startswith(split + "/") for path in tree) == count
        assert sorted(os.listdir(digits / split)) == [str(label) for label in range(10)]
    assert all(len(os.listdir(digits / "val" / str(label))) == 36 for label in range(10))


def test_every_digit_is_in_exactly_one_split_under_its_label(digits):
    labels = datasets.load_digits().target
    found = {}
    for path in read_tree(digits):
        _, label, name = path.split("/")
        position = int(name[len("digit_") : -len(".jpg")])
        assert position not in found
        found[position] = int(label)
    assert found == dict(enumerate(labels.tolist()))


def test_no_image_of_the_held_out_set_is_trained_on():
    images, labels = load_digits()
    split = split_digits(labels)
    train = {images[position].tobytes() for position in split["train"]}
    assert not any(images[position].tobytes() in train for position in split["val"])


def test_images_are_64_pixel_rgb_jpegs_of_the_right_digit(digits):
    original = datasets.load_digits().images
    for path in sorted((digits / "val" / "7").iterdir())[:5]:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
            pixels = np.asarray(image.convert("L"), dtype=float)
        shrunk = pixels.reshape(8, 8, 8, 8).mean((1, 3)) / 255 * 16
        position = int(path.stem[len("digit_") :])
        assert np.corrcoef(shrunk.ravel(), original[position].ravel())[0, 1] > 0.97


def test_same_bytes_every_time_behind_a_link_too(digits, tmp_path):
    (tmp_path / "again").symlink_to("disk/digits")
    assert write_digits(str(tmp_path / "again"))
    assert read_tree(tmp_path / "disk" / "digits") == read_tree(digits)
    assert (tmp_path / "again").is_symlink()


def test_complete_folder_is_kept(digits):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert not write_digits(str(digits))
    assert before == {path: path.stat().st_mtime_ns for path in digits.rglob("*")}


@pytest.mark.parametrize("damage", ["missing", "empty file", "surplus"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, damage):
    root = tmp_path / "digits"
    write_digits(str(root))
    victim = root / "val" / "0" / sorted(os.listdir(root / "val" / "0"))[0]
    if damage == "missing":
        victim.unlink()
    elif damage == "empty file":
        victim.write_bytes(b"")
    else:
        (root / "val" / "0" / "mine.jpg").write_bytes(b"x")
    before = read_tree(root)
    with pytest.raises(UsageError, match="not the complete set of digits"):
        write_digits(str(root))
    assert read_tree(root) == before


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    written = []

    def fail_later(image):
        written.append(image)
        if len(written) > 10:
            raise OSError(28, "No space left on device")
        return b"x"

    monkeypatch.setattr("src.preparation.digits.encode_digit", fail_later)
    with pytest.raises(OSError):
        write_digits(str(tmp_path / "digits"))
    assert os.listdir(tmp_path) == []


def test_script_says_what_it_did(tmp_path):
    out = tmp_path / "a folder" / "digits"
    (tmp_path / "a folder").mkdir()
    for verb in ("wrote", "found, reusing"):
        run = subprocess.run([sys.executable, SCRIPT, out], capture_output=True, text=True, cwd=tmp_path)
        assert (run.returncode, run.stderr) == (0, "")
        assert run.stdout == f"digits: {verb} 1437 images in {out}/train, 360 images in {out}/val\n"


def test_script_refuses_a_file_as_target(tmp_path):
    (tmp_path / "digits").write_text("mine")
    run = subprocess.run([sys.executable, SCRIPT, tmp_path / "digits"], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == f"error: {tmp_path}/digits: it is a file; name a folder for the images\n"
    assert (tmp_path / "digits").read_text() == "mine"
