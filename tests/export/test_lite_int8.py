"""Int8 of a network with ReLU6: what becomes of the ReLU6, and the biases' correction against hand calculations."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import create_peer, random_images, randomise
from export import main
from src.common.cli import run_cli
from src.export.bias_correction import correct_biases, dequantise, measure_means, quantised_layers
from src.export.onnx_graph import build_model
from src.export.quantisation import measure_noise, quantise, quantise_best, run_model
from src.images.preprocess import Preprocess
from src.weights.checkpoint import write_checkpoint
from src.weights.folding import fold_batch_norm
from src.weights.model_info import ModelInfo
from src.weights.names import to_ours
from tests.support.peer_networks import tensors

INFO = ModelInfo("lite0", 10, preprocess=Preprocess.for_image_size(64))


@pytest.fixture(scope="module")
def images():
    return random_images(24, 64)


@pytest.fixture(scope="module")
def weights(images):
    """Random weights, with activations of which many are above 6."""
    peer = randomise(create_peer("timm_tf", "lite0", num_classes=10), images[:8])
    weights = to_ours(tensors(peer), "tf_efficientnet_lite0").weights
    for name in weights:
        if name.endswith(".norm.gamma"):
            weights[name] = weights[name] * (1 if ".project." in name else 4)
    return weights


@pytest.fixture(scope="module")
def full(weights):
    return build_model(fold_batch_norm(weights, INFO.norm_eps), INFO)


@pytest.fixture(scope="module")
def quantised(full, images):
    return quantise(full, images[:16])


def exposed(model, name):
    """The model with another tensor as its only output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return onnxruntime.InferenceSession(copy.SerializeToString())


def test_relu6_is_the_range_of_the_convolution_before_it(full, quantised, images):
    kept = [node.name for node in quantised.graph.node if node.op_type == "Clip"]
    assert kept == ["stem", "blocks.0.depthwise"], "where the convolution is in float, so is the ReLU6"
    constants = {constant.name: numpy_helper.to_array(constant) for constant in quantised.graph.initializer}
    producers = {output: node for node in quantised.graph.node for output in node.output}
    for node in full.graph.node:
        if node.op_type == "Clip" and node.name not in kept:
            largest = exposed(full, node.name).run(None, {"image": images[:16]})[0].max()
            assert largest <= 6
            written = next(
                n for n in quantised.graph.node if n.op_type == "QuantizeLinear" and n.name.startswith(f"{node.name}_")
            )
            assert producers[written.input[0]].op_type == "Conv"
            assert constants[written.input[2]] == 0
            np.testing.assert_allclose(constants[written.input[1]], largest / 255, rtol=1e-5)
    assert largest == 6, "the head's ReLU6 is used up to its end"


def test_correction_of_one_layer_by_hand():
    """A convolution over two channels to one, whose weights 0.3 and -1 are rounded to 38/127 and -1."""
    model = single_convolution(np.array([0.3, -1.0], np.float32).reshape(1, 2, 1, 1), np.array([0.5], np.float32))
    images = np.stack([np.full((2, 2), 3.0), np.full((2, 2), 1.0)]).astype(np.float32)[None].repeat(6, 0)
    images[3:] *= 2
    mean = np.array([4.5, 1.5])
    moved = (38 / 127 - 0.3) * mean[0]
    settings = {"float_layers": "$.", "op_types_to_quantize": ["Conv"], "extra_options": {}}
    quantised = quantise(model, images, **settings)
    constants = {constant.name: constant for constant in quantised.graph.initializer}
    ((_, weight, bias),) = quantised_layers(quantised)
    np.testing.assert_allclose(dequantise(weight, constants).ravel(), [38 / 127, -1], rtol=1e-6)
    np.testing.assert_allclose(
        measure_means(model, {"logits": dequantise(weight, constants)}, images)["logits"], [moved], rtol=1e-4
    )
    corrected = {c.name: c for c in correct_biases(quantised, model, images).graph.initializer}
    step = float(numpy_helper.to_array(constants[bias.input[1]]).item())
    assert abs(float(dequantise(bias, corrected).item()) - (0.5 - moved)) < step
    changed = [name for name in constants if constants[name] != corrected[name]]
    assert changed == [bias.input[0]], "nothing else is another"


