"""What the launcher starts on this server: one process for each rank, and on the CPU perhaps a scheduler."""

from __future__ import annotations

import dataclasses
import glob
import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence

from src.common.cli import UsageError
from src.common.machine import usable_cores
from src.launch.rank_table import RankedDevice, RankTable, Server, find_server, read_rank_table
from src.parameters import PARAMETERS, path_parameters
from src.published.table import is_published_name

# Flags of train.py whose values are paths. Each rank runs in a folder of its own, but the caller means paths of theirs.
PATH_FLAGS = ("--config", *(f"--{name}" for name in path_parameters()))

LOG_NAME = "log.txt"
DEFAULT_PORT = 8118

# The scheduler joins like a rank, computes nothing, and leaves when all ranks have left.
SCHEDULER_CODE = (
    "import mindspore; from mindspore import communication; mindspore.set_device('CPU'); communication.init()"
)


@dataclasses.dataclass(frozen=True)
class Worker:
    """One process to start: a rank or the scheduler.

    Attributes:
        name: for messages, such as "rank 3".
        folder: absolute path of the folder that it runs in.
        log: absolute path of the file that takes its output.
        command: program and arguments.
        variables: added to the environment.
        cores: numbers of the CPU cores that it may use; None leaves all of them to it.
    """

    name: str
    folder: str
    log: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    cores: frozenset[int] | None = None

    def describe(self) -> str:
        """The shell command that starts the same process."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        pinned = f"taskset -c {','.join(map(str, sorted(self.cores)))} " if self.cores else ""
        return (
            f"{self.name}: cd {shlex.quote(self.folder)} && {variables} {pinned}{shlex.join(self.command)} "
            f"> {shlex.quote(os.path.relpath(self.log, self.folder))}"
        )


@dataclasses.dataclass(frozen=True)
class LaunchPlan:
    """Everything that is to be started on this server.

    Attributes:
        table: the rank table.
        server: this server's entry in it.
        target: "Ascend" or "CPU".
        ranks: this server's ranks, in their order.
        scheduler: of MindSpore's dynamic cluster, if this server runs it: rank 0's server does, on the CPU.
        missing: sentences on what this machine lacks for it; only a plan that is not to be started has any.
    """

    table: RankTable
    server: Server
    target: str
    ranks: tuple[Worker, ...]
    scheduler: Worker | None = None
    missing: tuple[str, ...] = ()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The scheduler, if this server runs it, and the ranks."""
        return ((self.scheduler,) if self.scheduler else ()) + self.ranks

    def describe(self) -> str:
        """Lines for --dry-run."""
        of = f" of {len(self.table.servers)}" if len(self.table.servers) > 1 else ""
        lines = [
            f"rank table {self.table.path}: {self.table.rank_size} ranks; this is server {self.server.server_id}{of}, "
            f"with {len(self.ranks)} of them, on {self.target}"
        ]
        lines += [worker.describe() for worker in self.workers]
        return "\n".join(lines + [f"note: {sentence}" for sentence in self.missing])


def make_plan(
    arguments: Sequence[str], environment: Mapping[str, str], program: str, dry_run: bool = False
) -> LaunchPlan:
    """Decide what to start, and refuse what cannot work.

    Args:
        arguments: path of the rank table, path of the images, and further flags of train.py.
        environment: holds DEVICE_TARGET, RANK_SIZE, SERVER_ID and MASTER_PORT where the user sets them.
        program: absolute path of the Python script that each rank runs.
        dry_run: plan for other machines as well: what this one lacks is noted. Ranks are on Ascend unless the user
            chose, and of the servers the first is taken.

    Raises:
        UsageError: if the arguments, the rank table or the environment are wrong.
    """
    missing: list[str] = []

    def refuse(sentence: str) -> None:
        if not dry_run:
            raise UsageError(sentence)
        missing.append(sentence)

    table_path, data, *flags = arguments
    if not os.path.exists(data):
        refuse(f"DATA_DIR: there is no '{data}'")
    for parameter in PARAMETERS.values():
        if parameter.by_launcher and flag_value(flags, f"--{parameter.name}") is not None:
            raise UsageError(f"--{parameter.name} cannot be among the further flags: {parameter.by_launcher}")
    table = read_rank_table(table_path)
    wanted = environment.get("RANK_SIZE", "")
    if wanted and wanted != str(table.rank_size):
        raise UsageError(f"RANK_SIZE is {wanted}, but the rank table {table.path} lists {table.rank_size} ranks")
    try:
        server = find_server(table, environment.get("SERVER_ID"))
    except UsageError as error:
        if environment.get("SERVER_ID"):
            raise
        refuse(str(error))
        server = table.servers[0]
    target = choose_target(flags, environment, refuse)
    here = os.getcwd()
    command = [sys.executable, "-u", program, "--run_distribute", "True", "--device_target", target]
    command += ["--dataset_path", os.path.join(here, data), *absolute_paths(flags, here)]
    ranks = tuple(plan_rank(table, device, command, here) for device in server.devices)
    if target == "Ascend":
        return LaunchPlan(table=table, server=server, target=target, ranks=ranks, missing=tuple(missing))
    cluster = cluster_variables(table, choose_port(table, environment))
    scheduler = plan_scheduler(table, cluster, here) if server == table.master else None
    return LaunchPlan(
        table=table,
        server=server,
        target=target,
        ranks=join_cluster(ranks, cluster, environment),
        scheduler=scheduler,
        missing=tuple(missing),
    )


