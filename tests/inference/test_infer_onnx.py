"""infer_onnx.py against hand calculations and timm, and against what goes wrong."""

import csv
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import infer_onnx
from scripts.quickstart import parse_onnx_result, parse_result
from src.common.cli import RunError, run_cli
from src.data.image_folder import read_image_folder
from src.data.image_list import ImageList, find_images
from src.data.imagenet import read_classes
from src.images.preprocess import Preprocess, load_image
from src.inference import classification
from src.inference import session as onnx_session
from src.inference.classification import BATCH_SIZES, choose_batch_size, classify
from src.inference.model import open_model
from src.inference.predictions import display_names, top_classes
from src.inference.settings import GivenSettings
from src.weights.model_info import ModelInfo
from tests.mistakes.test_report import data_of
from tests.support import hard_images as drawn
from tests.support.small_disk import can_mount, run_on_small_disk

ROOT = Path(__file__).parent.parent.parent
CLASSES = ["cat", "dog", "eel", "fox", "gnu", "hen", "owl"]


def small_info(classes, image_size=32, **settings):
    """A description for these classes, with a mean and a deviation of its own for each channel."""
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    preprocess = Preprocess.for_image_size(image_size, mean=mean, std=std, **settings)
    return ModelInfo(num_classes=len(classes), class_names=tuple(classes), preprocess=preprocess)


INFO = small_info(CLASSES)


def picture(width, height, seed=0, kind="JPEG"):
    """An image file's bytes."""
    return drawn.encode(drawn.draw(width, height, seed), kind)


def logits_by_hand(path, info=INFO):
    """What the model of `write_model` computes, in float64."""
    image = load_image(str(path), info.preprocess)
    weights = np.random.RandomState(3).normal(0, 0.05, (info.num_classes, *image.shape)).astype(np.float32)
    return (weights.astype(np.float64) * image).sum(axis=(1, 2, 3))


def fill(root, counts):
    """A labelled folder with so many pictures in each class, of all shapes, some of them PNGs."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            seed += 1
            kind = "PNG" if i % 4 == 3 else "JPEG"
            data = picture(40 + 7 * seed % 50, 35 + 11 * seed % 60, seed, kind)
            (root / name / f"{i:02}.{'png' if kind == 'PNG' else 'jpg'}").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 41 images of seven classes, `data`, and a model for them, `model.onnx`."""
    folder = tmp_path_factory.mktemp("onnx")
    fill(folder / "data", dict(zip(CLASSES, (5, 6, 7, 0, 9, 4, 10))))
    write_model(folder / "model.onnx", INFO)
    return folder


