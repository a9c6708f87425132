"""Images/s and latency of B0 by infer_onnx.py, beside what the machine allows, the model zoo's way, and timm's.

Weights are timm's architecture with random numbers, converted and exported by this project's scripts and, for the
peers, by timm's and PyTorch's own; so all of them compute the same logits, which is checked. Images are generated JPEGs
of 500 x 375 pixels. In each round everything is measured once, in turn; what is printed are medians over the rounds.

    python benchmarks/inference.py

- limit: cores / (time to prepare an image + time of the network for it), each alone on one core.
- ours: what infer_onnx.py does, in batches of its default size; its start is left out.
- zoo's way: Pillow, NumPy and ONNX Runtime as they come, one image after the other, on our file.
- timm, ONNX: timm's export in ONNX Runtime as timm's onnx_validate.py runs it, batches from its loader's processes.
- timm, PyTorch: the same loader, and the network in PyTorch, channels last.
- int8: by OpenVINO, as infer_onnx.py takes it where it is installed; by ONNX Runtime too.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Callable

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np
import onnxruntime
import torch
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.peers import create_peer, random_images, randomise
from benchmarks.photos import draw, encode
from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.common.machine import count_cores
from src.data.image_list import ImageList, find_images
from src.images.preprocess import Preprocess, load_image
from src.inference.classification import choose_batch_size, classify, read_crop
from src.inference.model import OnnxModel, open_model
from src.inference.settings import GivenSettings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FOREIGN = GivenSettings(mean=tuple(255 * part for part in MEAN), std=tuple(255 * part for part in STD))
SIZE = 224
PEER_BATCH = 32
SIZES = (1, 2, 4)
"""Of the batches that the network is tried alone with, on one core."""
TOLERANCE = 2e-3


def main(argv=None) -> None:
    """Make the files, measure in rounds, print the tables and one line of JSON."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_int, default=128, help="images in each measurement")
    parser.add_argument("--rounds", type=positive_int, default=5, help="how often everything is measured")
    arguments = parser.parse_args(argv)
    print(f"machine: {describe_machine('onnxruntime', 'torch', 'timm', 'pillow')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(folder, arguments.images)
        bench = Bench(files)
        bench.check_same_logits()
        rates: dict[str, list[float]] = {}
        latencies: dict[str, list[float]] = {}
        starts, peaks = [], []
        for number in range(arguments.rounds):
            for name, measure in bench.rates().items():
                rates.setdefault(name, []).append(measure())
            for name, call in bench.latencies().items():
                latencies.setdefault(name, []).extend(time_calls(call, arguments.images))
            starts.append(run_program(files["ours"], bench.images.paths[0])[0])
            peaks.append(run_program(files["ours"], files["images"])[1])
            print(f"round {number + 1} of {arguments.rounds}: ours {rates['ours'][-1]:.1f} images/s", flush=True)
    report(rates, latencies, statistics.median(starts), statistics.median(peaks), bench.cores)


# The files


def make_files(folder: str, images: int) -> dict[str, str]:
    """Images, and the network as our two ONNX files and timm's; the paths by name."""
    names = ("images", "weights", "checkpoint", "ours", "ours int8", "timm")
    endings = ("images", "efficientnet_b0.pth", "b0.ckpt", "b0.onnx", "b0_int8.onnx", "timm.onnx")
    files = {name: os.path.join(folder, ending) for name, ending in zip(names, endings)}
    os.makedirs(os.path.join(files["images"], "all"))
    for i in range(images):
        with open(os.path.join(files["images"], "all", f"{i:04}.jpg"), "wb") as file:
            file.write(encode(draw(500, 375, i), "JPEG", quality=90))
    # The batch norms' statistics are those of such images, as in a trained network.
    preprocess = Preprocess.for_image_size(SIZE, mean=FOREIGN.mean, std=FOREIGN.std)
    some = [load_image(path, preprocess) for path in find_images([files["images"]]).paths[:8]]
    model = randomise(create_peer("timm", "b0"), np.stack(some))
    torch.save(model.state_dict(), files["weights"])
    free = {
        "input_names": ["input"],
        "output_names": ["logits"],
        "dynamic_axes": {"input": {0: "N"}, "logits": {0: "N"}},
    }
    torch.onnx.export(model.eval(), torch.zeros(1, 3, SIZE, SIZE), files["timm"], dynamo=False, **free)
    script("convert_weights.py", "--source", files["weights"], "--target", files["checkpoint"])
    export = ("export.py", "--checkpoint_path", files["checkpoint"], "--file_format", "ONNX", "--file_name")
    script(*export, files["ours"])
    # How fast int8 is, is measured here; how close it comes is no question to random weights.
    int8 = ("--precision", "int8", "--calibration_path", files["images"], "--tolerance", "100")
    script(*export, files["ours int8"], *int8)
    return files


def script(name: str, *arguments: str) -> None:
    """Run a script of the repository.

    Raises:
        RunError: if it failed, with what it said.
    """
    done = subprocess.run([sys.executable, os.path.join(ROOT, name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{name} failed: {done.stderr.strip()}")


# What is measured


class Bench:
    """The opened files and everything that is measured on them.

    Args:
        files: what `make_files` gave.
    """

    def __init__(self, files: dict[str, str]):
        self.cores = count_cores()
        self.images = find_images([files["images"]])
        # First, because it makes processes.
        self.loader = start_loader(files["images"], self.cores)
        self.ours, self.int8 = (open_model(files[name], GivenSettings(), "CPU") for name in ("ours", "ours int8"))
        self.int8_plain = open_model(files["ours int8"], GivenSettings(), "CPU", engine="onnxruntime")
        self.timm_in_ours = open_model(files["timm"], FOREIGN, "CPU")
        # For a single image all cores work on one call.
        self.fast = open_model(files["ours"], GivenSettings(), "CPU", threads=self.cores)
        self.plain_ours, self.plain_timm = (onnxruntime.InferenceSession(files[name]) for name in ("ours", "timm"))
        self.torch = create_peer("timm", "b0")
        self.torch.load_state_dict(torch.load(files["weights"]))
        self.torch.eval().to(memory_format=torch.channels_last)
        torch.set_num_threads(self.cores)

    def check_same_logits(self) -> None:
        """Refuse to compare networks that are not the same.

        Raises:
            RunError: with the largest difference.
        """
        batch = random_images(4, SIZE)
        expected = self.run_torch(torch.from_numpy(batch))
        for name, found in (("our file", self.ours.run(batch)), ("timm's file", self.run_timm(batch))):
            difference = float(np.abs(found - expected).max())
            if not difference < TOLERANCE * float(np.abs(expected).max()):
                raise RunError(f"{name} and PyTorch differ by {difference}")

    def rates(self) -> dict[str, Callable[[], float]]:
        """Name to a function that measures images/s."""
        return {
            "prepare, 1 core": self.rate_of_preparing,
            "network, 1 core": self.rate_on_one_core,
            "ours": lambda: self.rate_of_program(self.ours),
            "zoo's way": self.rate_of_zoo,
            "timm's file in our program": lambda: self.rate_of_program(self.timm_in_ours),
            "timm, ONNX": lambda: self.rate_of_loader(lambda batch: self.run_timm(batch.numpy())),
            "timm, PyTorch": lambda: self.rate_of_loader(self.run_torch),
            "ours, int8": lambda: self.rate_of_program(self.int8),
            "network": lambda: self.rate_of_network(self.ours),
            "network, int8": lambda: self.rate_of_network(self.int8),
            "network, int8 by ONNX Runtime": lambda: self.rate_of_network(self.int8_plain),
        }

    def latencies(self) -> dict[str, Callable[[], object]]:
        """Name to a call on one image."""
        batch = random_images(1, SIZE)
        tensor = torch.from_numpy(batch).to(memory_format=torch.channels_last)
        return {
            "ours": lambda: self.fast.run(batch),
            "timm, ONNX": lambda: self.run_timm(batch),
            "timm, PyTorch": lambda: self.run_torch(tensor),
            "ours, from the JPEG": lambda: self.fast.run(prepare(self.fast, self.images, range(1))),
        }

    def rate_of_preparing(self) -> float:
        """Reading, decoding, resizing and normalising, alone on one core."""
        with one_core():
            prepare(self.ours, self.images, range(4))
            seconds = time_of(lambda: [prepare(self.ours, self.images, [i]) for i in range(len(self.images))])
        return len(self.images) / seconds

    def rate_on_one_core(self) -> float:
        """The network alone on one core, with the batch size that suits it best."""
        best = 0.0
        with one_core():
            for size in SIZES:
                batch = prepare(self.ours, self.images, range(size))
                self.ours.run(batch)
                calls = max(1, len(self.images) // size // len(SIZES))
                best = max(best, calls * size / time_of(lambda: [self.ours.run(batch) for _ in range(calls)]))  # noqa: B023
        return best

    def rate_of_network(self, model: OnnxModel) -> float:
        """The network alone on all cores, one batch of the default size at a time on each."""
        size = choose_batch_size(model, None)
        batch, calls = prepare(model, self.images, range(size)), max(1, len(self.images) // size)
        with concurrent.futures.ThreadPoolExecutor(self.cores) as executor:
            list(executor.map(model.run, [batch] * 4 * self.cores))
            seconds = time_of(lambda: list(executor.map(model.run, [batch] * calls)))
        return calls * size / seconds

    def rate_of_program(self, model: OnnxModel) -> float:
        """What infer_onnx.py does."""
        batch_size = choose_batch_size(model, None)
        return len(self.images) / time_of(lambda: list(classify(model, self.images, batch_size, self.cores)))

    def rate_of_zoo(self) -> float:
        """One image after the other."""
        name = self.plain_ours.get_inputs()[0].name
        return len(self.images) / time_of(
            lambda: [self.plain_ours.run(None, {name: prepare_plainly(path)}) for path in self.images.paths]
        )

    def rate_of_loader(self, run: Callable) -> float:
        """Batches from timm's loader through a network."""
        return len(self.images) / time_of(lambda: [run(batch) for batch, _ in self.loader])

    def run_timm(self, batch: np.ndarray) -> np.ndarray:
        """timm's export in ONNX Runtime as it comes."""
        return self.plain_timm.run(None, {"input": batch})[0]

    def run_torch(self, batch: torch.Tensor) -> np.ndarray:
        """timm's network in PyTorch."""
        with torch.inference_mode():
            return self.torch(batch.to(memory_format=torch.channels_last)).numpy()


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def prepare(model: OnnxModel, images: ImageList, indices: Sequence[int]) -> np.ndarray:
    """A batch as infer_onnx.py makes it."""
    batch = model.new_batch(len(indices))
    for row, index in zip(batch, indices):
        model.fill_row(row, read_crop(model, images, index))
    return batch


def prepare_plainly(path: str) -> np.ndarray:
    """A batch of one image with Pillow and NumPy as everybody writes it."""
    image = Image.open(path).convert("RGB")
    scale = 256 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32)
    scaled = (pixels / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


def start_loader(folder: str, workers: int):
    """timm's loader of a folder with its processes running; every iteration reads all images."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", folder),
        input_size=(3, SIZE, SIZE),
        batch_size=PEER_BATCH,
        use_prefetcher=False,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=0.875,
        num_workers=workers,
        persistent_workers=True,
    )
    for _ in loader:
        pass
    return loader


def time_of(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def time_calls(call: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each of `times` calls, after a few that do not count."""
    for _ in range(5):
        call()
    return [1e3 * time_of(call) for _ in range(times)]


def run_program(onnx_path: str, image: str) -> tuple[float, float]:
    """Seconds and peak resident MB (of 2**20 bytes) of a process of infer_onnx.py on an image or a folder of them.

    Raises:
        RunError: if it failed.
    """
    # getrusage would still count the size of this process, from before the other program began.
    code = "import sys, infer_onnx; infer_onnx.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    command = [sys.executable, "-c", code, "--onnx_path", onnx_path, "--device_target", "CPU", "--image", image]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RunError(f"infer_onnx.py failed: {done.stderr}")
    return seconds, int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1]) / 1024


# What came out


def report(
    rates: dict[str, list[float]], latencies: dict[str, list[float]], start: float, peak: float, cores: int
) -> None:
    """Print the tables and the line of JSON."""
    pairs = zip(rates["prepare, 1 core"], rates["network, 1 core"])
    rates["limit"] = [cores / (1 / prepared + 1 / run) for prepared, run in pairs]
    print(f"\n| images/s, median of {len(rates['ours'])} rounds | |\n| --- | --- |")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.1f} |")
    print("\n| latency of one image, ms | p50 | p99 |\n| --- | --- | --- |")
    percentiles = {name: np.percentile(values, (50, 99)) for name, values in latencies.items()}
    for name, (p50, p99) in percentiles.items():
        print(f"| {name} | {p50:.2f} | {p99:.2f} |")
    print(f"\ninfer_onnx.py on one image, from the start of the process to its end: {start:.2f} s")
    print(f"infer_onnx.py on all images, peak resident memory: {peak:.0f} MB\n")

    def ratio(ours: str, theirs: str) -> float:
        """Median over the rounds, so that what slows a whole round down does not count."""
        return round(statistics.median(a / b for a, b in zip(rates[ours], rates[theirs])), 3)

    result = {
        "share_of_limit": ratio("ours", "limit"),
        "vs_zoo": ratio("ours", "zoo's way"),
        "vs_timm_onnx": ratio("ours", "timm, ONNX"),
        "vs_timm_onnx_in_our_program": ratio("ours", "timm's file in our program"),
        "vs_timm_pytorch": ratio("ours", "timm, PyTorch"),
        "int8_vs_fp32": ratio("network, int8", "network"),
        "int8_vs_fp32_with_images": ratio("ours, int8", "ours"),
        "p50_ms": round(percentiles["ours"][0], 2),
        "p99_ms": round(percentiles["ours"][1], 2),
        "start_s": round(start, 2),
        "peak_mb": round(peak),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(run_cli(main))
