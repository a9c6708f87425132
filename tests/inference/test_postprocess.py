import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from src.inference.result_files import result_names

ROOT = Path(__file__).parent.parent.parent


def run(cwd, *arguments):
    arguments = arguments or ("--result_path", "results", "--label_path", "labels.json")
    command = [sys.executable, str(ROOT / "postprocess.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def write_result(root, name, logits):
    path = root / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f"<{len(logits)}f", *logits))


def one_hot(winner, classes=10, value=3.5):
    return [value if i == winner else -0.25 * i for i in range(classes)]


@pytest.fixture
def run_of_four(tmp_path):
    """Three of four right; one of the right ones shares its file name with another class."""
    labels = {"cat/1.jpg": 0, "cat/2.jpg": 0, "dog/1.jpg": 1, "dog/sub/3.png": 1}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    for name, winner in (("cat/1", 0), ("cat/2", 9), ("dog/1", 1), ("dog/sub/3", 1)):
        write_result(tmp_path, f"{name}_0.bin", one_hot(winner))
    return tmp_path


def test_accuracy_in_the_form_of_the_model_card_then_top_5(run_of_four):
    done = run(run_of_four)
    assert done.returncode == 0, done.stderr
    # The wrong image's label 0 has logit -0.0, the second largest: among the five.
    assert done.stdout == "accuracy:0.750\ntop-5 accuracy:1.000\ntop-1 3 and top-5 4 of 4 images\n"
    assert done.stderr == ""


def test_names_of_files_reach_the_terminal_as_text(run_of_four):
    write_result(run_of_four, "cat/\x1b[2J_0.bin", one_hot(0))
    (run_of_four / "labels.json").write_text(json.dumps({"cat/1.jpg": 0, "cat/\u202e\n.jpg": 0}))
    done = run(run_of_four)
    assert all(line.isprintable() for line in done.stderr.split("\n"))
    assert "surplus: cat/\\x1b[2J_0.bin\n" in done.stderr and "missing: cat/\\u202e\\n_0.bin\n" in done.stderr


def test_the_same_counts_as_numpy_on_random_logits(tmp_path):
    generator = np.random.default_rng(5)
    logits = generator.normal(size=(200, 12)).astype(np.float32)
    labels = generator.integers(0, 12, 200)
    for i, row in enumerate(logits):
        write_result(tmp_path, f"c/{i}_0.bin", row)
    (tmp_path / "labels.json").write_text(json.dumps({f"c/{i}.jpg": int(label) for i, label in enumerate(labels)}))
    order = np.argsort(-logits, axis=1)
    top_1 = int((order[:, 0] == labels).sum())
    top_5 = int((order[:, :5] == labels[:, None]).sum())
    assert f"top-1 {top_1} and top-5 {top_5} of 200 images" in run(tmp_path).stdout


def test_fewer_than_five_classes(tmp_path):
    write_result(tmp_path, "a/1_0.bin", [0.0, 1.0])
    (tmp_path / "labels.json").write_text('{"a/1.jpg": 0}')
    assert run(tmp_path).stdout.startswith("accuracy:0.000\ntop-5 accuracy:1.000\n")


def test_a_missing_result_is_named_and_counts_as_wrong(run_of_four):
    (run_of_four / "results" / "dog" / "1_0.bin").unlink()
    done = run(run_of_four)
    assert done.returncode == 1
    assert done.stdout.startswith("accuracy:0.500\n")
    assert "missing: dog/1_0.bin\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "1 result files are missing" in done.stderr


def test_a_surplus_result_is_named_and_not_counted(run_of_four):
    write_result(run_of_four, "dog/4_0.bin", one_hot(1))
    write_result(run_of_four, "stray_0.bin", one_hot(1))
    done = run(run_of_four)
    assert done.returncode == 1
    assert done.stdout.startswith("accuracy:0.750\n")
    assert "surplus: dog/4_0.bin\nsurplus: stray_0.bin\n" in done.stderr


