"""The ONNX graph of rows that are not in the table of variants, against their cells."""

import dataclasses

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import Tensor

from src.export.onnx_graph import build_model
from src.images.preprocess import Preprocess
from src.models.effnet import create_network
from src.models.family import VARIANTS
from src.weights.folding import fold_batch_norm
from src.weights.model_info import ModelInfo
from src.weights.network import model_parameters

SIZE = 45
NARROW = dataclasses.replace(VARIANTS["b0"], name="narrow", width_coeff=0.25, depth_coeff=0.5)
ROWS = {
    "lite": dataclasses.replace(
        NARROW, ends_scale=False, fixed_stages=(0, 6), activation="relu6", squeeze_ratio=0, depth_coeff=0.3
    ),
    "relu6 with gates": dataclasses.replace(NARROW, activation="relu6", depth_coeff=0.3),
    "swish without gates": dataclasses.replace(NARROW, squeeze_ratio=0),
}


def random_network(architecture):
    """A network whose activations stay of order 1 without gates and often exceed 6."""
    ms.set_seed(2)
    network = create_network(architecture.name, num_classes=7).set_train(False)
    generator = np.random.default_rng(3)
    for name, parameter in model_parameters(network).items():
        low, high = {"gamma": (1, 3), "beta": (0, 3), "moving_variance": (0.5, 2), "bias": (-1, 1)}.get(
            name.rpartition(".")[2], (None, None)
        )
        if low is not None:
            parameter.set_data(Tensor(generator.uniform(low, high, parameter.shape).astype(np.float32)))
    return network


@pytest.mark.parametrize("fold_bn", [False, True])
@pytest.mark.parametrize("row", ROWS)
def test_graph_of_a_further_row_computes_what_its_cells_compute(monkeypatch, row, fold_bn):
    monkeypatch.setitem(VARIANTS, "narrow", ROWS[row])
    network = random_network(ROWS[row])
    weights = {name: parameter.asnumpy() for name, parameter in model_parameters(network).items()}
    info = ModelInfo("narrow", 7, preprocess=Preprocess.for_image_size(SIZE))
    model = build_model(fold_batch_norm(weights, info.norm_eps) if fold_bn else weights, info)
    kinds = {node.op_type for node in model.graph.node}
    assert ("Clip" in kinds) == (ROWS[row].activation == "relu6")
    assert ("Sigmoid" in kinds) == (row != "lite")

    images = np.random.default_rng(4).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    expected = network(Tensor(images)).asnumpy()
    assert expected.std() > 0.01
    (logits,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], {"image": images})
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_relu6_is_clipped_in_float16_as_well(monkeypatch):
    monkeypatch.setitem(VARIANTS, "narrow", ROWS["lite"])
    network = random_network(ROWS["lite"])
    weights = {name: parameter.asnumpy() for name, parameter in model_parameters(network).items()}
    info = ModelInfo("narrow", 7, preprocess=Preprocess.for_image_size(SIZE))
    model = build_model(fold_batch_norm(weights, info.norm_eps), info, np.float16)
    images = np.random.default_rng(4).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    expected = network(Tensor(images)).asnumpy()
    (logits,) = onnxruntime.InferenceSession(model.SerializeToString()).run(["logits"], {"image": images})
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
