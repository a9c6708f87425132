"""A labelled folder of photos through each program of this project: logits, and images/s."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cpp_inference import run
from benchmarks.labelled_photos import BATCH, Outcome
from src.common.cli import RunError
from src.common.machine import count_cores
from src.data.batches import Loading
from src.data.listing import ImageFolder
from src.dataset import create_dataset
from src.evaluation.metrics import Score
from src.export.mindir_file import open_mindir, run_batches
from src.export.plan import normalise_all
from src.export.verification import read_pixels
from src.inference.classification import classify
from src.inference.model import open_model
from src.inference.result_files import read_result, result_names
from src.inference.settings import GivenSettings
from src.runtime.device import prepare_device
from src.weights.checkpoint import read_checkpoint
from src.weights.model_info import METADATA_KEY, ModelInfo
from src.weights.network import build_network, load_weights

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run_script(name: str, *flags: str) -> str:
    """Standard output of a Python script of this repository."""
    return run([sys.executable, os.path.join(ROOT, name), *flags])


def check_score(program: str, logits: np.ndarray, labels: np.ndarray, top_1: float, top_5: float) -> None:
    """Refuse a program's score that is not that of its logits.

    Raises:
        RunError: naming both.
    """
    score = Score()
    score.add(logits, labels, 0.0)
    if (score.top_1_accuracy, score.top_5_accuracy) != (top_1, top_5):
        raise RunError(
            f"{program} says top-1 {top_1} and top-5 {top_5}, its logits {score.top_1_accuracy}, {score.top_5_accuracy}"
        )


def run_eval(checkpoint: str, folder: ImageFolder, crops: np.ndarray) -> Outcome:
    """eval.py on its own, and for the logits its network and its batches in this process.

    Raises:
        RunError: if the batches do not hold the crops, or the scores differ.
    """
    printed = run_script("eval.py", "--dataset_path", folder.root, "--checkpoint_path", checkpoint)
    result = ast.literal_eval(re.search(r"^result: (\{.*?\}) ckpt= ", printed, re.MULTILINE)[1])
    device, loaded = prepare_device(), read_checkpoint(checkpoint)
    network = build_network(loaded.info)
    if device.kernels:
        device.kernels.install(network)
    load_weights(network, loaded.weights)
    network.set_train(False)
    run_batches(network, normalise_all(crops[:BATCH], loaded.info), BATCH)  # compiles it
    logits, done = [], 0
    loading = Loading(loaded.info.preprocess)
    batches = create_dataset(folder, False, BATCH, loading=loading).create_tuple_iterator(
        num_epochs=1, output_numpy=True
    )
    seconds, began = 0.0, time.perf_counter()
    for images, _ in batches:
        logits.append(run_batches(network, images, BATCH))
        seconds += time.perf_counter() - began
        if not np.array_equal(images, normalise_all(crops[done : done + len(images)], loaded.info)):
            raise RunError(f"eval.py reads other pixels than infer_onnx.py, among those from {folder.paths[done]}")
        done, began = done + len(images), time.perf_counter()
    logits = np.concatenate(logits)
    check_score("eval.py", logits, folder.labels, result["Top_1_Acc"], result["Top_5_Acc"])
    return Outcome(logits, done / seconds)


def run_infer_onnx(path: str, folder: ImageFolder) -> Outcome:
    """infer_onnx.py on its own, and for the logits what it calls in this process."""
    printed = json.loads(run_script("infer_onnx.py", "--onnx_path", path, "--dataset_path", folder.root, "--json"))
    logits = classify_here(path, folder)
    check_score("infer_onnx.py", logits, folder.labels, printed["top_1"], printed["top_5"])
    return Outcome(logits, printed["images_per_second"])


def classify_here(path: str, folder: ImageFolder) -> np.ndarray:
    """A file's outputs for all photos, by what infer_onnx.py calls."""
    model = open_model(path, GivenSettings(), "CPU")
    return np.concatenate([batch.logits for batch in classify(model, folder, 1, count_cores())])


def run_mindir(path: str, info: ModelInfo, crops: np.ndarray, batch_size: int) -> Outcome:
    """A MINDIR file in MindSpore, from crops."""
    prepare_device()
    network = open_mindir(path, batch_size)
    network(normalise_all(crops[:batch_size], info))  # compiles it
    began = time.perf_counter()
    logits = [network(normalise_all(crops[i : i + BATCH], info)) for i in range(0, len(crops), BATCH)]
    return Outcome(np.concatenate(logits), len(crops) / (time.perf_counter() - began))


def run_program(path: str, folder: ImageFolder, work: str) -> Outcome:
    """ascend310_infer through its script, on the CPU."""
    os.makedirs(work, exist_ok=True)
    environment = {**os.environ, "PYTHON": sys.executable, "DEVICE_TARGET": "CPU"}
    run(["bash", os.path.join(ROOT, "scripts", "run_infer_310.sh"), path, folder.root], cwd=work, env=environment)
    results = os.path.join(work, "result_Files")
    logits = np.stack([read_result(os.path.join(results, name)) for name in result_names(folder.paths)])
    with open(os.path.join(work, "time_Result", "test_perform_static.json"), encoding="utf-8") as file:
        return Outcome(logits, json.load(file)["images_per_second"])


def write_sums(path: str, info: ModelInfo) -> None:
    """An ONNX file that gives, in place of logits, 1000 weighted sums of an image's pixels, exact in float32."""
    size, classes = info.preprocess.image_size, info.num_classes
    pixels = size * size * 3
    group = -(-pixels // classes)
    constants = {
        "flat": np.array([0, pixels]),
        "pads": np.array([0, 0, 0, group * classes - pixels]),
        "groups": np.array([0, classes, group]),
        "weights": np.arange(1, group + 1, dtype=np.float32),
        "axis": np.array([2]),
    }
    nodes = (
        ("Cast", ["image"], "float", {"to": TensorProto.FLOAT}),
        ("Reshape", ["float", "flat"], "row", {}),
        ("Pad", ["row", "pads"], "padded", {}),
        ("Reshape", ["padded", "groups"], "grouped", {}),
        ("Mul", ["grouped", "weights"], "weighted", {}),
        ("ReduceSum", ["weighted", "axis"], "logits", {"keepdims": 0}),
    )
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in nodes],
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", size, size, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {METADATA_KEY: info.to_json()})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def check_same_bytes(info: ModelInfo, folder: ImageFolder, crops: np.ndarray, work: str) -> None:
    """Refuse programs that do not give the network the same pixels.

    Raises:
        RunError: naming the program and a photo.
    """
    path = os.path.join(work, "sums.onnx")
    write_sums(path, info)
    group = -(-crops[0].size // info.num_classes)
    padding = (0, group * info.num_classes - crops[0].size)
    rows = (np.pad(crop.ravel(), padding).reshape(info.num_classes, group) for crop in crops)
    expected = np.stack([row @ np.arange(1.0, group + 1) for row in rows])
    for program, found in (
        ("infer_onnx.py", classify_here(path, folder)),
        ("ascend310_infer", run_program(path, folder, os.path.join(work, "sums")).logits),
    ):
        for index in np.flatnonzero((found != expected).any(1))[:1]:
            raise RunError(f"{program} gives the network other pixels of {folder.paths[index]}")


def read_crops(folder: ImageFolder, info: ModelInfo) -> np.ndarray:
    """The photos as infer_onnx.py and export.py prepare them: uint8 of shape (N, S, S, 3)."""
    return read_pixels([folder.full_path(index) for index in range(len(folder))], info.preprocess)
