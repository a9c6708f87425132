"""The training step of B0 as MindSpore compiles it for Ascend, beside MindCV's: kernels, memory, bytes. Needs no NPU.

python benchmarks/ascend_rehearsal.py

MindSpore's dry run compiles both with stand-ins for CANN (benchmarks/rehearsal) and computes nothing. Bytes, operations
and the bound on the time are a model from the shapes in the compiled graph, not a measurement. MindCV comes from the
package index, or from a folder that --mindcv names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.machine import describe_machine
from benchmarks.rehearsal import graph, standins
from benchmarks.rehearsal.run import Rehearsal, environment_of, rehearse
from src.common.cli import ArgumentParser, RunError, positive_int, run_cli

MINDCV = "mindcv==0.3.0"
STEP = "benchmarks/rehearsal/step.py"
# Bytes/s of the memory and float16 operations/s of the matrix unit of a card. 910: 256 TFLOPS is what Huawei announced,
# 1.2 TB/s what books on it give. A2: CANN's guide to moving operators between cards (ops-nn,
# docs/zh/develop/cross_platform_migration_guide.md).
CARDS = {"910": (1.2e12, 256e12), "Atlas 800T A2": (1.6e12, 353e12)}
# Memory of other members of the family: images a card, pixels.
MEMORY = {"b4": (64, 380), "lite0": (512, 224)}


def main(argv=None) -> None:
    """Compile, print tables and the JSON line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_int, default=256, help="images a step")
    parser.add_argument("--mindcv", help="folder of MindCV's source; left out, it is taken from the package index")
    parser.add_argument("--launch_us", type=positive_int, default=10, help="what a launch costs the host: assumed")
    arguments = parser.parse_args(argv)
    reason = standins.why_not()
    if reason:
        raise RunError(reason)
    print(f"machine: {describe_machine('mindspore')}", flush=True)
    with tempfile.TemporaryDirectory() as work:
        environment = standins.create_standins(os.path.join(work, "standins"))
        images = ["--images", str(arguments.images)]
        own, nodes = compile_step(images, environment, work)
        report("ours, O3", own, nodes, arguments.launch_us)
        standard = compile_step([*images, "--without_kernels"], environment, work)
        report("ours, O3, --kernels False", *standard, arguments.launch_us)
        fused, fused_nodes = compile_step([*images, "--jit_level", "O1"], environment, work)
        report("ours, O3, --jit_level O1", fused, fused_nodes, arguments.launch_us)
        averaged, _ = compile_step([*images, "--ema_decay", "0.9999"], environment, work)
        print(f"with a moving average of the weights: {sum(averaged.kernels.values())} kernels")
        eight, _ = compile_step([*images, "--distribute"], environment, work, 8)
        report_collectives(own, eight)
        source = arguments.mindcv or install_mindcv(os.path.join(work, "mindcv"))
        peers = {}
        for level in ("O2", "O3"):
            peers[level] = compile_step([*images, "--mindcv", source, "--amp_level", level], environment, work)
            how = ", as it trains" if level == "O2" else ""
            report(f"MindCV: {level}, dynamic loss scale{how}", *peers[level], arguments.launch_us)
        for variant, (count, pixels) in MEMORY.items():
            flags = ["--variant", variant, "--images", str(count), "--pixels", str(pixels)]
            run, _ = compile_step(flags, environment, work)
            print(f"{variant}, {count} images of {pixels}: {sum(run.kernels.values())} kernels, {run.peak_memory} MiB")
    result = {
        "kernels": sum(own.kernels.values()),
        "acl_kernels": own.count(kind="acl_kernel"),
        "gigabytes": gigabytes(nodes),
        "kernels_mindcv": sum(peers["O2"][0].kernels.values()),
        "gigabytes_mindcv": gigabytes(peers["O2"][1]),
        "kernels_mindcv_o3": sum(peers["O3"][0].kernels.values()),
        "gigabytes_mindcv_o3": gigabytes(peers["O3"][1]),
    }
    print(json.dumps(result))


def compile_step(flags: list[str], environment: dict, work: str, ranks: int = 1) -> tuple[Rehearsal, list[graph.Node]]:
    """A training step with these flags of rehearsal/step.py, and the kernels of its graph."""
    folder = tempfile.mkdtemp(dir=work)
    run = rehearse([STEP, *flags, "--graphs", folder], environment_of(environment, 0, ranks), work)
    if run.code:
        raise RunError(f"{STEP} {' '.join(flags)} ended with exit code {run.code}: {run.said[-2000:]}")
    return run, graph.read_graph(folder)


def install_mindcv(folder: str) -> str:
    """MindCV alone, without what its package asks for, in a folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, MINDCV]
    if subprocess.run(command).returncode:
        raise RunError(f"{MINDCV} cannot be installed; name a folder of its source with --mindcv")
    return folder


def report(name: str, run: Rehearsal, nodes: list[graph.Node], launch_us: int) -> None:
    """Print a step's kernels, and what the model says of them."""
    total, kinds = sum(run.kernels.values()), sorted({kind for _, kind in run.kernels})
    print(f"\n{name}: {total} kernels ({', '.join(f'{run.count(kind=kind)} {kind}' for kind in kinds)})")
    print(f"memory {run.peak_memory} MiB, jit level {', '.join(sorted(run.jit_levels))}")
    print("| operator | kernels | GB | TFLOP |\n| --- | --- | --- | --- |")
    for operator, (count, read, computed) in graph.sum_by_operator(nodes).items():
        print(f"| {operator} | {count} | {read / 1e9:.2f} | {computed / 1e12:.2f} |")
    operations = sum(node.operations for node in nodes)
    print(f"model: {gigabytes(nodes)} GB, {operations / 1e12:.2f} TFLOP")
    for card, (bandwidth, cube) in CARDS.items():
        least = graph.bound_seconds(nodes, bandwidth, cube) * 1e3
        print(
            f"model: not less than {least:.0f} ms on a {card} ({bandwidth / 1e12:g} TB/s, {cube / 1e12:g} TFLOPS); "
            f"launches of {launch_us} us each take the host {total * launch_us / 1e3:.0f} ms",
            flush=True,
        )


def report_collectives(one: Rehearsal, eight: Rehearsal) -> None:
    """Print what one of eight ranks launches beyond one card."""
    collectives = {name: count for (name, kind), count in eight.kernels.items() if kind == "hccl_kernel"}
    beyond = sum(eight.kernels.values()) - sum(one.kernels.values())
    print(f"\none of eight ranks: {collectives}, {beyond} kernels beyond one card's")


def gigabytes(nodes: list[graph.Node]) -> float:
    """What all kernels read and write, by the model."""
    return round(sum(node.bytes for node in nodes) / 1e9, 1)


if __name__ == "__main__":
    sys.exit(run_cli(main))
