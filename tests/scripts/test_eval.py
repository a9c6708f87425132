"""eval.py: the model card's line, every image counted, and what users do wrong."""

import ast
import json
import os
import re
import shutil
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

import eval as script
import export
import infer_onnx
from benchmarks import peers
from src.common.cli import run_cli
from src.evaluation.metrics import Score
from src.images.preprocess import Preprocess, load_image
from src.weights.checkpoint import network_shapes, write_checkpoint
from src.weights.layouts import LAYOUTS
from src.weights.model_info import ModelInfo
from src.weights.names import to_ours, to_theirs
from tests.mistakes.test_report import data_of
from tests.support import peer_networks

SIZE = 32
LINE = r"result: (\{'Loss': .*, 'Top_1_Acc': .*, 'Top_5_Acc': .*\}) ckpt= (.*)"


@pytest.fixture(scope="module")
def val(digits, tmp_path_factory):
    """Seven held-out images of each of four classes: no multiple of the batch size, fewer than five classes."""
    root = tmp_path_factory.mktemp("val")
    for label in "0123":
        (root / label).mkdir()
        for path in sorted((digits / "val" / label).iterdir())[:7]:
            shutil.copy(path, root / label)
    return root


def write_noise(root):
    """Two images of noise in each of four classes: every channel of the network sees something."""
    random = np.random.default_rng(0)
    for label in "0123":
        (root / label).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(random.integers(0, 256, (255, 300, 3)).astype(np.uint8)).save(root / label / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def peer(val):
    """timm's network with TensorFlow's padding, and logits of order 1."""
    return peers.randomise(
        peers.create_peer("timm_tf", "b0", num_classes=4), load(val, Preprocess.for_image_size(SIZE))[0]
    )


@pytest.fixture(scope="module")
def checkpoint(peer, tmp_path_factory):
    """The peer's weights as a checkpoint of ours, with another set of averaged weights."""
    weights = to_ours(peer_networks.tensors(peer), "timm").weights
    info = ModelInfo("b0", 4, tuple("0123"), "same", 1e-3, Preprocess.for_image_size(SIZE))
    averaged = {name: value + np.float32(name == "classifier.bias") for name, value in weights.items()}
    averaged["classifier.bias"] = np.array([9, 0, 0, 0], np.float32) * 10
    path = tmp_path_factory.mktemp("checkpoint") / "b0.ckpt"
    write_checkpoint(str(path), weights, info, averaged)
    return path


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = run_cli(script.main, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def result_of(out):
    found = re.fullmatch(LINE, out.splitlines()[-1])
    assert found, out
    return ast.literal_eval(found[1]), found[2]


def load(val, preprocess):
    """All images of the folder as the network's input, and their labels."""
    paths = [(path, label) for label in range(4) for path in sorted((val / str(label)).iterdir())]
    return np.stack([load_image(str(path), preprocess) for path, _ in paths]), np.array([label for _, label in paths])


def score_of(peer, val, preprocess):
    """What the peer makes of the images."""
    images, labels = load(val, preprocess)
    score = Score()
    score.add(peer_networks.logits_of(peer, images), labels, 0.1)
    return score


def test_the_result_is_timms_on_the_same_weights(capsys, val, checkpoint, peer):
    flags = ("--dataset_path", val, "--checkpoint_path", checkpoint, "--use_ema", "False", "--batch_size", 8)
    code, out, _ = run(capsys, *flags)
    assert code == 0
    score = score_of(peer, val, Preprocess.for_image_size(SIZE))
    result, named = result_of(out)
    assert named == str(checkpoint)
    assert result["Loss"] == pytest.approx(score.loss, abs=2e-4)
    assert result["Top_1_Acc"] == score.top_1_accuracy
    assert result["Top_5_Acc"] == 1.0
    assert "28 images in 4 classes; raw weights" in out


def test_a_loss_far_above_guessing_is_said_with_what_to_do(capsys, val, checkpoint):
    """The averaged weights name class 0 with a logit of 90; guessing among four classes has the loss ln 4 = 1.386."""
    code, out, err = run(capsys, "--dataset_path", val, "--checkpoint_path", checkpoint)
    assert code == 0 and result_of(out)[0]["Loss"] > 13.86
    assert re.search(
        r"^warning: the evaluation's loss [\d.]+ is far above 1\.386, .* smaller --norm_momentum", err, re.M
    )
    _, _, err = run(capsys, "--dataset_path", val, "--checkpoint_path", checkpoint, "--use_ema", "False")
    assert "warning" not in err


def test_averaged_weights_are_the_default_where_there_are_some(capsys, val, checkpoint):
    code, out, _ = run(capsys, "--dataset_path", val, "--checkpoint_path", checkpoint)
    assert code == 0
    # Their bias makes every answer the first class.
    assert result_of(out)[0]["Top_1_Acc"] == 0.25
    assert "averaged weights" in out


def test_a_published_checkpoint_of_the_model_zoo(capsys, tmp_path):
    """Names and shapes are those of the published file, but for its thousand classes; the values are timm's."""
    with open(Path(__file__).parent.parent / "data" / "model_zoo_parameters.tsv", encoding="utf-8") as file:
        shapes = dict(line.rstrip("\n").split("\t") for line in file)
    preprocess = Preprocess(224, 255, "bilinear")
    val = write_noise(tmp_path / "val")
    peer = peers.create_peer("timm_tf", "b0", num_classes=4)
    peers.randomise(peer, load(val, preprocess)[0])
    weights = to_theirs(LAYOUTS["zoo"], "b0", to_ours(peer_networks.tensors(peer), "timm").weights)
    tensors = []
    for name, text in shapes.items():
        shape = tuple(int(side) for side in text.replace("1000", "4").split("x"))
        value = weights.pop(name, np.zeros(shape, np.float32))
        assert value.shape == shape
        tensors.append({"name": name, "data": ms.Tensor(value)})
    assert not weights
    path = tmp_path / "zoo.ckpt"
    ms.save_checkpoint(tensors, str(path))
    code, out, err = run(capsys, "--dataset_path", val, "--checkpoint_path", path)
    assert (code, err) == (0, "")
    expected = score_of(peer, val, preprocess)
    assert result_of(out)[0]["Loss"] == pytest.approx(expected.loss, abs=2e-4)
    assert result_of(out)[0]["Top_1_Acc"] == expected.top_1_accuracy


@pytest.mark.parametrize("skip", [False, True])
def test_the_report_is_on_every_image(capsys, val, checkpoint, peer, tmp_path, skip):
    folder = tmp_path / "val"
    shutil.copytree(val, folder)
    images, labels = load(val, Preprocess.for_image_size(SIZE))
    predictions = np.delete(peer_networks.logits_of(peer, images).argmax(axis=1), 9)
    broken = sorted((folder / "1").iterdir())[2]
    broken.write_bytes(b"no image")
    flags = ("--dataset_path", folder, "--checkpoint_path", checkpoint, "--use_ema", "False", "--batch_size", 8)
    flags += ("--skip_bad_images",) * skip
    code, out, err = run(capsys, *flags, "--report", tmp_path / "report.html")
    assert (code, err.count("\n")) == ((0, 1) if skip else (1, 2))
    *_, result, line = out.splitlines()
    assert re.fullmatch(LINE, result) and line.startswith(f"report: {tmp_path}/report.html; expected calibration error")
    page = data_of(tmp_path / "report.html")
    assert page["predictions"] == predictions.tolist() and page["labels"] == np.delete(labels, 9).tolist()
    assert page["scores"]["top1"][0] == result_of(result)[0]["Top_1_Acc"]
    assert page["description"] == "EfficientNet-B0, raw weights"
    assert [path for path, *_ in page["unusable"]] == [f"1/{broken.name}"] and f"1/{broken.name}" not in page["paths"]
    wrong = [number for number in range(27) if page["labels"][number] != page["predictions"][number]]
    assert page["maps"].keys() == set(map(str, wrong)) and len(wrong) > 5


def test_the_report_may_be_a_table(capsys, val, checkpoint, tmp_path):
    code, out, _ = run(capsys, "--dataset_path", val, "--checkpoint_path", checkpoint, "--report", tmp_path / "r.csv")
    assert code == 0 and out.splitlines()[-1] == f"classes: {tmp_path}/r.csv"
    lines = (tmp_path / "r.csv").read_text().splitlines()
    # With the averaged weights the first class is every image's.
    assert len(lines) == 5 and lines[1:3] == ["0,0,7,0,7,7,1.0,1.0", "1,1,7,0,0,7,0.0,1.0"]


class TestSingleImages:
    """`--image`: the same answers as timm's network, told as infer_onnx.py tells them."""

    def test_the_probabilities_are_timms(self, capsys, val, checkpoint, peer):
        paths = [val / "2" / sorted(os.listdir(val / "2"))[0], *sorted((val / "0").iterdir())[:2]]
        flags = ("--checkpoint_path", checkpoint, "--use_ema", "False", "--json", "--image", *paths)
        code, out, err = run(capsys, *flags)
        assert (code, err) == (0, "")
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["image"] for row in rows] == list(map(str, paths))
        images = np.stack([load_image(str(path), Preprocess.for_image_size(SIZE)) for path in paths])
        expected = peers.torch.from_numpy(peer_networks.logits_of(peer, images)).softmax(1).numpy()
        for row, probabilities in zip(rows, expected):
            assert [found["label"] for found in row["classes"]] == np.argsort(-probabilities).tolist()
            told = [found["probability"] for found in row["classes"]]
            np.testing.assert_allclose(told, np.sort(probabilities)[::-1], atol=1e-4)
            assert [found["class"] for found in row["classes"]] == [str(found["label"]) for found in row["classes"]]

    def test_the_table_is_that_of_the_exported_file(self, capsys, val, checkpoint, tmp_path):
        onnx = tmp_path / "b0.onnx"
        source = ("--checkpoint_path", checkpoint, "--use_ema", "False")
        flags = [*source, "--file_name", onnx, "--file_format", "ONNX"]
        assert run_cli(export.main, [str(flag) for flag in flags]) == 0
        asked = ("--top_k", "2", "--image", str(val / "1"))
        capsys.readouterr()
        assert run_cli(infer_onnx.main, ["--onnx_path", str(onnx), *asked]) == 0
        theirs = capsys.readouterr().out.splitlines()
        code, out, _ = run(capsys, *source, *asked)
        ours = out.splitlines()
        assert code == 0 and ours[0] == "device: CPU; raw weights"
        assert len(ours) == 3 + 7 * 2 and ours[1:3] == theirs[1:3]
        assert [line.split()[:-1] for line in ours[3:]] == [line.split()[:-1] for line in theirs[3:]]

    def test_a_broken_one_is_named_and_the_others_are_told(self, capsys, val, checkpoint, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"no image")
        good = sorted((val / "0").iterdir())[0]
        flags = ("--checkpoint_path", checkpoint, "--json", "--image", tmp_path / "broken.jpg", good)
        code, out, err = run(capsys, *flags)
        first, second = map(json.loads, out.splitlines())
        assert code == 1 and "it is not an image that can be decoded" in first["error"]
        assert second["classes"][0]["label"] == 0
        assert err.splitlines()[-1] == "error: 1 of 2 images could not be used; each is named above"
        assert run(capsys, *flags, "--skip_bad_images")[0] == 0


class TestWrongUse:
    @pytest.mark.parametrize(
        ("flags", "code", "sentence"),
        [
            (["--image_size", "64"], 2, "--image_size is 64, but {checkpoint} was trained with 32"),
            (["--class_num", "10"], 2, "--class_num is 10, but {checkpoint} was trained with 4"),
            (["--variant", "b1"], 2, "--variant is b1, but {checkpoint} was trained with b0"),
            (["--device_target", "Ascend"], 2, "--device_target is Ascend, but this MindSpore finds no Ascend device"),
            (["--report", "report.txt"], 2, "argument --report: expected a file that ends in .html"),
            (["--report", "{checkpoint}/r.html"], 1, "{checkpoint}/r.html: a part of the path is not a directory"),
            (["--checkpoint_path", "missing.ckpt"], 1, "missing.ckpt: there is no such checkpoint"),
            (["--dataset_path", "missing"], 1, "missing: there is no such folder"),
            (["--epoch_size", "3"], 2, "unrecognized arguments: --epoch_size 3"),
        ],
    )
    def test_flags(self, capsys, val, checkpoint, flags, code, sentence):
        flags = [flag.format(checkpoint=checkpoint) for flag in flags]
        returned, out, err = run(capsys, "--dataset_path", val, "--checkpoint_path", checkpoint, *flags)
        assert (returned, out) == (code, "")
        assert err.startswith(f"error: {sentence.format(checkpoint=checkpoint)}") and err.count("\n") == 1

    def test_left_out(self, capsys, val, checkpoint):
        both = "error: give either --dataset_path, class folders or a list (.csv, .tsv), or --image, single images\n"
        assert run(capsys, "--checkpoint_path", checkpoint)[2] == both
        assert run(capsys, "--checkpoint_path", checkpoint, "--dataset_path", val, "--image", "a.jpg")[2] == both
        err = run(capsys, "--checkpoint_path", checkpoint, "--image", "a.jpg", "--report", "r.html")[2]
        assert err == "error: --report goes with --dataset_path only\n"
        err = run(capsys, "--checkpoint_path", checkpoint, "--dataset_path", val, "--top_k", 3)[2]
        assert err == "error: --top_k goes with --image only\n"
        assert "--checkpoint_path" in run(capsys, "--dataset_path", val)[2]

    @pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
    def test_a_truncated_checkpoint(self, capsys, val, checkpoint, tmp_path, keep):
        data = checkpoint.read_bytes()
        short = tmp_path / "short.ckpt"
        short.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
        code, out, err = run(capsys, "--dataset_path", val, "--checkpoint_path", short)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {short}: the checkpoint ") and err.count("\n") == 1

    def test_a_checkpoint_of_another_network(self, capsys, val, tmp_path):
        path = tmp_path / "other.ckpt"
        ms.save_checkpoint([{"name": "conv1.weight", "data": ms.Tensor(np.zeros((4, 4), np.float32))}], str(path))
        code, _, err = run(capsys, "--dataset_path", val, "--checkpoint_path", path)
        assert (code, err.count("\n")) == (1, 1)
        assert "it is a checkpoint of another network" in err

    def test_a_checkpoint_that_contradicts_itself(self, capsys, val, tmp_path):
        info = ModelInfo(num_classes=4)
        weights = {name: np.zeros(shape, np.float32) for name, shape in network_shapes(info).items()}
        weights["classifier.weight"] = np.zeros((5, 1280), np.float32)
        path = tmp_path / "five.ckpt"
        write_checkpoint(str(path), weights, info)
        code, _, err = run(capsys, "--dataset_path", val, "--checkpoint_path", path)
        assert (code, err.count("\n")) == (1, 1)
        assert "classifier.weight has shape (5, 1280), but b0 with 4 classes needs (4, 1280)" in err

    def test_a_folder_of_another_class_count(self, capsys, digits, checkpoint):
        code, _, err = run(capsys, "--dataset_path", digits / "val", "--checkpoint_path", checkpoint)
        assert code == 2
        assert err == f"error: {digits / 'val'} has 10 class folders, but {checkpoint} has 4 classes\n"

    def test_a_folder_without_classes(self, capsys, checkpoint, tmp_path):
        code, _, err = run(capsys, "--dataset_path", tmp_path, "--checkpoint_path", checkpoint)
        assert (code, err.count("\n")) == (1, 1)
        assert "there are no class folders in it" in err


def test_a_broken_image_is_named_and_counts_as_wrong(capsys, val, checkpoint, tmp_path):
    folder = tmp_path / "val"
    shutil.copytree(val, folder)
    broken = sorted((folder / "0").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:200])
    code, out, err = run(capsys, "--dataset_path", folder, "--checkpoint_path", checkpoint)
    assert err.startswith(f"warning: {broken}: it is not an image that can be decoded")
    assert code == 1 and err.endswith("\nerror: 1 of 28 images could not be used; each is named above\n")
    # With the averaged weights every good image of the first class is a hit.
    assert result_of(out)[0]["Top_1_Acc"] == 6 / 28
