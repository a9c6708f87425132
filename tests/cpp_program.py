"""Builds ascend310_infer for tests, and makes the folders, models and images that they run it on."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from src.model_info import ModelInfo
from src.preprocess import Preprocess, load_image

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "ascend310_infer"


def build(name: str, *options: str, openvino: bool = True) -> tuple[Path, Path]:
    """Build the double of MindSpore Lite and the program against it, only what changed since the last time.

    Args:
        name: of the build folder, for builds with the same options.
        options: of CMake.
        openvino: whether that engine is wanted, too.

    Returns:
        The build's folder and the double's package, which is LITE_HOME.
    """
    folder = SOURCE / f"build-{name}"
    sanitize = [option for option in options if option.startswith("-DSANITIZE")]
    double = folder / "lite_double"
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (
        ["cmake", "-S", ROOT / "tests/cpp/lite_double", "-B", double, *sanitize],
        ["cmake", "--build", double, "--parallel", jobs],
    ):
        check(command)
    environment = {"LITE_HOME": str(double / "package"), "BUILD_DIR": str(folder), "PYTHON": sys.executable}
    environment["WITH_OPENVINO"] = "ON" if openvino else "OFF"
    check(["sh", SOURCE / "build.sh", "-DWITH_TESTS=ON", *options], env={**os.environ, **environment})
    return folder, double / "package"


def check(command: list, **options) -> None:
    """Run a command that must succeed; its output is in the exception's message."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]


def write_double_model(path: Path, info: ModelInfo, batch: int = 4, kind: str = "float32", **settings: int) -> None:
    """Write a model file of the double and the description beside it."""
    size = info.preprocess.image_size
    shape = f"{batch} 3 {size} {size}" if kind == "float32" else f"{batch} {size} {size} 3"
    lines = ["lite_double", f"input {kind} {shape}", f"classes {info.num_classes}"]
    lines += [f"{name} {value}" for name, value in settings.items()]
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(info.to_json())


def double_logits(values: np.ndarray, classes: int) -> np.ndarray:
    """What the double computes for an image's values in the order of memory: float64 array of shape (classes,)."""
    position = np.arange(values.size)
    weights = ((31 * position[:, None] + 17 * np.arange(classes)) % 101 - 50) / 1000
    return values.reshape(-1).astype(np.float64) @ weights


