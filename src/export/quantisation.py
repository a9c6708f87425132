"""A float ONNX model of the network to int8, by ONNX Runtime's static quantisation. Does without MindSpore.

Weights become int8 with a scale for each output channel, activations uint8 with a scale for each tensor, both as pairs
of QuantizeLinear and DequantizeLinear (QDQ), which every runtime understands. What was found on photos, on networks
trained on the digits and on random ones (benchmarks/quantisation.py --other_ways repeats it on a checkpoint):

- The stem and the first depthwise convolution stay in float, with their swish: at the largest resolution and with so
  few channels int8 is no faster there than float.
- All else is int8, swish and squeeze-and-excitation too. Leaving either in float is hardly more accurate, and slower,
  because every change between float and int8 is a pass over the activations.
- ReLU6 is no operator any more. The numbers of its output begin at 0 and end at 6 or before; a convolution that rounds
  to them has clipped. As an operator on its own it costs two passes and a second rounding.
- Rounding the weights moves the mean of a channel, by the same for every image, and such errors add up over the layers.
  Half of int8's noise in the logits is of this kind; `correct_biases` takes it out.
- The logits come out of the last product as float. As uint8 they would have 256 levels, and classes would tie.
- Ranges are the smallest and largest values seen. Percentiles are hardly better (99.999) or much worse (99.9), since a
  trained network relies on its few large activations. Symmetric ranges waste half of the 8 bits: swish is never below
  -0.28.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from src.common.files import scratch_folder
from src.common.machine import cpu_flags
from src.export.bias_correction import correct_biases, open_model_proto, split
from src.export.verification import centre

# Everything between images and features; preprocessing is of other types. The softmax stays in float, but ONNX Runtime
# 1.19 (that of Python 3.9) fails where its range is not measured.
OPERATORS = ("Conv", "Clip", "Sigmoid", "Mul", "Add", "GlobalAveragePool", "Flatten", "Gemm", "Softmax")
FLOAT_LAYERS = r"stem\b|blocks\.0\.depthwise\b"


class Batches(CalibrationDataReader):
    """Calibration images as ONNX Runtime asks for them.

    Args:
        inputs: of the model, shape (N, ...).
    """

    def __init__(self, inputs: np.ndarray):
        self.batches = split(inputs)

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def quantise_best(model: ModelProto, inputs: np.ndarray, reduce_range: bool = False) -> tuple[ModelProto, str]:
    """A model in int8, with its biases corrected unless that makes it worse, and what was measured as a sentence.

    Args:
        model, inputs, reduce_range: as in `quantise`; the ways are measured on the same images.
    """
    rounded = quantise(model, inputs, reduce_range)
    ways = {"as rounded": rounded, "biases corrected": correct_biases(rounded, model, inputs)}
    full = run_model(model, inputs)
    logits = {name: run_model(way, inputs) for name, way in ways.items()}
    noise = {name: measure_noise(full, found) for name, found in logits.items()}
    best = min(noise, key=noise.__getitem__)
    same = int((logits[best].argmax(1) == full.argmax(1)).sum())
    figures = ", ".join(f"{name} {100 * value:.1f}%" for name, value in noise.items())
    return ways[best], f"{best}; noise in the logits on these images: {figures}; same class for {same} of {len(full)}"


def run_model(model: ModelProto, inputs: np.ndarray) -> np.ndarray:
    """Logits of shape (N, C), in small batches on the CPU."""
    session = open_model_proto(model)
    return np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in split(inputs)])


def measure_noise(full: np.ndarray, logits: np.ndarray) -> float:
    """Root mean square of the difference of two arrays of logits, by the spread of the first.

    Numbers that all classes of an image share are left out: they change no probability.
    """
    apart = centre(full)
    return float(np.sqrt(np.square(centre(logits) - apart).mean()) / max(apart.std(), np.finfo(np.float64).tiny))


def quantise(
    model: ModelProto, inputs: np.ndarray, reduce_range: bool = False, float_layers: str = FLOAT_LAYERS, **settings
) -> ModelProto:
    """Quantise a model of `onnx_graph.build_model` with folded batch norms.

    Args:
        model: float32.
        inputs: images that the ranges of the activations are taken from, as the model's input wants them.
        reduce_range: weights of 7 bits. CPUs without VNNI add two products of 8 bits in a register of 16, which can
            overflow.
        float_layers: pattern of the layers' names that stay in float.
        settings: of `quantize_static`, in place of those that are used here.

    Returns:
        ModelProto with the same inputs and outputs.
    """
    settings = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.MinMax,
        "op_types_to_quantize": list(OPERATORS),
        "nodes_to_exclude": [
            node.name for node in model.graph.node if node.op_type == "Softmax" or re.match(float_layers, node.name)
        ],
        "extra_options": {"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        **settings,
    }
    with scratch_folder() as folder, quiet_root_logger():
        # Given the model itself, ONNX Runtime would move its weights out of it into a file.
        paths = [os.path.join(folder, name) for name in ("float.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        quantize_static(*paths, Batches(inputs), reduce_range=reduce_range, **settings)
        quantised = onnx.load(paths[1])
    quantised.ir_version = model.ir_version
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


@contextlib.contextmanager
def quiet_root_logger() -> Iterator[None]:
    """Without ONNX Runtime's advice to optimise the model first: the batch norms are folded."""
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.getLogger().setLevel(level)


def cpu_needs_reduced_range(flags: frozenset[str] | None = None) -> bool:
    """Whether this CPU would overflow in products of uint8 and full int8: x86 without VNNI.

    Args:
        flags: what the processor can do, see `machine.cpu_flags`; None takes this machine's.
    """
    flags = cpu_flags() if flags is None else frozenset(flags)
    return "sse2" in flags and not flags & {"avx512_vnni", "avx_vnni"}
