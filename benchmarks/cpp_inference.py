"""Images/s of ascend310_infer beside its engine alone and beside infer_onnx.py, on a CPU by OpenVINO.

On an NPU server the network runs on the device, and the CPU's cores are free to decode. Here both are the same cores,
so "the engine's own images/s" needs a definition. Some cores belong to the engine and stand for the device; the others,
one in eight and at least one, decode and write: `--engine_threads` and `--threads` of the program.

- engine alone: batches that are ready in memory, in the same process, with the same batch size and engine threads;
  nothing is read, decoded or written.
- end to end: from the first file opened to the last result file written.
- share_of_engine: end to end by engine alone. It says what this program costs: waiting for batches, copying, writing.
  It says nothing of a server whose cores cannot decode as fast as its devices compute.

Where the engine takes all cores and decoding comes on top, the rate must fall by the time that decoding takes; that is
the row "all cores", also beside the engine alone, and no headline. vs_python compares it with infer_onnx.py (ONNX
Runtime) on all cores, both with their own defaults, each by its own clock without its start.

B0 for 10 classes with random weights; images are generated JPEGs of 500 x 375 pixels. In each round everything is
measured once, in turn; figures are medians over the rounds, of ratios the median of the rounds' ratios.

    python benchmarks/cpp_inference.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.photos import draw, encode
from src.common.cli import ArgumentParser, RunError, UsageError, positive_int, run_cli
from src.data.image_folder import read_image_folder
from src.images.preprocess import load_image
from src.inference.model import open_model
from src.inference.result_files import read_result, result_names
from src.inference.settings import GivenSettings

CLASSES = 10
SIZE = 224
TOLERANCE = 1e-3


def main(argv=None) -> None:
    """Build the program, make the files, measure in rounds, print the table and one line of JSON."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_int, default=512, help="images in each measurement")
    parser.add_argument("--rounds", type=positive_int, default=5, help="how often everything is measured")
    parser.add_argument("--onnx_path", help=f"a file of export.py for {CLASSES} classes, instead of making one")
    arguments = parser.parse_args(argv)
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise UsageError("the engine and the decoders need a core each; this machine gives this process one")
    print(f"machine: {describe_machine('openvino', 'onnxruntime', 'pillow')}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, arguments, cores)
        bench.check_same_logits()
        rates: dict[str, list[float]] = {}
        for number in range(arguments.rounds):
            for name, rate in bench.measure().items():
                rates.setdefault(name, []).append(rate)
            print(f"round {number + 1} of {arguments.rounds}: " + ", ".join(f"{v[-1]:.1f}" for v in rates.values()))
    report(rates)


class Bench:
    """The built program and its files.

    Args:
        folder: where to make the files.
        arguments: of the command line.
        cores: that this process may use.
    """

    def __init__(self, folder: str, arguments, cores: int):
        self.folder, self.images, self.cores = folder, arguments.images, cores
        source = os.path.join(ROOT, "ascend310_infer")
        self.program = os.path.join(os.environ.get("BUILD_DIR", os.path.join(source, "build")), "main")
        run(["sh", os.path.join(source, "build.sh")], env={**os.environ, "PYTHON": sys.executable})
        self.data = os.path.join(folder, "data")
        for i in range(self.images):
            path = os.path.join(self.data, f"class_{i % CLASSES}", f"{i:05}.jpg")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(encode(draw(500, 375, i), "JPEG", quality=90))
        self.onnx = arguments.onnx_path or make_network(folder)

    def classify(self, *flags: str) -> dict:
        """Timings of a run of the program."""
        # As many batches alone as the run has, with batches of 4, the engine's default.
        batches = str(max(1, self.images // 4))
        command = [self.program, "--model_path", self.onnx, "--dataset_path", self.data, "--benchmark_batches", batches]
        run([*command, *flags], cwd=self.folder)
        with open(os.path.join(self.folder, "time_Result", "test_perform_static.json"), encoding="utf-8") as file:
            return json.load(file)

    def check_same_logits(self) -> None:
        """Refuse to compare programs that do not compute the same.

        Raises:
            RunError: with the largest difference.
        """
        self.classify()
        folder, model = read_image_folder(self.data), open_model(self.onnx, GivenSettings(), "CPU")
        for path, name in list(zip(folder.paths, result_names(folder.paths)))[:8]:
            found = read_result(os.path.join(self.folder, "result_Files", name))
            image = load_image(os.path.join(self.data, path), model.info.preprocess)
            difference = float(np.abs(model.run(image[None])[0] - found).max())
            if not difference < TOLERANCE * max(1.0, float(np.abs(found).max())):
                raise RunError(f"{path}: logits of the two programs differ by {difference}")

    def measure(self) -> dict[str, float]:
        """Images/s of everything, once."""
        decoders = max(1, self.cores // 8)
        apart = self.classify("--engine_threads", str(self.cores - decoders), "--threads", str(decoders))
        script = os.path.join(ROOT, "infer_onnx.py")
        python = run([sys.executable, script, "--onnx_path", self.onnx, "--dataset_path", self.data, "--json"])
        shared = self.classify()
        return {
            "end to end, engine on its own cores": apart["images_per_second"],
            "engine alone on those cores": apart["engine_images_per_second"],
            "end to end, all cores": shared["images_per_second"],
            "engine alone on all cores": shared["engine_images_per_second"],
            "infer_onnx.py, all cores": json.loads(python.splitlines()[-1])["images_per_second"],
        }


def make_network(folder: str) -> str:
    """B0 with random weights, converted and exported by the scripts of this repository."""
    import torch

    from benchmarks.peers import create_peer, random_images, randomise

    weights, checkpoint = os.path.join(folder, "efficientnet_b0.pth"), os.path.join(folder, "b0.ckpt")
    peer = randomise(create_peer("timm", "b0", num_classes=CLASSES), random_images(8, SIZE))
    torch.save(peer.state_dict(), weights)
    run([sys.executable, os.path.join(ROOT, "convert_weights.py"), "--source", weights, "--target", checkpoint])
    onnx = os.path.join(folder, "b0.onnx")
    export = [sys.executable, os.path.join(ROOT, "export.py"), "--checkpoint_path", checkpoint]
    run([*export, "--file_format", "ONNX", "--file_name", onnx])
    return onnx


def run(command: list[str], **options) -> str:
    """Standard output of a command.

    Raises:
        RunError: if it failed, with what it said.
    """
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise RunError(f"{os.path.basename(command[1])} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout


def report(rates: dict[str, list[float]]) -> None:
    """Print the table and the line of JSON."""
    names = list(rates)
    own, alone, shared, shared_alone, python = names

    def ratio(ours: str, theirs: str) -> float:
        """Median over the rounds, so that what slows a whole round down does not count."""
        return round(statistics.median(a / b for a, b in zip(rates[ours], rates[theirs])), 3)

    print(f"\n| images/s, median of {len(rates[own])} rounds | |\n| --- | --- |")
    for name in names:
        print(f"| {name} | {statistics.median(rates[name]):.1f} |")
    print(
        f"\nall cores: end to end is {ratio(shared, shared_alone)} of the engine alone, because decoding takes its part"
    )
    print(json.dumps({"share_of_engine": ratio(own, alone), "vs_python": ratio(shared, python)}))


if __name__ == "__main__":
    sys.exit(run_cli(main))
