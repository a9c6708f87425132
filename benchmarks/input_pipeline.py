"""Images/s of the training and evaluation pipelines beside torchvision's DataLoader and the model zoo's pipeline.

Each pipeline reads the same generated JPEGs of 500x375 pixels, as large as ImageNet's, on the same cores; they take
turns. The peers have one worker a core. Ours deliver what train.py and eval.py take, uint8, which the device
normalises; the others deliver float32. `float` and `eval_float` are ours with float32.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("GLOG_v", "3")

import numpy as np
from PIL import Image

from benchmarks.machine import describe_machine
from src.common.cli import ArgumentParser, RunError, positive_int, run_cli

WIDTH, HEIGHT = 500, 375
CLASSES = 10
DRAWN = 64
"""Pictures that are drawn; the others are these, moved round, which their patterns allow."""
# Pipelines by the program that runs them: each program has a process of its own, which waits while others are measured.
PIPELINES = {"ours": ("train", "float", "eval", "eval_float"), "torchvision": ("train", "eval"), "zoo": ("train",)}
MEAN, STD = [127.5] * 3, [127.5] * 3
CARD_STEP_SECONDS, CARD_BATCH, CARDS = 0.475, 256, 8
"""Of the published model card, for eight cards on a server."""


def draw_photo(seed: int) -> np.ndarray:
    """A picture with the spectrum of photographs: amplitudes fall with the frequency, colours go together.

    Returns:
        uint8 array of shape (HEIGHT, WIDTH, 3).
    """
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    layers = []
    for _ in range(4):
        phases = np.exp(2j * np.pi * random.random(frequency.shape))
        layers.append(np.fft.irfft2(frequency**-1.1 * phases, s=(HEIGHT, WIDTH)))
    channels = [layers[3] + 0.4 * layer for layer in layers[:3]]
    pixels = np.stack([channel / channel.std() for channel in channels], -1) * 55 + 120
    return pixels.clip(0, 255).astype(np.uint8)


def write_photos(folder: str, count: int) -> float:
    """Write JPEGs into class folders; returns their mean size in kB."""
    sizes = []
    drawn = [draw_photo(seed) for seed in range(min(count, DRAWN))]
    for number in range(count):
        path = os.path.join(folder, f"class{number % CLASSES}", f"{number:05}.jpg")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pixels = np.roll(drawn[number % DRAWN], (7 * (number // DRAWN), 11 * (number // DRAWN)), (0, 1))
        Image.fromarray(pixels).save(path, quality=(85, 90, 92)[number % 3])
        sizes.append(os.path.getsize(path))
    return sum(sizes) / count / 1000


def run_ours(folder: str, kind: str, batch_size: int, workers: int, epoch: int):
    """Batches of our pipeline, with the threads that it takes of itself."""
    from src.data.batches import Loading
    from src.dataset import create_dataset

    loading = Loading(normalised=kind in ("float", "eval_float"))
    dataset = create_dataset(folder, not kind.startswith("eval"), batch_size, epoch=epoch, loading=loading)
    return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)


def run_torchvision(folder: str, kind: str, batch_size: int, workers: int, epoch: int):
    """Batches of torchvision's ImageFolder, transforms and PyTorch's DataLoader."""
    from benchmarks.peers import torch, torchvision

    transforms = torchvision.transforms
    if kind == "train":
        steps = [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.4, 0.4, 0.4),
        ]
    else:
        steps = [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    images = torchvision.datasets.ImageFolder(folder, transforms.Compose(steps))
    train = kind == "train"
    return torch.utils.data.DataLoader(images, batch_size, shuffle=train, drop_last=train, num_workers=workers)


def run_zoo(folder: str, kind: str, batch_size: int, workers: int, epoch: int):
    """Batches of the operations that the model zoo's published dataset.py has for training."""
    import mindspore as ms
    import mindspore.dataset as ds
    from mindspore.dataset import transforms, vision

    operations = [
        vision.RandomCropDecodeResize(224, scale=(0.08, 1.0), ratio=(0.75, 1.333)),
        vision.RandomHorizontalFlip(0.5),
        vision.RandomColorAdjust(0.4, 0.4, 0.4),
        vision.Normalize(MEAN, STD),
        vision.HWC2CHW(),
    ]
    images = ds.ImageFolderDataset(folder, num_parallel_workers=workers, shuffle=True)
    images = images.map(operations, "image", num_parallel_workers=workers)
    images = images.map(transforms.TypeCast(ms.int32), "label", num_parallel_workers=workers)
    return images.batch(batch_size, drop_remainder=True).create_tuple_iterator(num_epochs=1, output_numpy=True)