def test_what_a_killed_run_was_writing_is_passed_over(run_of_four):
    (run_of_four / "results" / "dog" / ".1_0.bin.tmp-1").write_bytes(b"half")
    assert run(run_of_four).returncode == 0


def test_nan_logits_help_nobody(run_of_four):
    write_result(run_of_four, "cat/1_0.bin", [float("nan")] * 10)
    assert run(run_of_four).stdout.startswith("accuracy:0.500\ntop-5 accuracy:0.750\n")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0 bytes"),
        (b"12345", "5 bytes"),
        (struct.pack("<3f", 1, 2, 3), "3 logits"),
    ],
)
def test_a_broken_result_is_named(run_of_four, content, sentence):
    (run_of_four / "results" / "dog" / "1_0.bin").write_bytes(content)
    done = run(run_of_four)
    assert done.returncode == 1
    assert "dog/1_0.bin" in done.stderr and sentence in done.stderr and done.stderr.count("\n") == 1


def test_labels_beyond_the_logits_are_named(run_of_four):
    (run_of_four / "labels.json").write_text('{"cat/1.jpg": 10, "cat/2.jpg": 0, "dog/1.jpg": 1, "dog/sub/3.png": 1}')
    done = run(run_of_four)
    assert done.returncode == 1 and "10 logits, but its label is 10" in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("{}", "expected an object"),
        ("[1]", "expected an object"),
        ('{"a/b.jpg": "cat"}', "'a/b.jpg'"),
        ('{"a/b.jpg": true}', "'a/b.jpg'"),
        ('{"a/b.jpg": -1}', "'a/b.jpg'"),
        ('{"a/b.jpg": 1e400}', "'a/b.jpg'"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_a_broken_label_file_is_one_sentence(run_of_four, text, sentence):
    (run_of_four / "labels.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = run(run_of_four)
    assert done.returncode == 1
    assert done.stderr.startswith("error: labels.json: ") and sentence in done.stderr and done.stderr.count("\n") == 1


def test_missing_folders_and_files_are_one_sentence(run_of_four):
    done = run(run_of_four, "--result_path", "nowhere", "--label_path", "labels.json")
    assert (done.returncode, done.stderr) == (1, "error: nowhere: there is no such folder of result files\n")
    done = run(run_of_four, "--result_path", "results", "--label_path", "nothing.json")
    assert done.returncode == 1 and "nothing.json: there is no such file" in done.stderr
    assert run(run_of_four, "--result_path", "results").returncode == 2


def test_results_of_no_labelled_image_are_an_error(run_of_four):
    (run_of_four / "labels.json").write_text('{"x/1.jpg": 0}')
    done = run(run_of_four)
    assert done.returncode == 1 and "none of the 1 labelled images" in done.stderr and done.stdout == ""


def test_result_names_drop_the_suffix_unless_two_images_would_meet():
    assert result_names(["a/1.jpg", "a/2.tar.png", "b/1.jpg"]) == ["a/1_0.bin", "a/2.tar_0.bin", "b/1_0.bin"]
    assert result_names(["a/1.jpg", "a/1.png", "b/1.jpg"]) == ["a/1.jpg_0.bin", "a/1.png_0.bin", "b/1_0.bin"]
    # The kept suffix meets a third file's stem.
    paths = ["a/1.jpg", "a/1.jpg.png", "a/1.png"]
    assert result_names(paths) == ["a/1.jpg_0.bin", "a/1.jpg.png_0.bin", "a/1.png_0.bin"]


def test_result_names_are_different_for_every_set_of_paths():
    generator = np.random.default_rng(1)
    parts = ["a", "b", ".jpg", ".png", "_0", ".bin", "c/"]
    for _ in range(300):
        paths = sorted({"c/x" + "".join(generator.choice(parts, 4)) + ".jpg" for _ in range(12)})
        assert len(set(result_names(paths))) == len(paths)


def test_neither_script_loads_mindspore_or_pillow():
    code = (
        "import sys, postprocess, create_imagenet2012_label; "
        "sys.exit(bool({'mindspore', 'torch', 'PIL', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
