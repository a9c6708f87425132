"""Where the time of a training step on the CPU goes: the phases of the kernels, each beside what bounds it.

The bound of a phase is the larger of two times: its multiplications and additions, at the rate of the kernels' product
of matrices in the first cache; and the bytes of its tensors, each read or written once, at the rate of PyTorch's copy
of a large one. Both are measured here. The arithmetic of norms and activations is not in the bound, nor that a
processor reads a cache line before it writes it.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.machine import describe_machine
from benchmarks.train_step import own_step
from src.common.cli import ArgumentParser, positive_int, run_cli
from src.models.family import VARIANTS

WARM = 2


def main(argv=None) -> None:
    """Print a table of phases and the JSON line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="b0", help="member of the family")
    parser.add_argument("--images", type=positive_int, default=16, help="images of a step")
    parser.add_argument("--pixels", type=positive_int, default=224, help="their height and width")
    parser.add_argument("--steps", type=positive_int, default=15, help="steps that are measured")
    arguments = parser.parse_args(argv)
    print(f"machine: {describe_machine('mindspore', 'torch')}", flush=True)
    kernels = profiled_kernels()
    rate, bandwidth = machine_limits(ctypes.CDLL(kernels.library))
    limits = f"product of matrices: {rate / 1e9:.0f} GFLOP/s; copy: {bandwidth / 1e9:.1f} GB/s, read and written"
    print(f"{os.path.basename(kernels.library)}; {limits}", flush=True)
    work = count_work(arguments.variant, arguments.images, arguments.pixels)
    times, whole = measure(arguments, kernels)
    print("\n| phase | ms | GFLOP | MB | bound, ms |\n| --- | --- | --- | --- | --- |")
    result = {}
    for phase in sorted(times, key=times.get, reverse=True):
        operations, size = work.get(phase, (0, 0))
        bound = max(operations / rate, size / bandwidth)
        figures = [f"{operations / 1e9:.1f}", f"{size / 1e6:.0f}", f"{bound * 1e3:.1f}"] if phase in work else [""] * 3
        print(f"| {phase} | {times[phase] * 1e3:.1f} | {' | '.join(figures)} |")
        result[phase] = round(times[phase] * 1e3, 1)
    print(f"| MindSpore, everything else | {(whole - sum(times.values())) * 1e3:.1f} | | | |")
    print(f"| whole step | {whole * 1e3:.1f} | | | |\n")
    bound = sum(max(operations / rate, size / bandwidth) for operations, size in work.values())
    print(json.dumps({"step_ms": round(whole * 1e3, 1), "bound_ms": round(bound * 1e3, 1), "phases_ms": result}))


def profiled_kernels():
    """The kernels, compiled so that they count the time of their phases."""
    from src.kernels import Kernels, build

    return Kernels(build.library(more=["-DKERNELS_PROFILE"]))


def machine_limits(kernels: ctypes.CDLL) -> tuple[float, float]:
    """Operations and bytes in a second, on all cores: the best of some tries."""
    import torch

    source = torch.randn(1 << 26)
    target = torch.empty_like(source)
    kernels.kernels_multiply.restype = ctypes.c_double
    rates = []
    for _ in range(10):
        start = time.perf_counter()
        operations = kernels.kernels_multiply()
        rates.append(operations / (time.perf_counter() - start))
    return max(rates), max(2 * 4 * source.numel() / seconds_of(lambda: target.copy_(source)) for _ in range(10))


def seconds_of(task) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def count_work(variant: str, images: int, pixels: int) -> dict[str, tuple[float, float]]:
    """Operations and bytes of each phase, from the layers' shapes."""
    from src.kernels.mbconv import MADE_ANEW

    work: dict[str, tuple[float, float]] = {}

    def add(phase: str, operations: float, numbers: float) -> None:
        before = work.get(phase, (0, 0))
        work[phase] = (before[0] + operations, before[1] + 4 * numbers)

    side = -(-pixels // 2)
    blocks = VARIANTS[variant].blocks
    for block in blocks:
        after = -(-side // block.stride)
        here, there = images * side**2, images * after**2
        narrow, wide, filtered, out = (
            here * block.in_channels,
            here * block.hidden_channels,
            there * block.hidden_channels,
            there * block.out_channels,
        )
        read, again = wide if block.expands else narrow, 0
        gradient = read
        if block.expands:
            products = 2 * narrow * block.hidden_channels
            if block.in_channels <= MADE_ANEW:
                read, again = narrow, products
            add("expand", products, narrow if again else narrow + wide)
            add("expand, backward", 2 * products + again, 2 * narrow + wide + (0 if again else wide))
        taps = 2 * block.kernel_size**2 * filtered
        add("depthwise", taps + again, read + filtered)
        # Gradient and output of the convolution, its input, and the input's gradient.
        add("depthwise, backward", 2 * taps + 2 * again, 2 * filtered + read + gradient)
        if block.squeezed_channels:
            add("squeeze and excite", 0, filtered)
        products = 2 * filtered * block.out_channels
        add("project", products, filtered + 3 * out)
        add("project, backward", 2 * products, 2 * filtered + 3 * out)
        side = after
    return work


def measure(arguments, kernels) -> tuple[dict[str, float], float]:
    """Median seconds of each phase and of the whole step."""
    from src.runtime.device import prepare_device

    prepare_device("CPU")
    step = own_step(arguments.variant, arguments.images, arguments.pixels, True, kernels)
    visitor = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_double)
    phases: dict[str, list[float]] = {}
    visit = visitor(lambda name, seconds: phases.setdefault(name.decode(), []).append(seconds))
    read_phases = ctypes.CDLL(kernels.library).kernels_phases
    wholes = []
    for i in range(WARM + arguments.steps):
        if i == WARM:
            phases.clear()
            wholes.clear()
        wholes.append(seconds_of(step))
        read_phases(visit)
    return {name: statistics.median(values) for name, values in phases.items()}, statistics.median(wholes)


if __name__ == "__main__":
    sys.exit(run_cli(main))
