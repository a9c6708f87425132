"""A training step and an evaluation on the CPU: this network in MindSpore beside timm's in PyTorch, in one run.

Each side computes in processes of its own, which wait while the other side is measured. PyTorch gets what makes it fast
on a CPU: channels_last and one thread for each core; --compile adds torch.compile.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.machine import describe_machine
from src.common.cli import ArgumentParser, RunError, positive_int, run_cli
from src.models.family import VARIANTS

# What is measured: images, pixels, whether they are trained on.
CASES = {"step_224": (16, 224, True), "step_64": (32, 64, True), "forward_224": (16, 224, False)}
CLASSES = 1000
# Threads of the side that has just computed may be waiting actively for some time.
PAUSE_SECONDS = 0.3


def main(argv=None) -> None:
    """Measure all cases, alternating, and print a table and the JSON line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="b0", help="member of the family")
    parser.add_argument("--repeats", type=positive_int, default=15, help="measurements of each side and case")
    parser.add_argument("--threads", type=positive_int, help="of PyTorch; one for each core when left out")
    parser.add_argument("--compile", action="store_true", help="PyTorch's network through torch.compile")
    parser.add_argument("--without_kernels", action="store_true", help="MindSpore's own operators, for comparison")
    arguments = parser.parse_args(argv)
    threads = arguments.threads or len(os.sched_getaffinity(0))
    print(f"machine: {describe_machine('mindspore', 'torch', 'timm')}; PyTorch with {threads} threads", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        caches = {"XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "torchinductor")}
        compare(threads, arguments, {**os.environ, **caches})


def compare(threads: int, arguments, environment: dict) -> None:
    """Measure all cases with a cache for compiled things that is empty at first."""
    shapes = {name: [arguments.variant, *(str(int(value)) for value in case)] for name, case in CASES.items()}
    kernels = str(int(not arguments.without_kernels))
    start = Side("own", [*shapes["step_224"], kernels], environment)
    print(f"first start: prepared after {start.prepared:.1f} s, then first step {start.first:.1f} s", flush=True)
    start.close()
    result = {"first_step_s": round(start.first, 1)}
    for name, (images, pixels, training) in CASES.items():
        sides = [Side("own", [*shapes[name], kernels], environment)]
        sides.append(Side("compiled" if arguments.compile else "peer", [*shapes[name], str(threads)], environment))
        times = measure(sides, arguments.repeats)
        memory = [side.close() for side in sides]
        own, peer = (statistics.median(values) for values in times)
        result[name] = round(own / peer, 3)
        if training:
            result["peak_memory_64" if name == "step_64" else "peak_memory"] = round(memory[0] / memory[1], 3)
        what = f"{arguments.variant}, {'training step' if training else 'evaluation'} of {images} x {pixels} x {pixels}"
        for side, values, peak in zip(sides, times, memory):
            print(
                f"{what}: {side.describe}: median {statistics.median(values) * 1e3:.0f} ms, "
                f"fastest {min(values) * 1e3:.0f} ms, first {side.first:.1f} s, peak memory {peak:.0f} MB",
                flush=True,
            )
    order = ("step_224", "step_64", "forward_224", "peak_memory", "peak_memory_64", "first_step_s")
    print(json.dumps({name: result[name] for name in order}))


class Side:
    """A process that computes steps when it is asked to.

    Args:
        kind: "own", "peer", or "compiled", the peer through torch.compile.
        arguments: of the worker: variant, images, pixels, training, and kernels or threads.
        environment: of the worker.

    Attributes:
        describe: its framework and version.
        prepared: seconds from its start until network and optimiser stood, its kernels compiled.
        first: seconds that its first step took.
    """

    def __init__(self, kind: str, arguments: list, environment: dict):
        command = [sys.executable, os.path.abspath(__file__), "--worker", kind, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        start = time.perf_counter()
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.describe = self.read()
        self.prepared = time.perf_counter() - start
        self.first = float(self.ask())

    def read(self) -> str:
        """The next line that the process has marked as an answer."""
        for line in self.process.stdout:
            if line.startswith("answer: "):
                return line[len("answer: ") :].strip()
        raise RunError(f"the measuring process ended with exit code {self.process.wait()}")

    def ask(self) -> str:
        """Let it compute a step: seconds."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> float:
        """End the process: the most memory that it had, MB."""
        self.process.stdin.close()
        peak = float(self.read())
        self.process.wait()
        return peak


def measure(sides: list, repeats: int) -> list:
    """Seconds of each side's steps, taken in turn after two that do not count."""
    times = [[] for _ in sides]
    for i in range(repeats + 2):
        for side, values in zip(sides, times):
            seconds = float(side.ask())
            if i >= 2:
                values.append(seconds)
            time.sleep(PAUSE_SECONDS)
    return times


def work(kind: str, variant: str, images: str, pixels: str, training: str, option: str) -> None:
    """What a process does: prepare, then a step for each line of standard input."""
    compiled = functools.partial(prepare_peer, compiled=True)
    prepare = {"own": prepare_own, "peer": prepare_peer, "compiled": compiled}[kind]
    describe, step = prepare(variant, int(images), int(pixels), training == "1", int(option))
    answer(describe)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        answer(time.perf_counter() - start)
    answer(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def answer(value) -> None:
    """A line for `Side.read`."""
    print(f"answer: {value}", flush=True)


def prepare_own(variant: str, images: int, pixels: int, training: bool, with_kernels: int):
    """This network in MindSpore, as train.py and eval.py run it."""
    from src.runtime.device import prepare_device

    device = prepare_device("CPU")
    import mindspore as ms

    describe = f"MindSpore {ms.__version__}{'' if with_kernels and device.kernels else ' without kernels'}"
    return describe, own_step(variant, images, pixels, training, device.kernels if with_kernels else None)


def own_step(variant: str, images: int, pixels: int, training: bool, kernels):
    """The function that computes a step of the network with these kernels, or with None."""
    import mindspore as ms
    import numpy as np

    from src.loss import CrossEntropySmooth
    from src.models.effnet import create_network
    from src.training.optimizer import OptimizerSettings, create_optimizer
    from src.training.step import TrainStep

    network = create_network(variant, num_classes=CLASSES)
    if kernels:
        kernels.install(network)
    generator = np.random.default_rng(0)
    x = ms.Tensor(generator.standard_normal((images, 3, pixels, pixels)).astype(np.float32))
    y = ms.Tensor(generator.integers(0, CLASSES, images).astype(np.int32))
    if not training:
        network.set_train(False)
        return lambda: network(x).asnumpy()
    rates = np.full(100000, 1e-3, np.float32)
    optimizer = create_optimizer(network.trainable_params(), rates, OptimizerSettings())
    if kernels:
        kernels.install(optimizer)
    loss = CrossEntropySmooth(0.1, CLASSES)
    step = TrainStep(network, loss, optimizer).set_train()
    return lambda: step(x, y).asnumpy()


def prepare_peer(variant: str, images: int, pixels: int, training: bool, threads: int, compiled: bool = False):
    """timm's network in PyTorch with the same rates of dropout and the same optimiser."""
    from benchmarks.peers import timm, torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    dropout = VARIANTS[variant].dropout_rate
    network = timm.create_model(f"efficientnet_{variant}", num_classes=CLASSES, drop_rate=dropout, drop_path_rate=0.2)
    network = network.to(memory_format=torch.channels_last)
    x = torch.randn(images, 3, pixels, pixels).to(memory_format=torch.channels_last)
    y = torch.randint(0, CLASSES, (images,))
    describe = f"PyTorch {torch.__version__}, timm {timm.__version__}, channels_last"
    if compiled:
        network, describe = torch.compile(network), f"{describe}, torch.compile"
    if not training:
        network.eval()

        def evaluate():
            with torch.inference_mode():
                network(x)

        return describe, evaluate
    from timm.optim import RMSpropTF

    network.train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 1e-5}, {"params": others, "weight_decay": 0.0}]
    optimizer = RMSpropTF(groups, lr=1e-3, alpha=0.9, eps=1e-3, momentum=0.9)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def step():
        optimizer.zero_grad()
        loss = loss_of(network(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return describe, step


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        sys.exit(run_cli(main))