def write_onnx_model(path: Path, info: ModelInfo, batch: int | None = None, metadata: bool = True) -> None:
    """Write an ONNX model of one convolution as large as the image, with weights that tell all pixels apart."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size, classes = info.preprocess.image_size, info.num_classes
    weights = np.random.RandomState(3).normal(0, 0.05, (classes, 3, size, size)).astype(np.float32)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch or "N", 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch or "N", classes])
    nodes = [
        helper.make_node("Conv", ["image", "weights"], ["map"]),
        helper.make_node("Flatten", ["map"], ["logits"], axis=1),
    ]
    graph = helper.make_graph(nodes, "test", [image], [logits], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata:
        helper.set_model_props(model, {"efficientnet": info.to_json(), "variant": info.variant})
    onnx.save(model, path)


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


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves, an edge and noise: what resampling and chroma upsampling get wrong when they get something wrong."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([128 + 90 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (9 - 2 * c)) for c in range(3)], axis=-1)
    pixels = waves + np.random.RandomState(seed).normal(0, 12, waves.shape)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = [250, 10, 60]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """An image file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra=b"", interlace=0) -> bytes:
    """A PNG file of given rows, each with its filter byte, of kinds that Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
    parts = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def hard_images() -> dict[str, bytes]:
    """File names and contents of about 300 images of the kinds that occur, and of kinds that hardly ever do."""
    files = {}
    sizes = [(100, 75), (75, 100), (64, 64), (1, 1), (1, 50), (160, 120), (83, 125), (37, 37), (45, 37), (17, 400)]
    sizes += [(57, 76), (8, 8), (16, 17), (500, 375), (36, 36)]
    for width, height in sizes:
        image = picture(width, height, width)
        grey = image.convert("L")
        orientation = Image.Exif()
        orientation[0x112] = 6
        alpha = image.convert("RGBA")
        alpha.putalpha(grey)
        jpegs = {
            "444": encode(image, quality=95, subsampling=0),
            "420": encode(image, quality=75, subsampling=2),
            "422": encode(image, quality=30, subsampling=1),
            "411": encode(image, quality=80, subsampling="4:1:1"),
            "progressive": encode(image, quality=80, progressive=True),
            "restart": encode(image, quality=80, restart_marker_blocks=3),
            "rgb": encode(image, quality=80, keep_rgb=True),
            "exif": encode(image, exif=orientation),
            "grey": encode(grey, quality=80),
            "grey_progressive": encode(grey, progressive=True),
            "cmyk": encode(image.convert("CMYK"), quality=80),
        }
        pngs = {
            "rgb": encode(image, "PNG"),
            "grey": encode(grey, "PNG"),
            "bits": encode(image.convert("1"), "PNG"),
            "palette": encode(image.quantize(37), "PNG"),
            "palette_4": encode(image.quantize(13), "PNG", bits=4),
            "palette_transparent": encode(image.quantize(20), "PNG", transparency=3),
            "alpha": encode(alpha, "PNG"),
            "grey_alpha": encode(alpha.convert("LA"), "PNG"),
            "grey_16": encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 251 + width), "PNG"),
        }
        files.update({f"{width}x{height}_{name}.jpg": data for name, data in jpegs.items()})
        files.update({f"{width}x{height}_{name}.png": data for name, data in pngs.items()})
    files["a_png.JPEG"] = encode(picture(60, 50), "PNG")
    files["a_jpeg.png"] = encode(picture(60, 50))
    files["trailing.jpg"] = encode(picture(60, 50)) + b"more" * 20
    files["no_end.png"] = encode(picture(60, 50), "PNG")[:-12]
    files.update(hand_made_pngs())
    return files


def hand_made_pngs() -> dict[str, bytes]:
    """Depths, transparency, short palettes and interlacing that Pillow reads and does not write."""
    generator = np.random.RandomState(7)
    files = {}
    width, height = 41, 45
    for colour_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = generator.randint(0, 65536, (height, width * channels)).astype(">u2")
        data = b"".join(b"\0" + row.tobytes() for row in rows)
        files[f"deep_{colour_type}.png"] = raw_png(width, height, 16, colour_type, data)
    for depth in (1, 2, 4, 8):
        rows = generator.randint(0, 256, (height, (width * depth + 7) // 8)).astype(np.uint8)
        data = b"".join(b"\0" + row.tobytes() for row in rows)
        palette = png_chunk(b"PLTE", generator.bytes(3 * max(1, 2**depth - 1)))  # one colour short
        files[f"grey_{depth}.png"] = raw_png(width, height, depth, 0, data)
        files[f"grey_{depth}_key.png"] = raw_png(width, height, depth, 0, data, png_chunk(b"tRNS", b"\0\1"))
        files[f"palette_{depth}.png"] = raw_png(width, height, depth, 3, data, palette)
        files[f"palette_{depth}_key.png"] = raw_png(width, height, depth, 3, data, palette + png_chunk(b"tRNS", b"\0"))
    pixels = np.asarray(picture(width, height))
    files["interlaced.png"] = raw_png(width, height, 8, 2, adam7(pixels), interlace=1)
    files["interlaced_grey.png"] = raw_png(width, height, 8, 0, adam7(pixels[:, :, 0]), interlace=1)
    return files


def adam7(pixels: np.ndarray) -> bytes:
    """The rows of the seven passes of an interlaced PNG."""
    rows = b""
    for y, x, down, right in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        part = pixels[y::down, x::right]
        rows += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    return rows


def broken_images() -> dict[str, tuple[bytes, str]]:
    """File names, contents and a piece of the sentence of images that nobody can use."""
    jpeg, png = encode(picture(200, 150)), encode(picture(200, 150), "PNG")
    bomb = bytearray(jpeg)
    size = bomb.index(b"\xff\xc0") + 5
    bomb[size : size + 4] = struct.pack(">HH", 65000, 65000)
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 4
    return {
        "empty.jpg": (b"", "the image file is empty"),
        "text.jpg": (b"hello " * 50, "not an image"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "half_progressive.jpg": (encode(picture(200, 150), progressive=True)[:3000], "truncated"),
        "no_end.jpg": (jpeg[:-2], "truncated"),
        "header_only.jpg": (jpeg[:20], "truncated"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "header_only.png": (png[:30], "truncated"),
        "damaged.png": (bytes(damaged), "CRC"),
        "bomb.jpg": (bytes(bomb), "65000 x 65000 pixels"),
        "bomb.png": (raw_png(60000, 60000, 8, 2, b"\0" * 1000), "60000 x 60000 pixels"),
        "wide_bomb.png": (raw_png(2**31 - 1, 1, 16, 6, b"\0" * 1000), "2147483647 x 1 pixels"),
        "sliver.png": (raw_png(1, 60000, 8, 0, b"\0\0" * 60000), "too elongated"),
    }


def write_files(root: Path, files: dict[str, bytes]) -> None:
    """Write files below a folder, with their parents."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def read_timings(folder: Path) -> dict:
    """The JSON of time_Result/."""
    return json.loads((folder / "test_perform_static.json").read_text())
