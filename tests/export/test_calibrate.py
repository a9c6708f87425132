"""export.py --calibrate: logits divided by the temperature that suits labelled images best."""

import re

import numpy as np
import onnxruntime
import pytest
import scipy.optimize

import export
from src.common.cli import run_cli
from src.data.image_folder import read_image_folder
from src.images.preprocess import Preprocess, load_image
from src.models.effnet import create_network
from src.weights.checkpoint import write_checkpoint
from src.weights.model_info import ModelInfo
from src.weights.network import model_parameters

SIZE = 32


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of two classes with logits of order 1."""
    network = create_network("lite0", num_classes=2)
    weights = {name: parameter.asnumpy() for name, parameter in model_parameters(network).items()}
    weights["classifier.weight"] = weights["classifier.weight"] * 40
    path = tmp_path_factory.mktemp("calibrate") / "two.ckpt"
    write_checkpoint(str(path), weights, ModelInfo("lite0", 2, ("0", "1"), preprocess=Preprocess.for_image_size(SIZE)))
    return path


def export_onnx(checkpoint, path, *flags):
    arguments = ["--checkpoint_path", checkpoint, "--file_name", path, "--file_format", "ONNX", *flags]
    return run_cli(export.main, list(map(str, arguments)))


def logits_of(path, folder):
    images = [load_image(folder.full_path(i), Preprocess.for_image_size(SIZE)) for i in range(len(folder))]
    return onnxruntime.InferenceSession(path).run(["logits"], {"image": np.stack(images)})[0]


def test_logits_are_divided_by_the_best_temperature_and_classes_stay(checkpoint, few_images, tmp_path, capsys):
    """SciPy's minimiser finds the same temperature."""
    plain, calibrated = tmp_path / "plain.onnx", tmp_path / "calibrated.onnx"
    assert export_onnx(checkpoint, plain) == 0
    flags = ("--calibrate", "True", "--calibration_path", few_images / "train")
    assert export_onnx(checkpoint, calibrated, *flags) == 0
    printed = capsys.readouterr().out
    temperature = float(re.search(r"calibrated: temperature ([\d.]+) on 18 images", printed)[1])

    folder = read_image_folder(str(few_images / "train"))
    logits = logits_of(plain, folder).astype(np.float64)

    def loss(log_temperature):
        scaled = logits / np.exp(log_temperature)
        own = scaled[np.arange(len(folder)), folder.labels]
        return (np.log(np.exp(scaled).sum(1)) - own).mean()

    best = float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=np.log([0.05, 20]), method="bounded").x))
    assert temperature == pytest.approx(best, rel=1e-2)
    np.testing.assert_allclose(logits_of(calibrated, folder), logits / temperature, rtol=1e-3, atol=1e-4)


def test_it_needs_labelled_images_of_the_same_classes(checkpoint, tmp_path, capsys):
    assert export_onnx(checkpoint, tmp_path / "a.onnx", "--calibrate", "True") == 2
    assert "--calibrate needs --calibration_path" in capsys.readouterr().err
    flags = ("--calibrate", "True", "--calibration_path", tmp_path)
    assert export_onnx(checkpoint, tmp_path / "a.onnx", *flags) == 1
    assert "there are no class folders in it" in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()
