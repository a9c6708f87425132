"""Which device, which rank, how many: found here, printed once, overridden by flags."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import os

import mindspore as ms
from mindspore import communication

from src.common.cli import RunError, UsageError
from src.common.machine import count_own_cores
from src.kernels import Kernels, load_kernels

TARGETS = ("Ascend", "GPU", "CPU")
JIT_LEVELS = {"Ascend": "O0", "GPU": None, "CPU": None}
"""Of graphs where no flag says otherwise; None leaves it to MindSpore. O0 launches the kernels one by one, as MindSpore
itself does for what msrun starts; O2, the back end GE, is deprecated since MindSpore 2.9."""
RUNTIME_THREADS = 5
"""Threads that launch an NPU's kernels: MindSpore's default, of which it takes fewer where the host has few cores. With
too few it refuses graphs in which something depends on a number, such as whether gradients have been accumulated."""
DRY_RUN = "MS_SIMULATION_LEVEL"
"""Set in MindSpore's DryRun, which compiles for devices that are not there."""
DRY_RUN_DEVICES = 16


@dataclasses.dataclass(frozen=True)
class Device:
    """The device of this process and its place among the ranks.

    Attributes:
        target: "Ascend", "GPU" or "CPU".
        device_id: number of the device on this host; 0 on CPU.
        rank: this process among all, from 0.
        rank_size: how many processes train together.
        card: what CANN calls the NPU, such as Ascend910B2; empty elsewhere.
        conv_precision: see `prepare_device`.
    """

    target: str
    device_id: int = 0
    rank: int = 0
    rank_size: int = 1
    card: str = ""
    conv_precision: str | None = None

    @property
    def has_data_sink(self) -> bool:
        """Whether batches can be sent ahead to the device and a loop of steps run there."""
        return self.target != "CPU"

    @functools.cached_property
    def kernels(self) -> Kernels | None:
        """What the network computes with on a CPU, compiled on first use; None is MindSpore's own operators."""
        if self.target != "CPU":
            return None
        return load_kernels(threads=count_own_cores(self.rank_size))

    def describe(self) -> str:
        """A sentence for the log."""
        text = "CPU" if self.target == "CPU" else f"{self.target} {self.device_id}"
        if self.card:
            text += f" ({self.card}, float32 convolutions in {self.conv_precision or precision_of_card(self.card)})"
        return text if self.rank_size == 1 else f"{text}, rank {self.rank} of {self.rank_size}"


def count_devices(target: str) -> int:
    """How many devices of a kind this host has. That MindSpore could load its plugin for them does not say so."""
    if target == "CPU":
        return 1
    devices = ms.device_context.ascend if target == "Ascend" else ms.device_context.gpu
    if not devices.is_available():
        return 0
    return DRY_RUN_DEVICES if os.environ.get(DRY_RUN) else devices.device_count()


def find_card(library: str = "libascendcl.so") -> str:
    """What CANN calls this host's NPU, such as Ascend910B2 or Ascend310P3; empty where there is no CANN."""
    try:
        name_of_card = ctypes.CDLL(library).aclrtGetSocName
    except (OSError, AttributeError):
        return ""
    name_of_card.restype = ctypes.c_char_p
    return (name_of_card() or b"").decode(errors="replace")


def is_inference_card(card: str) -> bool:
    """Whether an NPU is a 310, 310B or 310P, which has no operators for gradients."""
    return card.startswith("Ascend310")


def precision_of_card(card: str) -> str:
    """What a card's convolutions make of float32 unless they are told otherwise, as CANN's documentation says."""
    return "hf32" if card.startswith(("Ascend910B", "Ascend910_93")) else "fp32 where the card can, else fp16"


def find_target() -> str:
    """An NPU for training if there is one, else the CPU."""
    if not count_devices("Ascend"):
        return "CPU"
    card = find_card()
    if not is_inference_card(card):
        return "Ascend"
    print(f"note: the NPU here is an {card}, which is for exported models only; the CPU computes", flush=True)
    return "CPU"


