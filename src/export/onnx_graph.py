"""The network as an ONNX graph, built from the family's table and a checkpoint's weights. Does without MindSpore.

MindSpore's own exporter writes opset 11, a fixed batch and numbered names, and its newer one fails on batch norm. The
graph is small enough to be written down: tensors have the network's names, the batch is free, the opset is chosen, and
nothing depends on MindSpore's release. That it computes what the network computes is checked at every export.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from src.common.cli import RunError
from src.export.plan import Format
from src.models.family import VARIANTS
from src.weights.model_info import ModelInfo
from src.weights.names import Weights

BATCH = "N"
LARGEST_FLOAT16 = 65504.0


class Graph:
    """Nodes and constants in the order in which they are added.

    Args:
        weights: parameters by name, float32.
        dtype: np.float32 or np.float16, in which the weights are stored.
    """

    def __init__(self, weights: Weights, dtype: type):
        self.weights = weights
        self.dtype = dtype
        self.nodes: list = []
        self.constants: dict[str, TensorProto] = {}

    def node(self, operator: str, inputs: list[str], output: str, **attributes) -> str:
        """Add a node that is named like its output; returns that name."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | None = None) -> str:
        """Add a constant as it is, or the weight of that name in the graph's type; returns the name.

        Raises:
            RunError: if a weight does not fit the type.
        """
        if value is None:
            value = self.weights[name]
            if self.dtype == np.float16 and not np.abs(value).max() <= LARGEST_FLOAT16:
                raise RunError(f"{name} holds numbers up to {np.abs(value).max():.3g}, more than float16 can")
            value = value.astype(self.dtype)
        self.constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def optional_weight(self, name: str) -> list[str]:
        """The weight's name in a list, which is empty where the network has no such weight."""
        return [self.constant(name)] if name in self.weights else []

    def as_float32(self, x: str) -> str:
        """The same numbers in float32; nothing is added where they are."""
        return x if self.dtype == np.float32 else self.node("Cast", [x], f"{x}/float32", to=TensorProto.FLOAT)


def build_model(
    weights: Weights,
    info: ModelInfo,
    dtype: type = np.float32,
    include_preprocessing: bool = False,
    include_softmax: bool = False,
    opset: int = Format.opset,
) -> ModelProto:
    """The network of these weights as a checked ONNX model.

    Args:
        weights: parameters under the network's names, with their batch norms, or as `fold_batch_norm` gives them.
        info: variant, padding, epsilon, image size and class count.
        dtype: np.float32 or np.float16, in which the network computes; input, classifier and output are float32 all the
            same, because logits may be large and lie close together.
        include_preprocessing: take uint8 pixels in the layout (N, S, S, 3) and normalise them in the graph.
        include_softmax: give a second output, `probabilities`.
        opset: from 11 on.

    Returns:
        ModelProto with the input `image`, float32 of shape (N, 3, S, S) unless `include_preprocessing`, and the output
        `logits`, float32 of shape (N, num_classes).

    Raises:
        RunError: if a weight does not fit `dtype`.
    """
    size = info.preprocess.image_size
    graph = Graph(weights, dtype)
    x = add_preprocessing(graph, info) if include_preprocessing else "image"
    if dtype == np.float16:
        x = graph.node("Cast", [x], f"{x}/float16", to=TensorProto.FLOAT16)
    add_classifier(graph, add_features(graph, info, x))
    outputs = ["logits"]
    if include_softmax:
        outputs.append(graph.node("Softmax", ["logits"], "probabilities", axis=1))
    image_type, shape = (
        (TensorProto.UINT8, (size, size, 3)) if include_preprocessing else (TensorProto.FLOAT, (3, size, size))
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            f"efficientnet_{info.variant}",
            [helper.make_tensor_value_info("image", image_type, [BATCH, *shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, info.num_classes]) for name in outputs],
            list(graph.constants.values()),
        ),
        opset_imports=opsets,
        # The oldest file format that carries the opset, for the sake of older runtimes.
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    checker.check_model(model, full_check=True)
    return model