@pytest.fixture
def case(place, tmp_path):
    """The same as a copy that a test may spoil."""
    shutil.copytree(place, tmp_path / "case")
    return tmp_path / "case"


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the script in this process: (exit code, standard output, standard error)."""

    def call(folder, *flags, model="model.onnx"):
        monkeypatch.chdir(folder)
        code = run_cli(infer_onnx.main, ["--onnx_path", str(model), *map(str, flags)])
        return (code, *capsys.readouterr())

    return call


def refused(result, code, *pieces):
    """Whether a run ended with this code and one sentence that holds the pieces."""
    assert result[0] == code and result[2].count("\n") == 1 and result[2].startswith("error: "), result
    for piece in pieces:
        assert piece in result[2]
    return True


def write_model(path, info=INFO, kind="FLOAT", shape=None, output_shape=None, inputs=1, softmax=False, metadata=None):
    """Write an ONNX file of one convolution as large as the image, with weights that tell all pixels apart.

    Args:
        kind: of the input: FLOAT, FLOAT16, or UINT8, which it normalises itself.
        shape, output_shape: declared in place of the right ones.
        inputs: how many there are.
        softmax: whether `probabilities` come before the logits.
        metadata: in place of the description's text; "" leaves it out.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    side, classes = info.preprocess.image_size, info.num_classes
    weights = np.random.RandomState(3).normal(0, 0.05, (classes, 3, side, side)).astype(np.float32)
    default = ["N", side, side, 3] if kind == "UINT8" else ["N", 3, side, side]
    image = helper.make_tensor_value_info("image", getattr(TensorProto, kind), default if shape is None else shape)
    others = [helper.make_tensor_value_info(f"other_{i}", TensorProto.FLOAT, ["N"]) for i in range(inputs - 1)]
    constants = [numpy_helper.from_array(weights, "weights")]
    nodes = [helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT)]
    values = "numbers"
    if kind == "UINT8":
        for name in ("mean", "std"):
            constants.append(numpy_helper.from_array(np.array(getattr(info.preprocess, name), np.float32), name))
        nodes += [
            helper.make_node("Sub", ["numbers", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        ]
        values = "planes"
    if shape is not None and len(shape) != 4:
        nodes.append(helper.make_node("Identity", [values], ["map"]))
    else:
        nodes.append(helper.make_node("Conv", [values, "weights"], ["map"]))
    nodes += [
        helper.make_node("Flatten", ["map"], ["logits"], axis=1)
        if output_shape is None
        else helper.make_node("Identity", ["map"], ["logits"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output_shape or ["N", classes])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
        outputs.insert(0, helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", classes]))
    graph = helper.make_graph(nodes, "test", [image, *others], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    text = info.to_json() if metadata is None else metadata
    if text:
        helper.set_model_props(model, {"efficientnet": text, "variant": info.variant})
    onnx.save(model, path)


def foreign_flags(info=INFO):
    """What the user says of a file that says nothing."""
    mean, std = (",".join(map(str, values)) for values in (info.preprocess.mean, info.preprocess.std))
    return ("--mean", mean, "--std", std)


class TestEvaluation:
    def test_accuracy_and_loss_are_those_of_a_hand_calculation(self, place, run):
        folder = read_image_folder(str(place / "data"))
        logits = np.array([logits_by_hand(folder.full_path(i)) for i in range(len(folder))])
        order = np.argsort(-logits, axis=1)
        top_1 = np.mean(order[:, 0] == folder.labels)
        top_5 = np.mean((order[:, :5] == folder.labels[:, None]).any(axis=1))
        log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        one_hot = np.eye(7)[folder.labels]
        smooth = 0.9 * one_hot + 0.1 / 6 * (1 - one_hot)
        loss = -np.mean((smooth * log_softmax).sum(axis=1))

        code, out, err = run(place, "--dataset_path", "data", "--json")
        result = json.loads(out)
        assert code == 0 and result["images"] == 41 and result["unusable"] == 0
        assert (result["top_1"], result["top_5"]) == (top_1, top_5) and 0 < top_1 < top_5 < 1
        assert result["loss"] == pytest.approx(loss, rel=1e-5)
        assert "images: 41 in 7 classes, decoded by Pillow" in err
        assert "model.onnx: B0, 7 classes; shorter side to 37 (bicubic), centre 32, mean 123.675,116.28,103.53" in err

    def test_the_printed_figures_have_all_their_digits(self, place, run):
        exact = json.loads(run(place, "--dataset_path", "data", "--json")[1])
        code, out, err = run(place, "--dataset_path", "data")
        assert (code, err) == (0, "")
        assert parse_onnx_result(out) == (exact["top_1"], exact["top_5"])
        line = f"result: top-1: {exact['top_1']!r}, top-5: {exact['top_5']!r}, loss: {exact['loss']!r}, images: 41\n"
        assert line in out

    def test_top_5_of_fewer_than_six_classes_is_left_out_in_words(self, capsys):
        score = infer_onnx.Score(images=8, top_1=4, top_5=8)
        for shown in (True, False):
            infer_onnx.tell_score(score, [], infer_onnx.ProgressLine(8), 1, False, shown)
            line = capsys.readouterr().out.splitlines()[1]
            assert line.startswith(
                "50.00% right at once and 100.00% within five, " if shown else "50.00% right at once, "
            )

    @pytest.mark.parametrize(("classes", "told"), [(CLASSES, True), (CLASSES[:5], False)])
    def test_so_does_the_program(self, tmp_path, run, classes, told):
        fill(tmp_path / "data", dict.fromkeys(classes, 1))
        names = tuple(sorted(classes))
        write_model(tmp_path / "model.onnx", dataclasses.replace(INFO, num_classes=len(names), class_names=names))
        assert ("within five" in run(tmp_path, "--dataset_path", "data")[1]) == told

    def test_a_very_small_accuracy_is_printed_without_an_exponent(self, capsys):
        score = infer_onnx.Score(images=50000, top_1=1, top_5=3)
        infer_onnx.tell_score(score, [], infer_onnx.ProgressLine(50000), 1, False)
        assert parse_onnx_result(capsys.readouterr().out) == (1 / 50000, 3 / 50000)

    def test_the_smoothing_of_the_loss_is_a_flag(self, place, run):
        smooth, plain = (
            json.loads(run(place, "--dataset_path", "data", "--json", "--label_smooth_factor", factor)[1])
            for factor in (0.1, 0)
        )
        assert smooth["top_1"] == plain["top_1"] and smooth["loss"] != plain["loss"]

    def test_the_report_has_every_class(self, place, run, tmp_path):
        folder = read_image_folder(str(place / "data"))
        guesses = np.array([np.argsort(-logits_by_hand(folder.full_path(i))) for i in range(len(folder))])
        code, out, _ = run(place, "--dataset_path", "data", "--report", tmp_path / "new" / "classes.csv")
        assert code == 0 and f"classes: {tmp_path}/new/classes.csv\n" in out
        with open(tmp_path / "new" / "classes.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == CLASSES and [row["label"] for row in rows] == list("0123456")
        for label, row in enumerate(rows):
            own = folder.labels == label
            hits = (guesses[own, 0] == label).sum(), (guesses[own, :5] == label).any(axis=1).sum()
            assert [int(row[name]) for name in ("images", "unusable", "top_1", "top_5")] == [own.sum(), 0, *hits]
            expected = [str(hit / own.sum()) if own.any() else "" for hit in hits]
            assert [row["top_1_accuracy"], row["top_5_accuracy"]] == expected

    def test_the_report_is_a_page_where_its_name_ends_in_html(self, place, run, tmp_path):
        (code, out, err), path = (
            run(place, "--dataset_path", "data", "--report", tmp_path / "r.html"),
            tmp_path / "r.html",
        )
        assert (code, err) == (0, "") and f"report: {path}; expected calibration error " in out
        page = data_of(path)
        folder = read_image_folder(str(place / "data"))
        guesses = [int(np.argmax(logits_by_hand(folder.full_path(i)))) for i in range(len(folder))]
        assert page["predictions"] == guesses and page["paths"] == folder.paths and len(page["thumbnails"]) == 41
        assert (page["model"], page["folder"]) == ("model.onnx", "data")
        # The network is one convolution as large as the image.
        assert page["maps"] == {} and "ends in a mean" in page["noMaps"]

    @pytest.mark.skipif(not can_mount(), reason="a small file system needs user namespaces")
    def test_a_report_on_a_full_disk_is_one_sentence_and_no_half_file(self, place, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "kept").mkdir()
        path = tmp_path / "disk" / "r.html"
        command = [sys.executable, str(ROOT / "infer_onnx.py"), "--onnx_path", "model.onnx", "--dataset_path", "data"]
        done = run_on_small_disk([*command, "--report", path], tmp_path / "disk", "40k", tmp_path / "kept", cwd=place)
        assert (done.returncode, done.stderr) == (1, f"error: {path}: there is no space left on the device\n")
        assert parse_onnx_result(done.stdout) and os.listdir(tmp_path / "kept") == []

    def test_the_confusion_matrix_is_a_picture(self, place, run, tmp_path):
        code, out, _ = run(place, "--dataset_path", "data", "--confusion", tmp_path / "confusion.png")
        assert code == 0 and out.endswith(f"confusion matrix: {tmp_path}/confusion.png\n")
        with Image.open(tmp_path / "confusion.png") as image:
            assert image.format == "PNG" and min(image.size) > 400
            assert len(np.unique(np.asarray(image.convert("L")))) > 50

    @pytest.mark.parametrize("threads", [1, 2, 5])
    @pytest.mark.parametrize("batch_size", [None, 1, 3, 64])
    def test_threads_and_batch_size_change_nothing(self, place, threads, batch_size):
        folder = read_image_folder(str(place / "data"))
        model = open_model(str(place / "model.onnx"), GivenSettings())
        batches = list(classify(model, folder, choose_batch_size(model, batch_size), threads))
        assert [index for batch in batches for index in batch.indices] == list(range(41))
        logits = np.concatenate([batch.logits for batch in batches])
        expected = [logits_by_hand(folder.full_path(i)) for i in range(41)]
        np.testing.assert_allclose(logits, expected, atol=2e-4)


class TestFiles:
    """What a file may take and give."""

    @pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "UINT8"])
    @pytest.mark.parametrize("batch", ["N", 4])
    def test_every_input_gives_the_same_logits(self, place, tmp_path, kind, batch):
        side = INFO.preprocess.image_size
        shape = [batch, side, side, 3] if kind == "UINT8" else [batch, 3, side, side]
        write_model(tmp_path / "m.onnx", kind=kind, shape=shape, softmax=True)
        model = open_model(str(tmp_path / "m.onnx"), GivenSettings())
        folder = read_image_folder(str(place / "data"))
        batches = list(classify(model, folder, choose_batch_size(model, None), 2))
        logits = np.concatenate([batch.logits for batch in batches])
        expected = [logits_by_hand(folder.full_path(i)) for i in range(41)]
        np.testing.assert_allclose(logits, expected, atol=0.02 if kind == "FLOAT16" else 2e-4)

    def test_a_fixed_batch_of_another_size_is_a_contradiction(self, case, run):
        write_model(case / "model.onnx", shape=[4, 3, 32, 32])
        result = run(case, "--dataset_path", "data", "--batch_size", 8)
        assert refused(result, 2, "--batch_size is 8", "batches of 4 only")

    def test_a_free_image_side_is_that_of_the_description(self, case, run):
        write_model(case / "model.onnx", shape=["N", 3, "H", "W"])
        assert run(case, "--dataset_path", "data")[0] == 0

    def test_flags_that_agree_with_the_file_are_welcome(self, place, run):
        flags = ("--image_size", 32, "--crop_ratio", 0.875, "--interpolation", "bicubic", *foreign_flags())
        assert run(place, "--dataset_path", "data", *flags)[0] == 0

    @pytest.mark.parametrize(
        ("flags", "pieces"),
        [
            (("--image_size", 64), ("--image_size is 64", "says 32")),
            (("--resize", 40), ("--resize is 40", "says 37")),
            (("--crop_ratio", 1), ("--crop_ratio 1", "32 pixels", "says 37")),
            (("--interpolation", "bilinear"), ("--interpolation is bilinear", "says bicubic")),
            (("--mean", 0), ("--mean is 0,0,0", "says 123.675,116.28,103.53")),
            (("--std", 1), ("--std is 1,1,1", "says 58.395,57.12,57.375")),
        ],
    )
    def test_flags_that_contradict_the_file_are_errors_with_both_values(self, place, run, flags, pieces):
        assert refused(run(place, "--dataset_path", "data", *flags), 2, "model.onnx", *pieces)

    def test_class_names_that_contradict_the_file(self, case, run):
        (case / "names.txt").write_text("\n".join(["cat", "cow", *CLASSES[2:]]) + "\n")
        result = run(case, "--dataset_path", "data", "--class_names", "names.txt")
        assert refused(result, 2, "'cow' as class 1", "model.onnx says 'dog'")


class TestForeignFiles:
    @pytest.fixture
    def foreign(self, case):
        write_model(case / "model.onnx", metadata="")
        return case

    def test_flags_take_the_place_of_the_description(self, place, foreign, run):
        own = json.loads(run(place, "--dataset_path", "data", "--json")[1])
        theirs = json.loads(run(foreign, "--dataset_path", "data", "--json", *foreign_flags())[1])
        assert own["loss"] == theirs["loss"] and own["top_1"] == theirs["top_1"]

    def test_what_is_missing_is_named(self, foreign, run):
        result = run(foreign, "--dataset_path", "data")
        assert refused(result, 2, "model.onnx does not say", "--mean and --std must be given")

    def test_the_size_is_asked_for_where_the_input_leaves_it_open(self, foreign, run):
        write_model(foreign / "model.onnx", shape=["N", 3, "H", "W"], metadata="")
        assert refused(run(foreign, "--dataset_path", "data", *foreign_flags()), 2, "--image_size must be given")
        assert run(foreign, "--dataset_path", "data", *foreign_flags(), "--image_size", 32)[0] == 0

    def test_another_size_than_the_inputs(self, foreign, run):
        result = run(foreign, "--dataset_path", "data", *foreign_flags(), "--image_size", 64)
        assert refused(result, 2, "32 pixels wide", "64")

    def test_units_of_0_to_1_are_noticed(self, foreign, run):
        result = run(foreign, "--dataset_path", "data", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")
        assert refused(result, 2, "multiply mean and std by 255")

    def test_a_file_that_normalises_itself_wants_no_mean(self, foreign, run):
        write_model(foreign / "model.onnx", kind="UINT8", metadata="")
        assert refused(run(foreign, "--dataset_path", "data", *foreign_flags()), 2, "leave out --mean and --std")
        assert run(foreign, "--dataset_path", "data")[0] == 0

    @pytest.mark.parametrize(
        ("flags", "pieces"),
        [
            (("--resize", 40, "--crop_ratio", 0.875), ("--resize and --crop_ratio",)),
            (("--resize", 20), ("--resize is 20", "32")),
            (("--mean", "1,2"), ("--mean",)),
            (("--interpolation", "nearest"), ("nearest",)),
            (("--crop_ratio", 1.5), ("--crop_ratio",)),
        ],
    )
    def test_settings_that_make_no_sense(self, foreign, run, flags, pieces):
        assert refused(run(foreign, "--dataset_path", "data", *foreign_flags(), *flags), 2, *pieces)

    def test_resize_and_interpolation_are_carried_out(self, foreign, run):
        flags = (*foreign_flags(), "--resize", 33, "--interpolation", "bilinear")
        code, out, _ = run(foreign, "--image", "data/cat/00.jpg", "--json", *flags)
        info = small_info(CLASSES, crop_ratio=0.97, interpolation="bilinear")
        assert code == 0 and info.preprocess.resize == 33
        logits = logits_by_hand(foreign / "data/cat/00.jpg", info)
        expected = top_classes(logits, 5)
        found = [(row["label"], row["probability"]) for row in json.loads(out)["classes"]]
        assert [label for label, _ in found] == [label for label, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], atol=1e-4)

    def test_class_names_come_from_a_file(self, foreign, run):
        (foreign / "names.txt").write_text("\n".join(name.upper() for name in CLASSES))
        flags = ("--image", "data/cat/00.jpg", *foreign_flags(), "--class_names", "names.txt")
        out = run(foreign, *flags)[1]
        assert any(name.upper() in out for name in CLASSES)
        (foreign / "names.txt").write_text("one\ntwo\n")
        assert refused(run(foreign, *flags), 2, "2 names", "7 classes")
        (foreign / "names.txt").write_text("")
        assert refused(run(foreign, *flags), 1, "names.txt", "no class names")
        (foreign / "names.txt").write_bytes(b"\xff\xfe")
        assert refused(run(foreign, *flags), 1, "names.txt", "not a text file")
        (foreign / "names.txt").unlink()
        assert refused(run(foreign, *flags), 1, "names.txt: there is no such file")

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_timms_export_gives_timms_probabilities(self, tmp_path, run):
        peers = pytest.importorskip("benchmarks.peers")
        from timm.data import create_transform, resolve_data_config

        timm_model = peers.randomise(peers.create_peer("timm", "b0"), peers.random_images(8, 64)).eval()
        onnx_path = tmp_path / "timm.onnx"
        free_batch = {"input": {0: "N"}, "output": {0: "N"}}
        names = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": free_batch}
        peers.torch.onnx.export(timm_model, peers.torch.zeros(1, 3, 64, 64), onnx_path, dynamo=False, **names)
        (tmp_path / "a.png").write_bytes(picture(150, 100, kind="PNG"))
        settings = resolve_data_config({"input_size": (3, 64, 64)}, model=timm_model)
        with Image.open(tmp_path / "a.png") as image:
            batch = create_transform(**settings, is_training=False)(image)[None]
        with peers.torch.no_grad():
            expected = timm_model(batch).softmax(1)[0].numpy()

        mean, std = (",".join(str(255 * part) for part in settings[name]) for name in ("mean", "std"))
        flags = ("--mean", mean, "--std", std, "--crop_ratio", settings["crop_pct"], "--class_names", "imagenet")
        code, out, err = run(tmp_path, "--image", "a.png", "--json", *flags, "--top_k", 1000, model=onnx_path)
        assert code == 0, err
        rows = json.loads(out)["classes"]
        found = np.zeros(1000)
        found[[row["label"] for row in rows]] = [row["probability"] for row in rows]
        # PyTorch's transform rounds (pixel / 255 - mean) / std elsewhere.
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-3)
        assert expected.max() > 3 * expected.mean()
        assert rows[0]["class"] == read_classes()[int(expected.argmax())][1]


@pytest.mark.parametrize("size", [(177, 90), (61, 200), (64, 64)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_documents_lines_give_the_programs_probabilities(run, tmp_path, size, interpolation):
    """They need ONNX Runtime, NumPy and Pillow, and nothing of ours."""
    page = (ROOT / "docs" / "onnx_inference.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    imported = re.findall(r"^(?:import|from) (\w+)", lines, re.MULTILINE)
    assert imported == ["json", "numpy", "onnxruntime", "PIL"]
    info = small_info(CLASSES, interpolation=interpolation)
    write_model(tmp_path / "b0.onnx", info)
    (tmp_path / "cat.jpg").write_bytes(picture(*size))
    done = subprocess.run([sys.executable, "-I", "-c", lines], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    told = [(name, float(share)) for name, share in (line.split() for line in done.stdout.splitlines())]
    code, out, _ = run(tmp_path, "--image", "cat.jpg", "--json", model="b0.onnx")
    classes = json.loads(out)["classes"]
    assert [name for name, _ in told] == [found["class"] for found in classes] and len(told) == 5
    np.testing.assert_allclose([share for _, share in told], [found["probability"] for found in classes], rtol=1e-5)


class TestForeignNames:
    """Names from a folder and from a file's metadata reach the terminal as text, whatever they hold."""

    CLASSES = ["\x1b[2Jcat", "\u202egod", "a\rb", "line\nbreak", "\x1b]0;title\x07", "<b>", "\x9b31m"]

    @pytest.fixture
    def odd(self, tmp_path):
        fill(tmp_path / "data", dict.fromkeys(self.CLASSES, 2))
        (tmp_path / "data" / "\x1b[2Jcat" / "\x1b[1A\r.jpg").write_bytes(b"no image")
        (tmp_path / "data" / "\x1b[2J.jpg").write_bytes(b"beside the folders")
        write_model(tmp_path / "model.onnx", small_info(sorted(self.CLASSES)))
        write_model(tmp_path / "other.onnx", small_info([*sorted(self.CLASSES)[1:], "\x1b[8m"]))
        return tmp_path

    @pytest.mark.parametrize(
        "flags",
        [
            ["--image", "data"],
            ["--image", "data", "--json"],
            ["--dataset_path", "data", "--report", "report.html", "--confusion", "matrix.png"],
            ["--onnx_path", "other.onnx", "--dataset_path", "data"],
        ],
        ids=["images", "json", "folder", "contradiction"],
    )
    def test_are_text(self, odd, run, flags):
        code, out, err = run(odd, *flags)
        lines = (out + err).split("\n")
        assert code and [line for line in lines if not line.isprintable()] == []
        assert r"\x1b[" in out + err or r"\u001b[" in out

    def test_what_onnx_runtime_says_of_a_file_is_text(self, odd, run):
        write_model(odd / "model.onnx", metadata='{"format": 1, "variant": "\\u001b[2J"}')
        code, out, err = run(odd, "--image", "data")
        assert code == 1 and err.count("\n") == 1 and err[:-1].isprintable()


class TestSingleImages:
    def probabilities(self, path):
        exponents = np.exp(logits_by_hand(path))
        return exponents / exponents.sum()

    def test_the_table_has_the_most_probable_classes(self, place, run):
        code, out, err = run(place, "--image", "data/dog/03.png", "--top_k", 3)
        assert (code, err) == (0, "")
        head, *rows = out.splitlines()[2:]
        assert head.split() == ["image", "rank", "class", "probability"]
        expected = self.probabilities(place / "data/dog/03.png")
        order = np.argsort(-expected)[:3]
        assert rows[0].startswith("data/dog/03.png") and rows[1].startswith(" ")
        cells = [row.split()[-3:] for row in rows]
        assert [cell[:2] for cell in cells] == [[str(i + 1), CLASSES[label]] for i, label in enumerate(order)]
        np.testing.assert_allclose([float(cell[2]) for cell in cells], expected[order], atol=1e-4)
        assert len({row.rindex(".") for row in rows}) == 1

    def test_json_has_a_line_for_each_image(self, place, run):
        code, out, err = run(place, "--image", "data/dog", "--json")
        lines = [json.loads(line) for line in out.splitlines()]
        assert (code, err) == (0, "") and len(lines) == 6
        assert [line["image"] for line in lines] == sorted(str(p) for p in Path("data/dog").iterdir())
        for line in lines:
            expected = self.probabilities(place / line["image"])
            labels = [row["label"] for row in line["classes"]]
            assert labels == np.argsort(-expected)[:5].tolist()
            assert [row["class"] for row in line["classes"]] == [CLASSES[label] for label in labels]
            np.testing.assert_allclose([row["probability"] for row in line["classes"]], expected[labels], atol=1e-4)

    def test_folders_patterns_and_files_in_the_order_given(self, case, monkeypatch):
        monkeypatch.chdir(case)
        (case / "data" / "cat" / ".hidden.jpg").write_bytes(b"")
        (case / "data" / "cat" / "notes.txt").write_text("no image")
        (case / "a[1].jpg").write_bytes((case / "data/cat/00.jpg").read_bytes())
        found = find_images(["data/hen", "data/ca*/0[12].jpg", "a[1].jpg", "gone.jpg"]).paths
        assert found == [
            *[f"data/hen/{name}" for name in ("00.jpg", "01.jpg", "02.jpg", "03.png")],
            *["data/cat/01.jpg", "data/cat/02.jpg", "a[1].jpg", "gone.jpg"],
        ]
        assert len(find_images(["data"])) == 41 and len(find_images(["data/**/*.png"])) == 8
        assert find_images([str(case / "data/cat")]).paths[0] == str(case / "data/cat/00.jpg")

    def test_standard_input_is_the_bytes_of_an_image(self, place):
        command = [sys.executable, ROOT / "infer_onnx.py", "--onnx_path", "model.onnx", "--json", "--image", "-"]
        data = (place / "data/owl/02.jpg").read_bytes()
        done = subprocess.run(command, cwd=place, input=data, capture_output=True)
        assert done.returncode == 0, done.stderr
        line = json.loads(done.stdout)
        expected = self.probabilities(place / "data/owl/02.jpg")
        assert line["image"] == "-" and line["classes"][0]["label"] == int(expected.argmax())
        done = subprocess.run(command, cwd=place, input=b"data/owl/02.jpg\n", capture_output=True)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1
        assert b"bytes of one image" in done.stderr and b"xargs" in done.stderr
        done = subprocess.run(command, cwd=place, input=data[:200], capture_output=True)
        assert done.returncode == 1 and done.stderr.startswith(b"error: -: it is not an image")

    def test_names_of_imagenets_folders_are_put_into_words(self):
        words = dict(read_classes())
        numbers = list(words)
        names = display_names(small_info(numbers))
        assert names[0] == "n01440764 tench" and names[999] == f"{numbers[999]} {words[numbers[999]]}"
        assert display_names(small_info(["n1", "nine"])) == ["n1", "nine"]
        assert display_names(small_info(CLASSES).__class__(num_classes=3)) == ["0", "1", "2"]

    def test_more_classes_than_there_are(self):
        assert [label for label, _ in top_classes(np.array([1.0, 3.0, 3.0]), 9)] == [1, 2, 0]
        # The softmax of large logits, from log-sum-exp by hand: 1 / (1 + e^-1).
        assert top_classes(np.array([1000.0, 999.0]), 1)[0][1] == pytest.approx(0.7310585786300049)


class TestBadImages:
    @pytest.fixture
    def spoilt(self, case):
        (case / "data/dog/00.jpg").write_bytes(b"no image")
        whole = (case / "data/owl/05.jpg").read_bytes()
        (case / "data/owl/05.jpg").write_bytes(whole[: len(whole) // 2])
        return case

    def test_they_are_named_and_count_as_wrong(self, spoilt, place, run):
        code, out, err = run(spoilt, "--dataset_path", "data", "--report", "classes.csv")
        assert code == 1 and "images: 41\n" in out and "2 unusable" in out
        first, second, last = err.splitlines()
        assert first.startswith("warning: data/dog/00.jpg: it is not an image") and "counts as wrong" in first
        assert second.startswith("warning: data/owl/05.jpg: it is not an image") and "truncated" in second
        assert last == "error: 2 of 41 images could not be used; each is named above"
        folder = read_image_folder(str(place / "data"))
        whole = [i for i in range(41) if folder.paths[i] not in ("dog/00.jpg", "owl/05.jpg")]
        hits = sum(logits_by_hand(folder.full_path(i)).argmax() == folder.labels[i] for i in whole)
        assert parse_onnx_result(out)[0] == hits / 41
        with open(spoilt / "classes.csv", newline="") as file:
            rows = {row["class"]: row for row in csv.DictReader(file)}
        assert [rows[name]["images"] for name in ("dog", "owl", "cat")] == ["6", "10", "5"]
        assert [rows[name]["unusable"] for name in ("dog", "owl", "cat")] == ["1", "1", "0"]

    def test_they_are_left_out_where_asked(self, spoilt, run):
        code, out, err = run(spoilt, "--dataset_path", "data", "--skip_bad_images", "--json")
        result = json.loads(out)
        assert code == 0 and result["images"] == 39 and result["unusable"] == 2
        assert err.count("it is left out") == 2 and "error" not in err
        for name in ("dog/00.jpg", "owl/05.jpg"):
            (spoilt / "data" / name).unlink()
        clean = json.loads(run(spoilt, "--dataset_path", "data", "--json")[1])
        assert (clean["top_1"], clean["top_5"]) == (result["top_1"], result["top_5"])

    def test_they_count_in_the_shares_of_the_confusion_matrix(self, spoilt, run, monkeypatch):
        drawn_of = []
        monkeypatch.setattr(infer_onnx, "draw_confusion", lambda path, tally, classes: drawn_of.append(tally))
        run(spoilt, "--dataset_path", "data", "--confusion", "c.png")
        assert drawn_of[0].images.tolist() == [5, 6, 7, 0, 9, 4, 10] and drawn_of[0].confusion.sum() == 39

    def test_the_page_names_them(self, spoilt, run):
        for flags, images in (((), 41), (("--skip_bad_images",), 39)):
            run(spoilt, "--dataset_path", "data", "--report", "r.html", *flags)
            page = data_of(spoilt / "r.html")
            assert [(path, CLASSES[label]) for path, label, _ in page["unusable"]] == [
                ("dog/00.jpg", "dog"),
                ("owl/05.jpg", "owl"),
            ]
            assert "it is not an image" in page["unusable"][0][2]
            assert sum(row[1] for row in page["classes"]) == images and len(page["paths"]) == 39

    def test_nothing_but_bad_images(self, case, run):
        for path in (case / "data").glob("*/*"):
            path.write_bytes(b"")
        code, out, err = run(case, "--dataset_path", "data")
        assert code == 1 and parse_onnx_result(out) == (0, 0) and err.count("warning") == 41
        code, out, err = run(case, "--dataset_path", "data", "--skip_bad_images")
        assert code == 1 and "result" not in out
        assert err.splitlines()[-1] == "error: data: none of its 41 images could be used"

    def test_the_other_single_images_are_classified(self, spoilt, run):
        code, out, err = run(spoilt, "--image", "data/dog", "gone.jpg", "--top_k", 1)
        rows = out.splitlines()[3:]
        assert code == 1 and len(rows) == 5 and "00.jpg" not in "".join(rows)
        assert err.count("warning: ") == 2 and "gone.jpg: there is no such file" in err
        assert err.splitlines()[-1] == "error: 2 of 7 images could not be used; each is named above"

    def test_a_failure_is_a_line_of_json_too(self, spoilt, run):
        code, out, _ = run(spoilt, "--image", "data/dog/00.jpg", "data/dog/01.jpg", "--json")
        failed, fine = map(json.loads, out.splitlines())
        assert code == 1 and failed["image"] == "data/dog/00.jpg" and "not an image" in failed["error"]
        assert len(fine["classes"]) == 5

    def test_a_single_bad_image_is_one_sentence(self, spoilt, run):
        assert refused(run(spoilt, "--image", "data/dog/00.jpg"), 1, "data/dog/00.jpg: it is not an image")
        assert refused(run(spoilt, "--image", "gone.jpg"), 1, "gone.jpg: there is no such file")

    def test_an_image_that_may_not_be_read(self, case, run, monkeypatch):
        real = ImageList.read

        def read(self, index):
            if self.paths[index].endswith("01.jpg"):
                raise PermissionError(13, "Permission denied", self.paths[index])
            return real(self, index)

        monkeypatch.setattr(ImageList, "read", read)
        code, out, err = run(case, "--image", "data/cat")
        assert code == 1 and "warning: data/cat/01.jpg: permission was denied\n" in err and "data/cat/00.jpg" in out

    def test_names_cannot_disturb_the_terminal(self, case, run):
        (case / "data/dog/\x1b[2J\n.jpg").write_bytes(b"no image")
        err = run(case, "--dataset_path", "data")[2]
        assert "\x1b" not in err and r"\x1b[2J\n.jpg" in err


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", "not an ONNX file, or it is truncated"),
            (b"hello " * 1000, "not an ONNX file, or it is truncated"),
            (picture(50, 50), "not an ONNX file, or it is truncated"),
            (-20, "not an ONNX file, or it is truncated"),
            (1000, "not an ONNX file, or it is truncated"),
        ],
    )
    def test_no_onnx_file_or_a_truncated_one(self, case, run, content, sentence):
        if isinstance(content, int):
            content = (case / "model.onnx").read_bytes()[:content]
        (case / "model.onnx").write_bytes(content)
        assert refused(run(case, "--dataset_path", "data"), 1, f"model.onnx: it is {sentence}")

    def test_every_truncation_is_a_sentence(self, case, run):
        write_model(case / "model.onnx", small_info(["a"], image_size=1))
        whole = (case / "model.onnx").read_bytes()
        # The last entry of the metadata is for human readers; a file that ends before it has all that is needed.
        for length in range(0, whole.rindex(b"variant") - 10, 7):
            (case / "model.onnx").write_bytes(whole[:length])
            code, out, err = run(case, "--image", "data/cat/00.jpg")
            assert code in (1, 2) and err.startswith("error: ") and err.count("\n") == 1 and out == "", length

    def test_the_file_is_missing_or_a_folder(self, place, run):
        assert refused(run(place, "--dataset_path", "data", model="no.onnx"), 1, "no.onnx: there is no such file")
        assert refused(run(place, "--dataset_path", "data", model="data"), 1, "data: it is a directory")

    @pytest.mark.parametrize(
        ("settings", "pieces"),
        [
            ({"shape": ["N", 3, 32]}, ("'image' has 3 dimensions", "(N, 3, S, S)")),
            ({"shape": ["N", 32, 32, 3]}, ("(N, 3, S, S)",)),
            ({"shape": ["N", 3, 32, 48]}, ("32, 48",)),
            ({"shape": ["N", 1, 32, 32]}, ("1, 32, 32",)),
            ({"kind": "INT64"}, ("int64",)),
            ({"inputs": 2}, ("2 inputs",)),
            ({"output_shape": ["N", 7, 1, 1]}, ("'logits' has the shape", "row of logits")),
            ({"shape": ["N", 3, 64, 64]}, ("64 pixels", "32")),
        ],
    )
    def test_a_file_that_does_not_classify_images(self, case, run, settings, pieces):
        write_model(case / "model.onnx", **settings)
        assert refused(run(case, "--dataset_path", "data"), 1, "model.onnx", *pieces)

    def test_a_file_that_fails_when_it_runs(self, case, run):
        # The side is open in the declaration, but the convolution is as large as an image of 32 pixels.
        write_model(case / "model.onnx", shape=["N", 3, "H", "W"], metadata="")
        result = run(case, "--dataset_path", "data", *foreign_flags(), "--image_size", 8)
        assert refused(result, 1, "model.onnx: running it on a batch of shape (1, 3, 8, 8) failed")

    @pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1, "preprocess": {}}'])
    def test_a_broken_description(self, case, run, text):
        write_model(case / "model.onnx", metadata=text.replace('"preprocess": {}', '"preprocess": {"size": 3}'))
        assert refused(run(case, "--dataset_path", "data"), 1, "model.onnx")

    def test_a_description_of_another_class_count(self, case, run):
        write_model(case / "model.onnx", metadata=small_info(CLASSES[:6]).to_json())
        assert refused(run(case, "--dataset_path", "data"), 1, "describes 6 classes", "7 logits")

    def test_another_class_count_than_the_folders(self, case, run):
        shutil.rmtree(case / "data" / "owl")
        result = run(case, "--dataset_path", "data")
        assert refused(result, 2, "data has 6 class folders", "model.onnx has 7 classes") and result[1] == ""

    def test_the_same_classes_in_another_order(self, case, run):
        (case / "data" / "owl").rename(case / "data" / "ant")
        assert refused(run(case, "--dataset_path", "data"), 2, "class 0 is 'ant'", "trained with 'cat'")

    def test_folders_and_patterns_without_images(self, case, run):
        (case / "empty").mkdir()
        assert refused(run(case, "--dataset_path", "nowhere"), 1, "nowhere: there is no such folder")
        assert refused(run(case, "--dataset_path", "empty"), 1, "no class folders")
        assert refused(run(case, "--dataset_path", "model.onnx"), 1, "it is a file")
        assert refused(run(case, "--image", "empty"), 1, "empty: there is no image")
        assert refused(run(case, "--image", "data/*/*.gif"), 1, "no file matches")

    def test_files_and_folders_that_may_not_be_read(self, case):
        def refuse(*flags):
            command = [sys.executable, str(ROOT / "infer_onnx.py"), "--onnx_path", "model.onnx", *flags]
            if os.geteuid() == 0:  # root reads everything, unless it lays that down
                dropped = "-dac_override,-dac_read_search"
                command = ["setpriv", f"--inh-caps={dropped}", f"--bounding-set={dropped}", *command]
            done = subprocess.run(command, cwd=case, capture_output=True, text=True)
            assert done.returncode == 1 and done.stdout == ""
            return done.stderr

        (case / "data" / "dog").chmod(0)
        try:
            assert refuse("--dataset_path", "data") == "error: data/dog: permission was denied\n"
            assert refuse("--image", "data/dog") == "error: data/dog: permission was denied\n"
        finally:
            (case / "data" / "dog").chmod(0o755)
        (case / "locked").mkdir(mode=0o555)
        sentence = "error: locked/a.csv: permission was denied\n"
        assert refuse("--dataset_path", "data", "--report", "locked/a.csv") == sentence
        (case / "model.onnx").chmod(0)
        assert refuse("--dataset_path", "data") == "error: model.onnx: permission was denied\n"

    @pytest.mark.parametrize("flag", ["--report", "--confusion"])
    def test_outputs_that_cannot_be_written_are_noticed_before_the_work(self, place, run, flag):
        (place / "folder.csv").mkdir(exist_ok=True)
        for path, sentence in (("folder.csv", "it is a directory"), ("model.onnx/a.csv", "not a directory")):
            result = run(place, "--dataset_path", "data", flag, path)
            assert refused(result, 1, path, sentence) and result[1] == ""

    def test_confusion_without_matplotlib(self, place, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = run(place, "--dataset_path", "data", "--confusion", "a.png")
        assert refused(result, 1, "pip install matplotlib")

    @pytest.mark.parametrize(
        ("flags", "pieces"),
        [
            ((), ("--dataset_path", "--image")),
            (("--dataset_path", "data", "--image", "a.jpg"), ("--dataset_path", "--image")),
            (("--image", "a.jpg", "--report", "a.csv"), ("--report goes with --dataset_path",)),
            (("--dataset_path", "data", "--report", "report.txt"), ("--report", ".html", ".csv", "'report.txt'")),
            (("--image", "a.jpg", "--confusion", "a.png"), ("--confusion goes with --dataset_path",)),
            (("--dataset_path", "data", "--top_k", 3), ("--top_k goes with --image",)),
            (("--image", "a.jpg", "--top_k", 0), ("--top_k",)),
            (("--image",), ("--image",)),
            (("--dataset_path", "data", "--batch_size", 0), ("--batch_size",)),
            (("--dataset_path", "data", "--threads", "many"), ("--threads", "many")),
            (("--dataset_path", "data", "--device_target", "TPU"), ("--device_target", "TPU", "Ascend, GPU, CPU")),
            (("--dataset_path", "data", "--device", "CPU"), ("--device",)),
        ],
    )
    def test_flags_that_make_no_sense(self, place, run, flags, pieces):
        assert refused(run(place, *flags), 2, *pieces)

    def test_standard_input_that_nobody_feeds(self, place, run, monkeypatch):
        monkeypatch.setattr(sys, "stdin", None)
        assert refused(run(place, "--image", "-"), 2, "standard input")


class TestDevices:
    @pytest.mark.parametrize(("target", "package"), [("GPU", "onnxruntime-gpu"), ("Ascend", "onnxruntime-cann")])
    def test_a_device_that_is_not_there_names_the_package(self, place, run, target, package):
        if onnx_session.PROVIDERS[target][0] in onnxruntime.get_available_providers():
            pytest.skip(f"{target} is there")
        result = run(place, "--dataset_path", "data", "--device_target", target)
        assert refused(result, 2, f"--device_target is {target}", f"install the package {package} ")

    @pytest.fixture
    def broken_gpu(self, monkeypatch):
        """An ONNX Runtime with CUDA's provider where no driver is: it takes the CPU without a word."""
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        real = onnxruntime.InferenceSession

        def create(path, options, providers, **others):
            return real(path, options, providers=["CPUExecutionProvider"])

        monkeypatch.setattr(onnxruntime, "InferenceSession", create)

    def test_no_silent_fall_back(self, place, run, broken_gpu):
        result = run(place, "--dataset_path", "data", "--device_target", "GPU")
        assert refused(result, 1, "--device_target is GPU", "did not start", "driver")

    def test_a_device_that_nobody_asked_for_is_given_up_aloud(self, place, run, broken_gpu):
        code, out, err = run(place, "--dataset_path", "data")
        assert code == 0 and "; CPU, " in out
        assert err.startswith("note: GPU is not used: ") and err.count("\n") == 1

    @pytest.fixture
    def npu(self, monkeypatch):
        """An ONNX Runtime with CANN's provider, which here is the CPU: the runs as (batch size, thread), its sessions.

        It refuses two runs at once, as CANN does, and says that the NPU ran all but the operator Flatten.
        """
        runs, sessions, guard = [], [], threading.Lock()
        cann, cpu = "CANNExecutionProvider", "CPUExecutionProvider"

        class Session(onnxruntime.InferenceSession):
            def __init__(self, path, options, providers, **others):
                assert providers == [(cann, {})] and options.enable_profiling
                super().__init__(path, options, providers=[cpu])
                sessions.append(self)

            def get_providers(self):
                return [cann, cpu]

            def run(self, names, inputs):
                assert guard.acquire(blocking=False), "two runs at once"
                time.sleep(0.01)
                runs.append((len(inputs["image"]), threading.get_ident()))
                result = super().run(names, inputs)
                guard.release()
                return result

            def end_profiling(self):
                path = Path(super().end_profiling())
                events = json.loads(path.read_text())
                for event in events:
                    if event.get("cat") == "Node" and event["args"].get("op_name") != "Flatten":
                        event["args"]["provider"] = cann
                path.write_text(json.dumps(events))
                return str(path)

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cann, cpu])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
        return runs, sessions

    @pytest.mark.parametrize(("flags", "batch"), [((), 32), (("--batch_size", 5), 5)])
    def test_an_npu_gets_batches_of_one_size_from_one_thread(self, place, run, npu, flags, batch):
        expected = run(place, "--dataset_path", "data", "--json", "--device_target", "Ascend", *flags)
        runs, _ = npu
        # 41 images, and the run that shows the output's shape; the last batch is padded.
        assert [size for size, _ in runs] == [batch] * (1 + -(-41 // batch))
        assert len({thread for _, thread in runs}) == 1
        assert expected[0] == 0 and json.loads(expected[1].splitlines()[-1])["images"] == 41

    def test_an_npus_results_are_those_of_a_cpu(self, place, run, npu):
        on_npu = run(place, "--dataset_path", "data")[1]
        assert "; Ascend, " in on_npu
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
            patch.setattr(onnxruntime, "InferenceSession", onnxruntime.InferenceSession.__base__)
            on_cpu = run(place, "--dataset_path", "data")[1]
        assert parse_onnx_result(on_npu) == parse_onnx_result(on_cpu)

    def test_few_images_are_one_batch_on_an_npu(self, place, run, npu):
        assert run(place, "--image", "data/cat/00.jpg", "data/cat/01.jpg")[0] == 0
        assert [size for size, _ in npu[0]] == [2, 2]

    def test_what_an_npu_leaves_to_the_cpu_is_named(self, place, run, npu, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        _, _, err = run(place, "--image", "data/cat/00.jpg")
        assert err == "note: the NPU leaves to the CPU: 1 x Flatten\n"
        assert os.listdir(tmp_path) == []  # the profile is gone

    def test_the_device_is_told(self, place, run):
        assert "; CPU, 1 threads" in run(place, "--dataset_path", "data", "--device_target", "CPU", "--threads", 1)[1]

    def test_few_images_get_several_cores_each(self, place, run, monkeypatch):
        asked = []
        real = onnx_session.create_session
        monkeypatch.setattr(
            onnx_session, "create_session", lambda *arguments: asked.append(arguments[-1]) or real(*arguments)
        )
        run(place, "--image", "data/cat/00.jpg", "--threads", 4)
        run(place, "--image", "data/cat/00.jpg", "data/cat/01.jpg", "--threads", 4)
        run(place, "--dataset_path", "data", "--threads", 4)
        assert asked == [4, 2, 1]


class FakeModel:
    """A network that takes a while for each batch; counts how much of it is alive."""

    target, fixed_batch = "CPU", None
    info = INFO

    def __init__(self, pixels, seconds=0.0):
        self.pixels = pixels
        self.seconds = seconds
        self.alive = self.most_alive = 0
        self.lock = threading.Lock()

    def new_batch(self, images):
        with self.lock:
            self.alive += images
            self.most_alive = max(self.most_alive, self.alive)
        return np.empty((images, 1))

    def fill_row(self, row, crop):
        assert crop.shape == self.pixels

    def run(self, batch):
        time.sleep(self.seconds)
        with self.lock:
            self.alive -= len(batch)
        return np.zeros((len(batch), 7), np.float32)


class EndlessImages:
    """A million images that are one file."""

    def __init__(self, data):
        self.data = data
        self.reads = 0

    def __len__(self):
        return 1_000_000

    def full_path(self, index):
        return str(index)

    def read(self, index):
        self.reads += 1
        return self.data


class TestPipeline:
    def test_what_is_under_way_is_bounded(self):
        images = EndlessImages(picture(40, 40))
        model = FakeModel((32, 32, 3))
        batches = classify(model, images, 4, threads=3)
        for _ in range(40):
            next(batches)
        time.sleep(0.2)
        # The consumer stands still: 41 turns and AHEAD more for each thread may be done, not a million.
        assert images.reads <= classification.TURN * (41 + classification.AHEAD * 3 + 3 + 1)
        batches.close()
        assert model.most_alive <= 4 * 3

    @pytest.mark.parametrize(
        ("count", "batch_size", "threads"), [(1, 1, 1), (41, 1, 2), (41, 3, 2), (500, 64, 8), (7, 4, 16)]
    )
    def test_turns_hold_each_image_once_and_all_threads_end_together(self, count, batch_size, threads):
        turns = list(classification.take_turns(count, batch_size, threads))
        assert [index for turn in turns for index in turn] == list(range(count))
        assert all(len(turn) % batch_size == 0 for turn in turns[:-1])
        assert all(len(turn) <= max(classification.TURN, batch_size) for turn in turns)
        assert all(len(turn) <= batch_size for turn in turns[-threads:])

    def test_reading_and_the_network_overlap(self):
        """The first turn stays in the network until one of another is being read, and the other way round."""
        reading, inside, together = threading.Event(), threading.Event(), []
        second = next(itertools.islice(classification.take_turns(20, 1, 2), 1, None)).start

        class Images(EndlessImages):
            def __len__(self):
                return 20

            def read(self, index):
                if index == second:
                    reading.set()
                    together.append(inside.wait(10))
                return super().read(index)

        class Model(FakeModel):
            def run(self, batch):
                if not inside.is_set():
                    inside.set()
                    together.append(reading.wait(10))
                return super().run(batch)

        model = Model((32, 32, 3))
        batches = classify(model, Images(picture(40, 40)), 1, 2)
        assert sum(len(batch.indices) for batch in batches) == 20
        assert together == [True, True]

    def test_a_failure_of_the_network_ends_the_run(self):
        class Model(FakeModel):
            def run(self, batch):
                raise RunError("the network failed")

        with pytest.raises(RunError, match="the network failed"):
            list(classify(Model((32, 32, 3)), EndlessImages(picture(40, 40)), 2, 2))

    @pytest.mark.parametrize("count", [classification.MANY_IMAGES + 2, 3])
    def test_many_and_few_images_are_prepared_alike(self, tmp_path, count):
        """The compiled engine's bytes and Pillow's, for JPEGs, PNGs and broken files."""
        write_model(tmp_path / "model.onnx", INFO)
        model = open_model(str(tmp_path / "model.onnx"), GivenSettings())
        contents = [picture(90, 70), picture(60, 80, kind="PNG"), picture(50, 50)[:900]]
        for i, data in enumerate(contents):
            (tmp_path / f"{i}.jpg").write_bytes(data)
        images = ImageList([str(tmp_path / f"{i % 3}.jpg") for i in range(count)])
        batches = list(classify(model, images, 3, 2))
        assert [index for batch in batches for index in batch.errors] == list(range(2, count, 3))
        logits = np.concatenate([batch.logits for batch in batches])
        expected = [logits_by_hand(tmp_path / f"{i}.jpg") for i in range(2)]
        np.testing.assert_allclose(logits[:2], expected, atol=2e-4)
        np.testing.assert_array_equal(logits[-2:], logits[:2])

    def test_memory_does_not_grow_with_the_images(self, tmp_path):
        """The largest resident set of a run over eight times as many images."""
        write_model(tmp_path / "model.onnx", small_info(["a"], image_size=64))
        data = picture(400, 300)
        for name, count in (("few", 60), ("many", 480)):
            (tmp_path / name / "a").mkdir(parents=True)
            for i in range(count):
                (tmp_path / name / "a" / f"{i:03}.jpg").write_bytes(data)

        def peak(name):
            # Not getrusage: its maximum still holds the size of this process, from before the other program began.
            code = (
                "import re, sys, infer_onnx; infer_onnx.main(sys.argv[1:]); "
                "print(re.search(r'VmHWM:\\s*(\\d+) kB', open('/proc/self/status').read())[1])"
            )
            command = [sys.executable, "-c", code, "--onnx_path", tmp_path / "model.onnx", "--threads", "2"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [*command, "--dataset_path", tmp_path / name], capture_output=True, text=True, env=environment
            )
            assert done.returncode == 0, done.stderr
            return int(done.stdout.splitlines()[-1]) / 1024

        few, many = peak("few"), peak("many")
        assert 30 < few < 200
        # 420 images of 400 x 300 pixels are 144 MB decoded and 20 MB as inputs.
        assert many - few < 10


@pytest.mark.parametrize("target", BATCH_SIZES)
def test_the_batch_size_is_the_files_the_users_or_the_devices(target):
    model = FakeModel((32, 32, 3))
    model.target = target
    model.engine = "onnxruntime"
    assert [choose_batch_size(model, given) for given in (None, 7)] == [BATCH_SIZES[target], 7]
    model.fixed_batch = 5
    assert [choose_batch_size(model, given) for given in (None, 5)] == [5, 5]


class TestOwnExport:
    def test_the_scores_are_those_of_the_checkpoint(self, digits, tmp_path):
        """eval.py and infer_onnx.py on the held-out digits, with random weights that spread them over the classes."""
        peers = pytest.importorskip("benchmarks.peers")
        preprocess = Preprocess.for_image_size(64)
        some = sorted(digits.glob("val/*/*.jpg"))[::6]
        images = np.stack([load_image(str(path), preprocess) for path in some])
        model = peers.randomise(peers.create_peer("timm_tf", "b0", num_classes=10), images)
        peers.torch.save(model.state_dict(), tmp_path / "tf_efficientnet_b0.pth")

        def script(name, *flags):
            command = [sys.executable, str(ROOT / name), *map(str, flags)]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout

        sizes = ("--image_size", 64, "--mean", 127.5, "--std", 127.5, "--crop_ratio", 0.875)
        script("convert_weights.py", "--source", "tf_efficientnet_b0.pth", "--target", "b0.ckpt", *sizes)
        script("export.py", "--checkpoint_path", "b0.ckpt", "--file_name", "b0.onnx", "--file_format", "ONNX")
        checkpoint = parse_result(
            script(
                "eval.py", "--checkpoint_path", "b0.ckpt", "--dataset_path", digits / "val", "--device_target", "CPU"
            )
        )
        out = script("infer_onnx.py", "--onnx_path", "b0.onnx", "--dataset_path", digits / "val", "--report", "r.csv")
        assert parse_onnx_result(out) == checkpoint and 0 < checkpoint[0] < checkpoint[1] < 1
        assert "model: b0.onnx: B0, 10 classes; shorter side to 73 (bicubic), centre 64, mean 127.5" in out


class TestScript:
    def test_it_loads_neither_mindspore_nor_pytorch_nor_what_only_some_runs_need(self, place):
        """What the script loads of its own accord decides how fast it starts."""
        code = (
            "import sys, infer_onnx; infer_onnx.main(sys.argv[1:]); "
            "heavy = {'mindspore', 'torch', 'onnx', 'openvino', 'matplotlib', 'pandas', 'scipy', 'sklearn', 'tqdm', "
            "'jinja2'}; "
            "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
        )
        command = [sys.executable, "-c", code, "--onnx_path", "model.onnx", "--dataset_path", "data"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    def test_the_shell_script_runs_it(self, place):
        command = ["bash", str(ROOT / "scripts/run_infer_onnx.sh"), "model.onnx", "data", "CPU", "--batch_size", "2"]
        done = subprocess.run(
            command, cwd=place, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable}
        )
        assert done.returncode == 0, done.stderr
        assert parse_onnx_result(done.stdout)[1] > 0 and "in batches of 2" in done.stdout

    def test_the_readers_end_is_the_end(self, place):
        command = f"{sys.executable} {ROOT}/infer_onnx.py --onnx_path model.onnx --image data --json | head -1"
        done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True)
        assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr
