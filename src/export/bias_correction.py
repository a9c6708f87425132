"""Int8's biases, corrected for what rounding the weights did. Does without MindSpore.

A layer's rounded weights Q differ from its weights W, so the mean of its output over all images differs by that of
(Q - W) x. The rounding of activations differs from pixel to pixel, but this error is nearly the same for every image,
and the next layers add their own. Subtracted from the bias it is gone. Nagel et al. 2019 (arXiv:1906.04721), section
4.2; here the mean is measured on the calibration images and not derived from the batch norms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from src.inference.session import FATAL_ONLY

LAYERS = ("Conv", "Gemm")
BATCH = 4


def correct_biases(quantised: ModelProto, model: ModelProto, inputs: np.ndarray) -> ModelProto:
    """An int8 model with other biases.

    Args:
        quantised: the model in int8 as `quantise_static` writes it, in QDQ form.
        model: float32, with nodes of the same names.
        inputs: images to measure on, as the model's input wants them, shape (N, ...).

    Returns:
        ModelProto, a copy.
    """
    corrected = ModelProto()
    corrected.CopyFrom(quantised)
    constants = {constant.name: constant for constant in corrected.graph.initializer}
    layers = {node.name: (weight, bias) for node, weight, bias in quantised_layers(corrected)}
    errors = {name: dequantise(weight, constants) for name, (weight, _) in layers.items()}
    for name, error in measure_means(model, errors, inputs).items():
        bias = layers[name][1]
        values, scale = (numpy_helper.to_array(constants[part]) for part in bias.input[:2])
        # The sum may leave int32's range no more than the bias itself did.
        steps = np.round(values - error / scale).clip(-(2**31), 2**31 - 1)
        constants[bias.input[0]].CopyFrom(numpy_helper.from_array(steps.astype(np.int32), bias.input[0]))
    return corrected


def quantised_layers(quantised: ModelProto) -> Iterator[tuple[NodeProto, NodeProto, NodeProto]]:
    """Each layer whose weight and bias are stored as integers, with the two nodes that make floats of them."""
    producers = {output: node for node in quantised.graph.node for output in node.output}
    for node in quantised.graph.node:
        if node.op_type in LAYERS and len(node.input) == 3:
            weight, bias = (producers.get(name) for name in node.input[1:])
            if weight is not None and bias is not None:
                yield node, weight, bias


def dequantise(node: NodeProto, constants: dict[str, TensorProto]) -> np.ndarray:
    """What a DequantizeLinear makes of a constant, channels first: float32 of the constant's shape."""
    values, scale, zero = (numpy_helper.to_array(constants[name]) for name in node.input)
    across = (-1,) + (1,) * (values.ndim - 1) if scale.ndim else ()
    return (values.astype(np.float32) - zero.astype(np.float32).reshape(across)) * scale.reshape(across)


def measure_means(model: ModelProto, rounded: dict[str, np.ndarray], inputs: np.ndarray) -> dict[str, np.ndarray]:
    """How far rounded weights move the mean of each channel of a layer's output, the layer's input being as in float.

    Args:
        model: float32.
        rounded: weights by the name of their node.
        inputs: images, shape (N, ...).

    Returns:
        dict of float64 arrays of shape (channels,), by the same names.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    weights = {constant.name: constant for constant in graph.initializer}
    del graph.output[:]
    for node in list(graph.node):
        if node.name in rounded:
            # The layer once more with the difference of the weights alone; a mean over images and pixels follows.
            weight, error, mean = node.input[1], f"{node.name}/error", f"{node.name}/mean"
            difference = rounded[node.name] - numpy_helper.to_array(weights[weight])
            graph.initializer.append(numpy_helper.from_array(difference, f"{weight}/error"))
            layer = graph.node.add()
            layer.CopyFrom(node)
            layer.name, layer.input[:], layer.output[:] = error, [node.input[0], f"{weight}/error"], [error]
            axes = [0, *range(2, difference.ndim)]
            graph.node.append(helper.make_node("ReduceMean", [error], [mean], axes=axes, keepdims=0))
            graph.output.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, None))
    names = [output.name.removesuffix("/mean") for output in graph.output]
    means = {name: np.float64(0) for name in names}
    session = open_model_proto(probe)
    for batch in split(inputs):
        for name, mean in zip(names, session.run(None, {"image": batch})):
            means[name] = means[name] + mean.astype(np.float64) * (len(batch) / len(inputs))
    return means


def split(inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Images in the batches that calibration takes; larger ones need more memory, and are no faster."""
    return (inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH))


def open_model_proto(model: ModelProto) -> onnxruntime.InferenceSession:
    """A session of a model in memory, on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
