"""Grad-CAM of our networks and of ONNX files against PyTorch's gradients in timm's network of the same weights."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import peers
from src.evaluation.evaluate import network_head
from src.evaluation.grad_cam import Head, class_maps
from src.export.onnx_graph import build_model
from src.export.quantisation import quantise
from src.images.preprocess import Preprocess, normalise
from src.inference.head import onnx_head
from src.inference.model import open_model
from src.inference.settings import GivenSettings
from src.kernels import load_kernels
from src.weights.folding import fold_batch_norm
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.names import to_ours
from src.weights.network import build_network, load_weights
from tests.support.peer_networks import tensors

SIDE, CLASSES = 96, 5
INFO = ModelInfo("b0", CLASSES, None, "same", 1e-3, Preprocess.for_image_size(SIDE))
LABELS = np.array([0, 3, 4, 1])


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def images(crops):
    return np.stack([normalise(crop, INFO.preprocess) for crop in crops])


@pytest.fixture(scope="module")
def peer(images):
    return peers.randomise(peers.create_peer("timm_tf", "b0", num_classes=CLASSES), images).eval()


@pytest.fixture(scope="module")
def weights(peer):
    return to_ours(tensors(peer), "timm").weights


@pytest.fixture(scope="module")
def expected(peer, images):
    """Grad-CAM as the paper defines it, with gradients: the weighted sum of the maps, what is negative cut off."""
    features = peer.forward_features(peers.torch.from_numpy(images)).detach().requires_grad_()
    logits = peer.forward_head(features)
    logits[range(len(LABELS)), LABELS].sum().backward()
    alphas = features.grad.mean((2, 3), keepdim=True)
    maps = peers.torch.relu((alphas * features).sum(1)).detach().numpy()
    assert maps.max() > 0 and (maps == 0).any() and maps.shape == (4, 3, 3)
    return maps


def assert_same_maps(head, crops, expected, tolerance=1e-3):
    maps = class_maps(head.features(crops), head.weights, LABELS)
    np.testing.assert_allclose(maps, expected, atol=tolerance * expected.max())


@pytest.mark.parametrize("with_kernels", [False, True])
def test_our_network_looks_where_timms_gradients_say(crops, weights, expected, with_kernels):
    network = build_network(INFO)
    if with_kernels:
        kernels = load_kernels()
        if kernels is None:
            pytest.skip("there are no kernels on this machine")
        assert kernels.install(network)
    load_weights(network, weights)
    assert_same_maps(network_head(network.set_train(False), INFO.preprocess), crops, expected)


def open_file(path, model, **settings):
    helper.set_model_props(model, {METADATA_KEY: INFO.to_json()})
    onnx.save(model, path)
    return open_model(str(path), GivenSettings(), **settings)


@pytest.mark.parametrize("kind", ["plain", "folded", "fp16", "pixels", "softmax"])
def test_an_exported_file_looks_there_too(tmp_path, crops, weights, expected, kind):
    model = build_model(
        weights if kind == "plain" else fold_batch_norm(weights, INFO.norm_eps),
        INFO,
        np.float16 if kind == "fp16" else np.float32,
        kind == "pixels",
        kind == "softmax",
    )
    head = onnx_head(open_file(tmp_path / "model.onnx", model))
    assert isinstance(head, Head), head
    assert_same_maps(head, crops, expected, 0.02 if kind == "fp16" else 1e-3)


def test_an_int8_file_looks_there_roughly(tmp_path, crops, images, weights, expected):
    model = quantise(build_model(fold_batch_norm(weights, INFO.norm_eps), INFO), images, reduce_range=True)
    head = onnx_head(open_file(tmp_path / "model.onnx", model))
    assert isinstance(head, Head), head
    maps = class_maps(head.features(crops), head.weights, LABELS)
    assert np.corrcoef(maps.ravel(), expected.ravel())[0, 1] > 0.8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timms_own_export_looks_there_too(tmp_path, crops, peer, expected):
    path = tmp_path / "timm.onnx"
    sample = peers.torch.zeros(2, 3, SIDE, SIDE)
    peers.torch.onnx.export(peer, sample, path, dynamo=False, input_names=["x"], output_names=["y"])
    mean, std = INFO.preprocess.mean, INFO.preprocess.std
    # The file takes two images at a time.
    head = onnx_head(open_model(str(path), GivenSettings(mean=mean, std=std)))
    assert isinstance(head, Head), head
    assert_same_maps(head, crops, expected)


def small_model(*nodes, weights=(3, CLASSES)):
    """A model of these nodes from `image` to `logits`."""
    constants = [
        helper.make_tensor("w", TensorProto.FLOAT, weights, np.ones(weights, np.float32).ravel()),
        helper.make_tensor("s", TensorProto.INT64, [2], [0, -1]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


MEAN = helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)


def test_a_product_without_bias_after_a_mean_is_such_an_end(tmp_path, crops):
    model = small_model(MEAN, helper.make_node("MatMul", ["mean", "w"], ["logits"]))
    head = onnx_head(open_file(tmp_path / "model.onnx", model))
    assert head.weights.shape == (CLASSES, 3) and head.features(crops).shape == (4, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    "nodes",
    [
        (MEAN, helper.make_node("MatMul", ["mean", "w"], ["y"]), helper.make_node("Relu", ["y"], ["logits"])),
        (
            MEAN,
            helper.make_node("Relu", ["mean"], ["positive"]),
            helper.make_node("MatMul", ["positive", "w"], ["logits"]),
        ),
        (
            helper.make_node("GlobalMaxPool", ["image"], ["max"]),
            helper.make_node("Reshape", ["max", "s"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        ),
    ],
)
def test_another_end_is_said_to_have_no_heat_maps(tmp_path, nodes):
    model = open_file(tmp_path / "model.onnx", small_model(*nodes))
    assert onnx_head(model) == "heat maps need a network that ends in a mean over the positions and one dense layer"


def test_without_the_package_onnx_there_are_none(tmp_path, monkeypatch):
    model = open_file(tmp_path / "model.onnx", small_model(MEAN, helper.make_node("MatMul", ["mean", "w"], ["logits"])))
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert "pip install onnx" in onnx_head(model)