def choose_target(flags: Sequence[str], environment: Mapping[str, str], refuse: Callable[[str], None]) -> str:
    """The value of --device_target, else that of DEVICE_TARGET, else Ascend.

    Raises:
        UsageError: if it is neither Ascend nor CPU; `refuse` is told if nobody chose and this server has no NPU.
    """
    given = flag_value(flags, "--device_target") or environment.get("DEVICE_TARGET", "")
    if given not in ("", "Ascend", "CPU"):
        raise UsageError(f"DEVICE_TARGET is '{given}'; a rank table starts ranks on Ascend or CPU")
    if not given and not glob.glob("/dev/davinci[0-9]*"):
        refuse("there is no NPU on this server (no /dev/davinci*); DEVICE_TARGET=CPU starts the ranks on the CPU")
    return given or "Ascend"


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value that train.py's parser would read for a flag, or None if the flag is not given."""
    value = None
    for position, flag in enumerate(flags):
        if flag.startswith(name + "="):
            value = flag[len(name) + 1 :]
        elif flag == name and position + 1 < len(flags):
            value = flags[position + 1]
    return value


def absolute_paths(flags: Sequence[str], here: str) -> list[str]:
    """The flags of train.py with absolute paths; without --save_checkpoint_path all ranks share `here`/checkpoint.

    The name of published weights is no path.
    """

    def absolute(name: str, value: str) -> str:
        is_name = value == "auto" or name == "--pretrained" and is_published_name(value)
        return value if is_name else os.path.join(here, value)

    result = []
    expecting = None
    for flag in flags:
        name, equals, value = flag.partition("=")
        if expecting:
            flag = absolute(expecting, flag)
        elif equals and name in PATH_FLAGS:
            flag = f"{name}={absolute(name, value)}"
        expecting = name if not equals and name in PATH_FLAGS else None
        result.append(flag)
    if flag_value(flags, "--save_checkpoint_path") is None:
        result += ["--save_checkpoint_path", os.path.join(here, "checkpoint")]
    return result


def rank_folder(rank: int, here: str) -> str:
    """The folder that a rank runs in."""
    return os.path.join(here, f"train_parallel{rank}")


def plan_rank(table: RankTable, device: RankedDevice, command: Sequence[str], here: str) -> Worker:
    """A rank with the environment variables that the model zoo's launcher sets."""
    folder = rank_folder(device.rank, here)
    variables = {
        "RANK_ID": str(device.rank),
        "DEVICE_ID": str(device.device_id),
        "RANK_SIZE": str(table.rank_size),
        "RANK_TABLE_FILE": table.path,
    }
    return Worker(
        name=f"rank {device.rank}",
        folder=folder,
        log=os.path.join(folder, LOG_NAME),
        command=tuple(command),
        variables=variables,
    )


# On the CPU ranks find each other through MindSpore's dynamic cluster


def choose_port(table: RankTable, environment: Mapping[str, str]) -> int:
    """The scheduler's port: MASTER_PORT, else a free one. Several servers could not agree on one that was found free.

    Raises:
        UsageError: if MASTER_PORT is not a port number.
    """
    port = environment.get("MASTER_PORT", "")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"MASTER_PORT is '{port}', not a port number from 1 to 65535")
    if port:
        return int(port)
    return DEFAULT_PORT if len(table.servers) > 1 else find_free_port()


def find_free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cluster_variables(table: RankTable, port: int) -> dict[str, str]:
    """The environment variables of every process of MindSpore's dynamic cluster; msrun sets them as well."""
    return {
        "MS_WORKER_NUM": str(table.rank_size),
        "MS_SCHED_HOST": table.master.server_id if len(table.servers) > 1 else "127.0.0.1",
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": "600",
    }


def join_cluster(
    ranks: Sequence[Worker], cluster: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[Worker, ...]:
    """The ranks as members of the dynamic cluster, each with its share of this server's cores."""
    joined = []
    for position, rank in enumerate(ranks):
        variables = {**rank.variables, **cluster, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank.variables["RANK_ID"]}
        cores = share_of_cores(position, len(ranks))
        if cores:
            variables["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", str(len(cores)))
        joined.append(dataclasses.replace(rank, variables=variables, cores=cores))
    return tuple(joined)


def share_of_cores(position: int, count: int) -> frozenset[int] | None:
    """The cores of one of `count` ranks, or None if there are fewer cores than ranks.

    Without a share of its own every rank starts as many threads as the machine has cores, and they wait for each other.
    """
    cores = usable_cores()
    if count > len(cores):
        return None
    return frozenset(cores[len(cores) * position // count : len(cores) * (position + 1) // count])


def plan_scheduler(table: RankTable, cluster: Mapping[str, str], here: str) -> Worker:
    """The scheduler of the dynamic cluster, with its log beside rank 0's."""
    variables = {"RANK_ID": "0", "RANK_SIZE": str(table.rank_size), **cluster, "MS_ROLE": "MS_SCHED", "GLOG_v": "3"}
    log = os.path.join(rank_folder(0, here), "scheduler.log")
    return Worker(
        name="the scheduler", folder=here, log=log, command=(sys.executable, "-c", SCHEDULER_CODE), variables=variables
    )
