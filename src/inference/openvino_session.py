"""A file by OpenVINO on the CPU: it computes swish in float within its int8 convolutions.

ONNX Runtime takes as long for swish in int8 as int8 saves elsewhere.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Sequence

import numpy as np

from src.common.cli import RunError
from src.inference.session import runtime_sentence

INT8_READERS = frozenset(("Convolution", "GroupConvolution", "MatMul", "Add", "Result"))
"""What OpenVINO computes in int8, with what follows it in float; and the model's outputs, which stay as they are."""
SETTINGS = {
    "PERFORMANCE_HINT": "THROUGHPUT",
    # Decoding runs on the same cores, and bfloat16 would give other logits.
    "ENABLE_CPU_PINNING": False,
    "INFERENCE_PRECISION_HINT": "f32",
}
DEQUANTISATION = ("Convert", "Subtract", "Multiply")
MANY_STEPS = 32
"""More quantisations than these between other operators: swish is quantised, not only residuals and pooling."""


class OpenVinoSession:
    """What `session.run_session` needs of a session.

    Args:
        path: the ONNX file.
        output: the only output that is computed.
        threads: that one call uses.
        calls: how many are made at once, each by a thread of its own.

    Attributes:
        steps_left_out: see `leave_float`.

    Raises:
        RunError: if OpenVINO cannot read the file.
    """

    def __init__(self, path: str, output: str, threads: int, calls: int):
        import openvino

        self.core = openvino.Core()
        try:
            model = self.core.read_model(path)
            self.steps_left_out = leave_float(model)
            self.model = openvino.Model([model.output(output)], model.get_parameters())
        except Exception as error:
            # OpenVINO's exceptions are RuntimeErrors, but also those of its bindings.
            raise RunError(f"{path}: OpenVINO cannot use it: {runtime_sentence(error).splitlines()[-1]}") from None
        self.settings = {**SETTINGS, "NUM_STREAMS": calls, "INFERENCE_NUM_THREADS": threads * calls}
        self.compiled: dict[tuple[int, ...], object] = {}
        self.lock = threading.Lock()
        self.own = threading.local()

    def run(self, outputs: Sequence[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The one output for the one input, whose shape the network is compiled for: one of any shape is slower."""
        (batch,) = inputs.values()
        with self.lock:
            if batch.shape not in self.compiled:
                self.model.reshape(list(batch.shape))
                self.compiled[batch.shape] = self.core.compile_model(self.model, "CPU", self.settings)
        requests = self.own.__dict__.setdefault("requests", {})
        if batch.shape not in requests:
            requests[batch.shape] = self.compiled[batch.shape].create_infer_request()
        return [requests[batch.shape].infer([batch], share_inputs=True)[0]]


def is_installed() -> bool:
    """Whether there is OpenVINO; it is not imported, which takes time."""
    return importlib.util.find_spec("openvino") is not None


def leave_float(model) -> int:
    """Take out of an OpenVINO model each step to int8 and back that nothing of INT8_READERS reads.

    The network becomes faster and a little more exact.

    Returns:
        int, the number of inputs that are float now.
    """
    count = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        for reader in list(dequantised(node).output(0).get_target_inputs()):
            if reader.get_node().get_type_name() not in INT8_READERS:
                reader.replace_source_output(node.input_value(0))
                count += 1
    return count


def dequantised(node):
    """The last node of a quantisation and its dequantisation; the first one itself where others read between them."""
    last = node
    while last.get_type_name() != "Multiply":
        readers = list(last.output(0).get_target_inputs())
        if len(readers) != 1 or readers[0].get_node().get_type_name() not in DEQUANTISATION:
            return node
        last = readers[0].get_node()
    return last
