"""int8 files against float ones, on a random network whose classifier has learned the digits; and export's flags."""

import dataclasses
import os

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.peers import create_peer, randomise
from export import main
from src.common.cli import run_cli
from src.data.image_folder import read_image_folder
from src.export.onnx_graph import build_model
from src.export.plan import normalise_all
from src.export.quantisation import cpu_needs_reduced_range, quantise
from src.export.verification import pick_evenly, read_pixels
from src.images.preprocess import Preprocess
from src.weights.checkpoint import write_checkpoint
from src.weights.folding import fold_batch_norm
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.names import to_ours
from tests.support.peer_networks import tensors

INFO = ModelInfo("b0", 10, tuple("0123456789"), preprocess=Preprocess.for_image_size(64))


def read_split(digits, split, count=None):
    """Images of the digits, as the network wants them, and labels."""
    folder = read_image_folder(str(digits / split))
    indices = pick_evenly(list(range(len(folder))), count or len(folder))
    pixels = read_pixels([folder.full_path(i) for i in indices], INFO.preprocess)
    return normalise_all(pixels, INFO), folder.labels[indices]


def run(model, images, output="logits"):
    """One output of a model in batches."""
    if isinstance(model, onnx.ModelProto):
        model = model.SerializeToString()
    session = onnxruntime.InferenceSession(model)
    return np.concatenate([session.run([output], {"image": images[i : i + 32]})[0] for i in range(0, len(images), 32)])


@pytest.fixture(scope="module")
def weights(digits):
    """Random weights with the batch-norm statistics of the digits, and a classifier fitted by least squares."""
    images, labels = read_split(digits, "train")
    peer = randomise(create_peer("timm_tf", "b0", num_classes=10), images[::8])
    weights = to_ours(tensors(peer), "tf_efficientnet_b0").weights
    model = build_model(fold_batch_norm(weights, INFO.norm_eps), INFO)
    model.graph.output.append(onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None))
    features = run(model, images, "features").astype(np.float64)
    mean, deviation = features.mean(0), features.std(0)
    features = (features - mean) / deviation
    gram = features.T @ features / len(features) + 0.03 * np.eye(features.shape[1])
    fitted = 10 * np.linalg.solve(gram, features.T @ (np.eye(10)[labels] - 0.1) / len(features)).T / deviation
    weights["classifier.weight"] = fitted.astype(np.float32)
    weights["classifier.bias"] = (-fitted @ mean).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def full(weights):
    """The float model."""
    return build_model(fold_batch_norm(weights, INFO.norm_eps), INFO)


@pytest.fixture(scope="module")
def quantised(full, digits):
    """The int8 model."""
    return quantise(full, read_split(digits, "train", 64)[0])


def test_top_1_hardly_changes(full, quantised, digits):
    """Such a network is more delicate than a trained one, which keeps its top-1 within a point."""
    images, labels = read_split(digits, "val")
    before, after = (run(model, images).argmax(1) for model in (full, quantised))
    assert (before == labels).mean() > 0.9
    assert (after == before).mean() > 0.93
    assert (after == labels).mean() > (before == labels).mean() - 0.04


def test_the_file_is_at_most_three_tenths(full, quantised):
    assert quantised.ByteSize() < 0.3 * full.ByteSize()


def test_weights_are_int8_for_each_channel_and_activations_uint8(quantised):
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in quantised.graph.initializer}
    producers = {output: node for node in quantised.graph.node for output in node.output}
    convolutions = [node for node in quantised.graph.node if node.op_type == "Conv"]
    in_float = {node.name for node in convolutions if producers.get(node.input[1]) is None}
    assert in_float == {"stem.conv", "blocks.0.depthwise.conv"}
    for node in convolutions:
        if node.name not in in_float:
            data, scale = (constants[name] for name in producers[node.input[1]].input[:2])
            assert data.dtype == np.int8 and scale.shape == (data.shape[0],)
    kinds = {constants[node.input[2]].dtype for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
    assert kinds == {np.dtype(np.uint8)}
    assert producers["logits"].op_type == "Gemm", "logits come out in float"


def test_the_batch_is_free_and_the_format_stays(quantised, digits):
    images = read_split(digits, "val", 3)[0]
    together = run(quantised, images)
    np.testing.assert_allclose(
        together, np.concatenate([run(quantised, image[None]) for image in images]), rtol=1e-4, atol=1e-3
    )
    assert [(o.domain, o.version) for o in quantised.opset_import] == [("", 17)] and quantised.ir_version == 8


def test_reduced_range_uses_seven_bits(full, digits):
    reduced = quantise(full, read_split(digits, "train", 4)[0], reduce_range=True)
    data = [onnx.numpy_helper.to_array(c) for c in reduced.graph.initializer]
    assert max(np.abs(values.astype(int)).max() for values in data if values.dtype == np.int8) == 64


@pytest.mark.parametrize(
    "flags, needed",
    [
        ("sse2 avx2 avx512f avx512_vnni", False),
        ("sse2 avx2 avx_vnni", False),
        ("sse2 avx2", True),
        ("asimd asimddp", False),
        ("", False),
    ],
)
def test_x86_without_vnni_needs_seven_bits(flags, needed):
    assert cpu_needs_reduced_range(flags.split()) is needed


@pytest.mark.parametrize("include_preprocessing", ["False", "True"])
def test_export(include_preprocessing, weights, full, digits, tmp_path, capsys):
    """From the checkpoint to a file that says what it is; verified on images that were not calibrated on."""
    write_checkpoint(str(tmp_path / "b0.ckpt"), weights, dataclasses.replace(INFO, class_names=None))
    flags = ["--checkpoint_path", tmp_path / "b0.ckpt", "--file_name", tmp_path / "b0", "--file_format", "ONNX"]
    flags += ["--precision", "int8", "--calibration_path", digits / "train"]
    flags += ["--include_preprocessing", include_preprocessing, "--include_softmax", "True"]
    assert run_cli(main, [str(flag) for flag in flags]) == 0
    printed = capsys.readouterr().out
    assert f"activations calibrated on 64 images of {digits}/train" in printed
    assert f"verified on 32 images of {digits}/train: largest difference " in printed
    assert os.path.getsize(tmp_path / "b0.onnx") < 0.3 * full.ByteSize()
    folder = read_image_folder(str(digits / "val"))
    pixels = read_pixels([folder.full_path(i) for i in range(0, 360, 12)], INFO.preprocess)
    inputs = pixels if include_preprocessing == "True" else normalise_all(pixels, INFO)
    session = onnxruntime.InferenceSession(str(tmp_path / "b0.onnx"))
    logits, probabilities = session.run(None, {"image": inputs})
    assert (logits.argmax(1) == run(full, normalise_all(pixels, INFO)).argmax(1)).mean() > 0.9
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    entries = session.get_modelmeta().custom_metadata_map
    assert entries["precision"] == "int8" and ModelInfo.from_json(entries[METADATA_KEY], "b0").variant == "b0"