RUN = {"ours": run_ours, "torchvision": run_torchvision, "zoo": run_zoo}


def serve(program: str, folder: str, batch_size: int, workers: int) -> None:
    """Read kinds of pipelines from standard input, run each over the folder, answer with images/s."""
    # What libraries print must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for epoch, line in enumerate(sys.stdin):
        began, images = time.perf_counter(), 0
        for batch, _ in RUN[program](folder, line.strip(), batch_size, workers, epoch):
            images += len(batch)
        print(images / (time.perf_counter() - began), file=answers, flush=True)


class Runner:
    """A process that runs the pipelines of one program.

    Args:
        program: one of PIPELINES.
        folder, batch_size: of the images.
        cores: that it may use.
    """

    def __init__(self, program: str, folder: str, batch_size: int, cores: list[int]):
        self.program = program
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", program, folder, str(batch_size), str(len(cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def measure(self, kind: str) -> float:
        """Images/s of one pass over the folder."""
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RunError(f"the pipeline of {self.program} failed")
        return float(answer)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def measure_all(folder: str, batch_size: int, cores: list[int], repeats: int, programs) -> dict:
    """Images/s of every pass, by (program, kind); the first pass of each, which starts everything up, is left out."""
    runners = [Runner(program, folder, batch_size, cores) for program in programs]
    rates: dict = {}
    try:
        for turn in range(repeats + 1):
            for runner in runners:
                for kind in PIPELINES[runner.program]:
                    rate = runner.measure(kind)
                    if turn:
                        rates.setdefault((runner.program, kind), []).append(rate)
                        print(f"{len(cores)} cores, {runner.program} {kind}: {rate:.0f} images/s", file=sys.stderr)
    finally:
        for runner in runners:
            runner.close()
    return rates


def report(rates: dict, single: dict, cores: int) -> dict:
    """Print the table and what it means for a server; returns the ratios."""
    median = {key: statistics.median(values) for key, values in rates.items()}
    print(f"{'pipeline':24} {'images/s':>9} {'lowest':>8} {'highest':>8}")
    for key, values in rates.items():
        print(f"{' '.join(key):24} {median[key]:9.0f} {min(values):8.0f} {max(values):8.0f}")
    one = {kind: statistics.median(values) for (_, kind), values in single.items()}
    for kind in ("train", "eval"):
        print(f"{kind}: {one[kind]:.0f} images/s on 1 core, {median['ours', kind]:.0f} on {cores}")
    needed = CARD_BATCH / CARD_STEP_SECONDS
    for server in (96, 192):
        share = server // CARDS
        rate = share * median["ours", "train"] / cores
        print(
            f"{CARDS} cards on {server} cores, {share} a card: {rate:.0f} images/s a card if they grow with the cores; "
            f"a card of the published run took {needed:.0f}"
        )
    return {
        "train_vs_torchvision": round(median["ours", "train"] / median["torchvision", "train"], 2),
        "train_vs_zoo": round(median["ours", "train"] / median["zoo", "train"], 2),
        "eval_vs_torchvision": round(median["ours", "eval"] / median["torchvision", "eval"], 2),
        "train_float_vs_zoo": round(median["ours", "float"] / median["zoo", "train"], 2),
    }


def main(argv=None) -> None:
    """Write the images, measure in turns, report."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_int, default=1536, help="how many JPEGs are written")
    parser.add_argument("--batch_size", type=positive_int, default=64, help="images a batch")
    parser.add_argument("--cores", type=positive_int, default=2, help="how many cores are used")
    parser.add_argument("--repeats", type=positive_int, default=5, help="passes of each pipeline, alternating")
    parser.add_argument("--serve", nargs=4, help="used by the program itself")
    arguments = parser.parse_args(argv)
    if arguments.serve:
        program, folder, batch_size, workers = arguments.serve
        return serve(program, folder, int(batch_size), int(workers))
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    from src.images.engine import describe_engine

    with tempfile.TemporaryDirectory() as folder:
        size = write_photos(folder, arguments.images)
        print(f"machine: {describe_machine('mindspore', 'torchvision')}; {len(cores)} cores are used")
        print(f"{arguments.images} JPEGs of {size:.0f} kB; {describe_engine()}")
        rates = measure_all(folder, arguments.batch_size, cores, arguments.repeats, PIPELINES)
        single = measure_all(folder, arguments.batch_size, cores[:1], arguments.repeats, ["ours"])
    print(json.dumps(report(rates, single, len(cores))))
    return None


if __name__ == "__main__":
    sys.exit(run_cli(main))