def prepare_device(
    target: str | None = None,
    device_id: int | None = None,
    distributed: bool = False,
    jit_level: str | None = None,
    conv_precision: str | None = None,
) -> Device:
    """Choose the device and set MindSpore to graph mode on it.

    Args:
        target: "Ascend", "GPU" or "CPU"; None finds it.
        device_id: number of the device; None takes DEVICE_ID from the environment, else 0.
        distributed: join the other ranks that the environment names (rank table or dynamic cluster).
        jit_level: "O0", "O1" or "O2", how far MindSpore optimises graphs; None takes JIT_LEVELS.
        conv_precision: "fp32", "hf32" or "fp16", what an NPU makes of convolutions of float32; None leaves it to CANN.

    Raises:
        UsageError: if the device is not there or cannot what is asked for, or the ranks were not started together.
        RunError: if they cannot be joined.
    """
    if target is None:
        target = find_target()
    if target not in TARGETS:
        raise UsageError(f"--device_target is '{target}', not one of {', '.join(TARGETS)}")
    count = count_devices(target)
    if not count:
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
    elif not 0 <= device_id < count:
        raise UsageError(f"--device_id is {device_id}, but this host has {count} {target} devices, numbered from 0")
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device(target, device_id)
    set_jit_level(target, jit_level)
    if conv_precision:
        set_conv_precision(target, conv_precision)
    card = ""
    if target == "Ascend":
        card = find_card()
        # A second time in a process MindSpore refuses.
        with contextlib.suppress(RuntimeError):
            ms.runtime.dispatch_threads_num(RUNTIME_THREADS)
    device = Device(target, device_id, card=card, conv_precision=conv_precision)
    device = join_ranks(device) if distributed else device
    if target == "CPU":
        # Left to itself MindSpore counts all cores of the host. Where the process may use a few of them, as in a
        # container, its threads wait by looking again and again, and take these from those that compute.
        with contextlib.suppress(RuntimeError):
            ms.device_context.cpu.op_tuning.threads_num(count_own_cores(device.rank_size))
    return device


def set_jit_level(target: str, level: str | None) -> None:
    """Tell MindSpore how far to optimise graphs, unless it is left to it.

    Raises:
        UsageError: if the device has no such back end, or a rank table rules it out.
    """
    if level == "O2" and target != "Ascend":
        raise UsageError(f"--jit_level O2 is the back end GE, which NPUs alone have; on a {target} take O0 or O1")
    if target == "Ascend" and "RANK_TABLE_FILE" in os.environ:
        # MindSpore loads GE then, whatever it is told.
        if level in ("O0", "O1"):
            raise UsageError(
                f"--jit_level {level}: with a rank table (RANK_TABLE_FILE) MindSpore takes O2; start the ranks without "
                "LAUNCH=rank_table, or by msrun"
            )
        level = "O2"
    level = level or JIT_LEVELS[target]
    if level:
        ms.set_context(jit_config={"jit_level": level})


def set_conv_precision(target: str, precision: str) -> None:
    """Tell CANN what convolutions make of float32.

    Raises:
        UsageError: if the device is no NPU.
    """
    if target != "Ascend":
        raise UsageError(f"--conv_precision is for NPUs; a {target} computes convolutions in the type of their input")
    settings = ms.device_context.ascend.op_precision
    settings.conv_allow_hf32(precision == "hf32")
    settings.precision_mode("allow_fp32_to_fp16" if precision == "fp16" else "must_keep_origin_dtype")


def join_ranks(device: Device) -> Device:
    """Join the process group: HCCL on Ascend, NCCL on GPU, MindSpore's own collectives on CPU.

    Every rank computes the whole network on its own images; TrainStep averages the gradients by itself, so that nothing
    of MindSpore's parallel modes is needed.
    """
    if not any(name in os.environ for name in ("MS_ROLE", "RANK_TABLE_FILE", "OMPI_COMM_WORLD_RANK", DRY_RUN)):
        raise UsageError(
            "--run_distribute needs the ranks to be started together: use scripts/run_distribute_train.sh or msrun"
        )
    try:
        communication.init()
    except RuntimeError as error:
        raise RunError(f"the ranks could not be joined: {str(error).splitlines()[0]}") from None
    return dataclasses.replace(device, rank=communication.get_rank(), rank_size=communication.get_group_size())


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
