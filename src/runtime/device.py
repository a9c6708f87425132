"""Which device, which rank, how many: found here, printed once, overridden by flags."""

from __future__ import annotations

import dataclasses
import functools
import os

import mindspore as ms
from mindspore import communication

from src.common.cli import RunError, UsageError
from src.common.machine import count_cores
from src.kernels import Kernels, load_kernels

TARGETS = ("Ascend", "GPU", "CPU")


@dataclasses.dataclass(frozen=True)
class Device:
    """The device of this process and its place among the ranks.

    Attributes:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the device on this host; 0 on CPU.
        rank: this process among all, from 0.
        rank_size: how many processes train together.
    """

    target: str
    device_id: int = 0
    rank: int = 0
    rank_size: int = 1

    @property
    def has_data_sink(self) -> bool:
        """Whether batches can be sent ahead to the device and a loop of steps run there."""
        return self.target != "CPU"

    @functools.cached_property
    def kernels(self) -> Kernels | None:
        """What the network computes with on a CPU, compiled on first use; None is MindSpore's own operators."""
        if self.target != "CPU":
            return None
        # Ranks on CPUs share this host's cores.
        return load_kernels(threads=max(1, count_cores() // self.rank_size))

    def describe(self) -> str:
        """A sentence for the log."""
        text = "CPU" if self.target == "CPU" else f"{self.target} {self.device_id}"
        return text if self.rank_size == 1 else f"{text}, rank {self.rank} of {self.rank_size}"


def find_target() -> str:
    """An NPU if there is one, else the CPU."""
    return "Ascend" if ms.hal.is_available("Ascend") else "CPU"


def prepare_device(target: str | None = None, device_id: int | None = None, distributed: bool = False) -> Device:
    """Choose the device and set MindSpore to graph mode on it.

    Args:
        target: "Ascend", "GPU" or "CPU"; None finds it.
        device_id: number of the device; None takes DEVICE_ID from the environment, else 0.
        distributed: join the other ranks that the environment names (rank table or dynamic cluster).

    Raises:
        UsageError: if the device is not there, or the ranks were not started together.
        RunError: if they cannot be joined.
    """
    if target is None:
        target = find_target()
    if target not in TARGETS:
        raise UsageError(f"--device_target is '{target}', not one of {', '.join(TARGETS)}")
    if not ms.hal.is_available(target):
        raise UsageError(
            f"--device_target is {target}, but this MindSpore finds no {target} device; "
            "leave the flag out to take what is there"
        )
    if device_id is None:
        device_id = read_environment_number("DEVICE_ID", 0)
    if target == "CPU":
        device_id = 0
        # With AVX-512 allowed, MindSpore's oneDNN takes its slow reference code for every spatial convolution
        # (five times slower for this network). It reads the variable when the first convolution runs.
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")
    else:
        count = ms.hal.device_count(target)
        if not 0 <= device_id < count:
            raise UsageError(f"--device_id is {device_id}, but this host has {count} {target} devices, numbered from 0")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device(target, device_id)
    if not distributed:
        return Device(target, device_id)
    return join_ranks(target, device_id)


def join_ranks(target: str, device_id: int) -> Device:
    """Join the process group: HCCL on Ascend, NCCL on GPU, MindSpore's own collectives on CPU."""
    if not any(name in os.environ for name in ("MS_ROLE", "RANK_TABLE_FILE", "OMPI_COMM_WORLD_RANK")):
        raise UsageError(
            "--run_distribute needs the ranks to be started together: use scripts/run_distribute_train.sh or msrun"
        )
    try:
        communication.init()
    except RuntimeError as error:
        raise RunError(f"the ranks could not be joined: {str(error).splitlines()[0]}") from None
    # Every rank computes the whole network on its own images; TrainStep averages the gradients.
    ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True)
    return Device(target, device_id, communication.get_rank(), communication.get_group_size())


def read_environment_number(name: str, default: int) -> int:
    """A whole number from the environment, or `default` where it is not set.

    Raises:
        UsageError: if it is set to something else.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise UsageError(f"the environment variable {name} is '{text}', not a whole number")
    return int(text)
