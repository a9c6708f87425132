"""The end of an ONNX file's network, for Grad-CAM: its last feature maps and the weights of its dense layer."""

from __future__ import annotations

import numpy as np

from src.common.cli import RunError
from src.evaluation.grad_cam import Head
from src.inference.model import OnnxModel
from src.inference.session import create_session, run_session

# From the logits backwards to the mean: what leaves each feature where it is.
PASSED = ("Flatten", "Reshape", "Squeeze", "Identity", "Dropout", "Cast", "QuantizeLinear", "DequantizeLinear")
MEANS = ("GlobalAveragePool", "ReduceMean")
MAPS, WEIGHTS = "grad_cam_maps", "grad_cam_weights"


def onnx_head(model: OnnxModel) -> Head | str:
    """The end of a file's network, or a sentence that says why there are no heat maps.

    Needs the package `onnx`. The file is opened once more with two further outputs: what is averaged over the positions
    before the dense layer, and that layer's weights, which may be computed from smaller numbers.
    """
    try:
        import onnx
    except ImportError:
        return "heat maps need the package onnx, which is not installed: pip install onnx"
    try:
        graph = onnx.load(model.path)
        tensors = find_head(graph.graph, model.output_name)
    except Exception as error:
        # What protobuf raises for files that ONNX Runtime takes and this package does not, such as those of 2 GB.
        return f"heat maps need a file that the package onnx can read ({error})"
    if tensors is None:
        return "heat maps need a network that ends in a mean over the positions and one dense layer"
    maps, weights, transposed = tensors
    for name, tensor in ((MAPS, maps), (WEIGHTS, weights)):
        # Under names of their own: a constant cannot be an output by itself.
        graph.graph.node.append(onnx.helper.make_node("Identity", [tensor], [name]))
        graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    try:
        session = create_session(model.path, "CPU", None, 0, graph.SerializeToString())
        found = run_session(session, model.path, model.input_name, WEIGHTS, zeros(model))
        matrix = found if transposed else found.T
        channels = run_session(session, model.path, model.input_name, MAPS, zeros(model)).shape
    except (RunError, ValueError) as error:
        return f"heat maps could not be computed ({error})"
    if len(channels) != 4 or matrix.shape != (model.info.num_classes, channels[1]):
        return "heat maps need feature maps of shape (N, channels, H, W), and a weight for each channel and class"

    def features(crops: np.ndarray) -> np.ndarray:
        size = model.fixed_batch or len(crops)
        parts = []
        for start in range(0, len(crops), size):
            chosen = crops[start : start + size]
            batch = model.new_batch(len(chosen))
            for row, crop in zip(batch, chosen):
                model.fill_row(row, crop)
            parts.append(run_session(session, model.path, model.input_name, MAPS, batch)[: len(chosen)])
        return np.concatenate(parts).astype(np.float32)

    return Head(features, matrix)


def zeros(model: OnnxModel) -> np.ndarray:
    """A batch of one black image, or of as many as the file wants."""
    batch = model.new_batch(1)
    batch[:] = 0
    return batch


def find_head(graph, output: str) -> tuple[str, str, bool] | None:
    """The feature maps and the dense weights behind an output, by the names of their tensors.

    Args:
        graph: of the package onnx.
        output: name of the logits.

    Returns:
        (maps, weights, whether the weights have the shape (classes, channels) and not its transpose), or None.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = {"", *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
    weights = None
    while output in makers:
        node = makers[output]
        varying = [name for name in node.input if name not in constants]
        if len(varying) != 1:
            return None
        output = varying[0]
        if node.op_type in ("Gemm", "MatMul") and weights is None and node.input[0] == output:
            settings = {attribute.name: attribute.i for attribute in node.attribute}
            if settings.get("transA"):
                return None
            weights = node.input[1], bool(settings.get("transB"))
        elif node.op_type in MEANS and weights:
            return output, *weights
        elif node.op_type not in PASSED and not (node.op_type == "Add" and weights is None):
            return None
    return None
