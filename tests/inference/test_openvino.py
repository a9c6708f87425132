"""OpenVINO beside ONNX Runtime in infer_onnx.py: which is taken when, and its logits."""

import concurrent.futures
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from src.common.cli import RunError, UsageError
from src.inference import model as inference_model
from src.inference.classification import choose_batch_size
from src.inference.model import open_model
from src.inference.openvino_session import OpenVinoSession
from src.inference.settings import GivenSettings
from tests.support import cpp_program as cpp

INFO = cpp.small_info(["cat", "dog", "owl"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An int8 file and its float32 one, and prepared images."""
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    images = np.random.default_rng(0).standard_normal((12, 3, 32, 32)).astype(np.float32)
    return path, cpp.write_int8_model(path, INFO, images), images


def logits_of(path, images):
    """By ONNX Runtime."""
    return onnxruntime.InferenceSession(str(path)).run(["logits"], {"image": images})[0]


def open_by(path, engine=None, threads=1):
    return open_model(str(path), GivenSettings(), "CPU", threads=threads, engine=engine)


def error_of(logits, full):
    return np.sqrt(np.square(logits - full).mean()) / full.std()


def test_float32_logits_are_those_of_onnx_runtime(files):
    _, full, images = files
    np.testing.assert_allclose(open_by(full, "openvino").run(images), logits_of(full, images), rtol=1e-4, atol=1e-4)


def test_int8_comes_nearer_to_float32_with_swish_in_float(files):
    path, full, images = files
    session = OpenVinoSession(str(path), "logits", 1, 1)
    # Sigmoid, both factors of the product and the flattening read floats; the second convolution still reads int8.
    assert session.steps_left_out == 4
    exact = logits_of(full, images)
    error, quantised_swish = (
        error_of(found, exact) for found in (session.run([], {"image": images})[0], logits_of(path, images))
    )
    assert 0 < error < 0.98 * quantised_swish < 0.05, (error, quantised_swish)


def test_many_threads_get_their_own_logits(files):
    path, _, images = files
    model = open_by(path, "openvino")
    alone = [model.run(images[i : i + 1 + i % 2]) for i in range(11)]
    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda i: model.run(images[i % 11 : i % 11 + 1 + i % 11 % 2]), range(110)))
    for i, logits in enumerate(together):
        np.testing.assert_allclose(logits, alone[i % 11], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("many, engine", [(3, "openvino"), (4, "onnxruntime")])
def test_it_is_taken_where_enough_steps_to_int8_and_back_fall_away(files, monkeypatch, many, engine):
    path, full, _ = files
    monkeypatch.setattr(inference_model, "MANY_STEPS", many)
    assert open_by(path).engine == engine
    assert open_by(path, "onnxruntime").engine == "onnxruntime"
    assert open_by(full).engine == "onnxruntime"
    assert choose_batch_size(open_by(path), None) == (4 if engine == "openvino" else 1)


def test_it_is_said_in_the_line_on_the_model(files):
    assert open_by(files[0], "openvino").describe_device() == "CPU by OpenVINO"
    assert open_by(files[0], "onnxruntime").describe_device() == "CPU"


def test_without_it_onnx_runtime_computes(files, monkeypatch):
    monkeypatch.setattr(inference_model, "MANY_STEPS", 0)
    monkeypatch.setattr(inference_model, "is_installed", lambda: False)
    assert open_by(files[0]).engine == "onnxruntime"
    with pytest.raises(UsageError, match="--engine openvino: it is not installed; pip install openvino"):
        open_by(files[0], "openvino")


def test_a_file_that_it_cannot_use_is_left_to_onnx_runtime_aloud(files, monkeypatch, capsys):
    def refuse(*_):
        raise RunError("no such operator")

    monkeypatch.setattr(inference_model, "OpenVinoSession", refuse)
    assert open_by(files[0]).engine == "onnxruntime"
    assert capsys.readouterr().err == "note: OpenVINO is not used: no such operator\n"
    with pytest.raises(RunError, match="no such operator"):
        open_by(files[0], "openvino")


def test_what_openvino_says_is_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(RunError, match=r"broken.onnx: OpenVINO cannot use it: [^\n]+$"):
        OpenVinoSession(str(tmp_path / "broken.onnx"), "logits", 1, 1)


def test_it_is_for_cpus(files, tmp_path):
    command = [sys.executable, cpp.ROOT / "infer_onnx.py", "--onnx_path", files[0], "--image", "-", "--engine", "onnx"]
    done = subprocess.run(command, capture_output=True, text=True, input="")
    assert done.returncode == 2 and "expected one of onnxruntime, openvino" in done.stderr
    with pytest.raises(UsageError, match="--engine openvino computes on the CPU, but --device_target is GPU"):
        inference_model.choose_engine(SimpleNamespace(target="GPU"), "openvino", 1, False)
