"""Builds ascend310_infer for tests, and makes the folders, models and images that they run it on."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from src.images.preprocess import Preprocess, load_image
from src.weights.model_info import ModelInfo

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "ascend310_infer"


def build(name: str, *options: str, openvino: bool = True) -> tuple[Path, Path]:
    """Build the doubles of MindSpore Lite and of AscendCL and the program against them, only what has changed.

    Args:
        name: of the build folder, for builds with the same options.
        options: of CMake.
        openvino: whether that engine is wanted, too.

    Returns:
        The build's folder and the package of MindSpore Lite's double, which is LITE_HOME.
    """
    folder = SOURCE / f"build-{name}"
    shared = [option for option in options if option.startswith("-DSANITIZE")]
    if openvino and has_old_strings():
        shared.append("-DCMAKE_CXX_FLAGS=-D_GLIBCXX_USE_CXX11_ABI=0")
    for double in ("lite_double", "acl_double"):
        check(["cmake", "-S", ROOT / "tests/cpp" / double, "-B", folder / double, *shared])
        check(["cmake", "--build", folder / double])
    environment = {**os.environ, **build_environment(folder), "WITH_OPENVINO": "ON" if openvino else "OFF"}
    check(["sh", SOURCE / "build.sh", "-DWITH_TESTS=ON", *options], env=environment)
    return folder, folder / "lite_double" / "package"


def has_old_strings() -> bool:
    """Whether OpenVINO's wheel, and so the program with it, has C++'s old strings, as those of glibc 2.17 have."""
    config = Path(importlib.util.find_spec("openvino").origin).parent / "cmake" / "OpenVINOConfig.cmake"
    return 'OpenVINO_GLIBCXX_USE_CXX11_ABI "0"' in config.read_text()


def build_environment(folder: Path) -> dict[str, str]:
    """What makes build.sh reuse a build of these tests."""
    lite, cann = (str(folder / double / "package") for double in ("lite_double", "acl_double"))
    return {"LITE_HOME": lite, "ASCEND_HOME_PATH": cann, "BUILD_DIR": str(folder), "PYTHON": sys.executable}


def check(command: list, **options) -> None:
    """Run a command that must succeed; its output is in the exception's message."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def write_double_model(
    path: Path, info: ModelInfo, batch: int = 4, kind: str = "float32", channels_last: bool = False, **settings
) -> None:
    """Write a model file of a double, AscendCL's for .om, and the description beside it.

    Args:
        kind: of the input; the description of an OM that takes uint8 says that AIPP normalises.
        settings: further lines of the file, see the double.
    """
    om, size = path.suffix == ".om", info.preprocess.image_size
    last = channels_last or kind == "uint8"
    shape = f"{batch} {size} {size} 3" if last else f"{batch} 3 {size} {size}"
    lines = ["acl_double" if om else "lite_double", f"input {kind} {shape}", f"classes {info.num_classes}"]
    lines += [f"{name} {value}" for name, value in settings.items()]
    path.write_text("\n".join(lines) + "\n")
    aipp = {"aipp": True} if om and kind == "uint8" else {}
    path.with_suffix(".json").write_text(json.dumps({**json.loads(info.to_json()), **aipp}))


def double_logits(values: np.ndarray, classes: int) -> np.ndarray:
    """What the double computes for an image's values in the order of memory: float64 array of shape (classes,)."""
    position = np.arange(values.size)
    weights = ((31 * position[:, None] + 17 * np.arange(classes)) % 101 - 50) / 1000
    return values.reshape(-1).astype(np.float64) @ weights


def write_onnx_model(
    path: Path, info: ModelInfo, batch: int | None = None, kind: str = "float32", metadata: bool = True, softmax=False
) -> None:
    """Write an ONNX model of one convolution as large as the image, with weights that tell all pixels apart.

    Args:
        kind: of the input: "float32", "float16" (so are the logits then) or "uint8", which is (N, S, S, 3).
        softmax: whether `probabilities` come before the logits.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size, classes = info.preprocess.image_size, info.num_classes
    half = kind == "float16"
    real = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weights = np.random.RandomState(3).normal(0, 0.05, (classes, 3, size, size)).astype("f2" if half else "f4")
    nodes = [
        helper.make_node("Conv", ["planes", "weights"], ["map"]),
        helper.make_node("Flatten", ["map"], ["logits"], axis=1),
    ]
    if kind == "uint8":
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, [batch or "N", size, size, 3])
        nodes.insert(0, helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT))
        nodes.insert(1, helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]))
    else:
        image = helper.make_tensor_value_info("image", real, [batch or "N", 3, size, size])
        nodes.insert(0, helper.make_node("Identity", ["image"], ["planes"]))
    outputs = [helper.make_tensor_value_info("logits", real, [batch or "N", classes])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"]))
        outputs.insert(0, helper.make_tensor_value_info("probabilities", real, [batch or "N", classes]))
    graph = helper.make_graph(nodes, "test", [image], outputs, [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata:
        helper.set_model_props(model, {"efficientnet": info.to_json(), "variant": info.variant})
    onnx.save(model, path)


def write_int8_model(path: Path, info: ModelInfo, inputs: np.ndarray) -> Path:
    """Write two convolutions with swish between them in int8, which no processor overflows, and in float32 beside it.

    Args:
        inputs: prepared images to calibrate with.

    Returns:
        The path of the float32 file.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from src.export.quantisation import quantise

    size, classes, generator = info.preprocess.image_size, info.num_classes, np.random.RandomState(3)
    weights = {"first": (8, 3, 3, 3), "second": (classes, 8, size, size)}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["x"], "expand", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["x"], ["gate"], "gate"),
        helper.make_node("Mul", ["x", "gate"], ["swish"], "swish"),
        helper.make_node("Conv", ["swish", "second"], ["map"], "project"),
        helper.make_node("Flatten", ["map"], ["logits"], "logits", axis=1),
    ]
    constants = [
        numpy_helper.from_array(generator.normal(0, 0.2, shape).astype("f4"), n) for n, shape in weights.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
    graph = helper.make_graph(nodes, "test", [image], [logits], constants)
    full = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    full_path = path.with_name(f"full_{path.name}")
    for model, file, precision in ((quantise(full, inputs, True), path, "int8"), (full, full_path, "fp32")):
        helper.set_model_props(model, {"efficientnet": info.to_json(), "variant": info.variant, "precision": precision})
        onnx.save(model, file)
    return full_path


def small_info(classes: list[str], image_size: int = 32, **settings) -> ModelInfo:
    """A description for a folder of these classes, with a mean and a deviation of its own for each channel."""
    preprocess = Preprocess.for_image_size(
        image_size, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), **settings
    )
    return ModelInfo(num_classes=len(classes), class_names=tuple(classes), preprocess=preprocess)


def read_logits(folder: Path, name: str) -> np.ndarray:
    """One result file's logits."""
    return np.fromfile(folder / f"{name}_0.bin", "<f4")


def expected_logits(path: Path, info: ModelInfo) -> np.ndarray:
    """What the double gives for an image file of float32 values."""
    return double_logits(load_image(str(path), info.preprocess), info.num_classes)


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder, with their parents."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_timings(folder: Path) -> dict:
    """The JSON of time_Result/."""
    return json.loads((folder / "test_perform_static.json").read_text())