def single_convolution(weight, bias):
    """A model of one convolution that is named logits."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], name="logits")],
        "one_layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", weight.shape[1], 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weight.shape[0], 2, 2])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("layer", ["blocks.1.depthwise.conv", "blocks.4.depthwise.conv", "head.conv", "logits"])
def test_measured_means_are_those_of_the_layer_run_twice(layer, full, quantised, images):
    """Padding, strides and groups included: the layer with each of the two weights, on the same input."""
    constants = {constant.name: constant for constant in quantised.graph.initializer}
    rounded = {node.name: dequantise(weight, constants) for node, weight, _ in quantised_layers(quantised)}
    found = measure_means(full, {layer: rounded[layer]}, images)[layer]
    other = onnx.ModelProto()
    other.CopyFrom(full)
    weight = next(node for node in full.graph.node if node.name == layer).input[1]
    stored = next(constant for constant in other.graph.initializer if constant.name == weight)
    stored.CopyFrom(numpy_helper.from_array(rounded[layer], weight))
    before, after = (exposed(model, layer).run(None, {"image": images})[0] for model in (full, other))
    axes = (0, 2, 3)[: before.ndim - 1]
    np.testing.assert_allclose(found, after.mean(axes) - before.mean(axes), atol=1e-4 * np.abs(before).max())


def test_corrected_biases_bring_means_back_on_images_that_were_not_calibrated_on(full, quantised, images):
    corrected = correct_biases(quantised, full, images[:16])
    layer = "blocks.0.project.conv"  # the first one in int8

    def means(model):
        return exposed(model, layer).run(None, {"image": images[16:]})[0].mean((0, 2, 3))

    before, after = (np.abs(means(model) - means(full)).mean() for model in (quantised, corrected))
    assert after < 0.5 * before


def test_noise_is_the_root_mean_square_by_the_spread():
    full = np.array([[1.0, -1.0], [3.0, 1.0]])
    assert measure_noise(full, full + [[5.0], [7.0]]) == 0, "what all classes share does not count"
    np.testing.assert_allclose(measure_noise(full, full + [[0.1, -0.1], [0.1, -0.1]]), 0.1)


@pytest.mark.parametrize("corrects_well", [True, False])
def test_the_better_way_is_taken_and_both_are_told(corrects_well, full, quantised, images, monkeypatch):
    """A perfect correction and a bad one; whether the real one helps depends on the release of ONNX Runtime."""
    other = full if corrects_well else correct_biases(quantised, full, 30 * images[:4])
    monkeypatch.setattr("src.export.quantisation.correct_biases", lambda *_: other)
    best, said = quantise_best(full, images[:16])
    assert said.startswith("biases corrected;" if corrects_well else "as rounded;")
    for name, way in (("as rounded", quantised), ("biases corrected", other)):
        noise = 100 * measure_noise(*(run_model(model, images[:16]) for model in (full, way)))
        assert f"{name} {noise:.1f}%" in said
    assert best == (other if corrects_well else quantised)


def test_export_of_a_lite_network(weights, full, digits, tmp_path, capsys):
    write_checkpoint(str(tmp_path / "lite0.ckpt"), weights, INFO)
    flags = ["--checkpoint_path", tmp_path / "lite0.ckpt", "--file_name", tmp_path / "lite0", "--file_format", "ONNX"]
    flags += ["--precision", "int8", "--calibration_path", digits / "train"]
    assert run_cli(main, [str(flag) for flag in flags]) == 0
    printed = capsys.readouterr().out
    assert "noise in the logits on these images: as rounded " in printed and "verified on 32 images" in printed
    assert (tmp_path / "lite0.onnx").stat().st_size < 0.3 * full.ByteSize()
    first = (tmp_path / "lite0.onnx").read_bytes()
    assert run_cli(main, [str(flag) for flag in flags]) == 0
    assert (tmp_path / "lite0.onnx").read_bytes() == first, "the same file every time"