def add_preprocessing(graph: Graph, info: ModelInfo) -> str:
    """`(pixel - mean) / std` in float32 and channels first, exactly as `preprocess.normalise` computes it."""
    planes = graph.node("Transpose", ["image"], "preprocess/planes", perm=[0, 3, 1, 2])
    pixels = graph.node("Cast", [planes], "preprocess/pixels", to=TensorProto.FLOAT)
    mean, std = (
        graph.constant(f"preprocess.{name}", np.asarray(getattr(info.preprocess, name), np.float32).reshape(1, 3, 1, 1))
        for name in ("mean", "std")
    )
    centred = graph.node("Sub", [pixels, mean], "preprocess/centred")
    return graph.node("Div", [centred, std], "preprocess")


def add_features(graph: Graph, info: ModelInfo, x: str) -> str:
    """Stem, blocks, head and the mean over positions: (N, 3, S, S) to (N, channels)."""
    architecture = VARIANTS[info.variant]
    convolve = functools.partial(add_convolution, graph, info)
    activation = architecture.activation
    x, size = convolve("stem", x, info.preprocess.image_size, stride=2, activation=activation)
    for i, block in enumerate(architecture.blocks):
        name, shortcut, hidden = f"blocks.{i}", x, block.hidden_channels
        if block.expands:
            x, size = convolve(f"{name}.expand", x, size, activation=activation)
        x, size = convolve(f"{name}.depthwise", x, size, block.stride, hidden, activation)
        if block.squeezed_channels:
            x = add_squeeze_excitation(graph, f"{name}.se", x, activation)
        x, size = convolve(f"{name}.project", x, size)
        if block.has_residual:
            x = graph.node("Add", [x, shortcut], name)
    x, size = convolve("head", x, size, activation=activation)
    return graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "mean")], "features", axis=1)


def add_classifier(graph: Graph, features: str) -> str:
    """The dense layer: (N, channels) to `logits`."""
    dense = [features, graph.constant("classifier.weight"), graph.constant("classifier.bias")]
    return graph.node("Gemm", [graph.as_float32(x) for x in dense], "logits", transB=1)


def add_convolution(
    graph: Graph,
    info: ModelInfo,
    layer: str,
    x: str,
    size: int,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = None,
) -> tuple[str, int]:
    """Convolution, batch norm unless it is folded, and an activation where one is given.

    Returns:
        Name of the output, and its side in pixels for an input of `size` pixels.
    """
    name, norm = f"{layer}.conv", f"{layer}.norm"
    kernel = graph.weights[f"{name}.weight"].shape[-1]
    x = graph.node(
        "Conv",
        [x, graph.constant(f"{name}.weight"), *graph.optional_weight(f"{name}.bias")],
        name,
        kernel_shape=[kernel, kernel],
        strides=[stride, stride],
        group=groups,
        pads=convolution_pads(info.padding, kernel, stride, size),
    )
    if f"{norm}.gamma" in graph.weights:
        parts = [graph.constant(f"{norm}.{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")]
        x = graph.node("BatchNormalization", [x, *parts], norm, epsilon=info.norm_eps)
    return add_activation(graph, x, layer, activation) if activation else x, math.ceil(size / stride)


def convolution_pads(padding: str, kernel: int, stride: int, size: int) -> list[int]:
    """ONNX's padding of a convolution: pixels at the top, left, bottom and right.

    "same" pads as little as gives ceil(size / stride) pixels, the odd one at the bottom and the right; "symmetric" pads
    (kernel - 1) / 2 everywhere.
    """
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size) if padding == "same" else kernel - 1
    return [total // 2, total // 2, total - total // 2, total - total // 2]


def add_activation(graph: Graph, x: str, output: str, activation: str) -> str:
    """The activation of an `Architecture`: "swish", which is x * sigmoid(x), or "relu6"."""
    if activation == "swish":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{output}.sigmoid")], output)
    bounds = [graph.constant(f"{activation}.{bound}", np.array(bound, graph.dtype)) for bound in (0, 6)]
    return graph.node("Clip", [x, *bounds], output)


def add_squeeze_excitation(graph: Graph, layer: str, x: str, activation: str) -> str:
    """Scale each channel by a gate computed from the means of all channels."""
    y = graph.node("GlobalAveragePool", [x], f"{layer}.mean")
    for part in ("reduce", "expand"):
        name = f"{layer}.{part}"
        y = graph.node(
            "Conv", [y, graph.constant(f"{name}.weight"), graph.constant(f"{name}.bias")], name, kernel_shape=[1, 1]
        )
        if part == "reduce":
            y = add_activation(graph, y, f"{name}.{activation}", activation)
    return graph.node("Mul", [x, graph.node("Sigmoid", [y], f"{layer}.gate")], layer)
