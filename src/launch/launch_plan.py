"""What the launcher starts on this server: one process for each rank, and on rank 0's server a scheduler."""

from __future__ import annotations

import dataclasses
import glob
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from src.common.cli import UsageError
from src.launch.cluster import choose_port, cluster_variables, join_cluster, plan_scheduler, visible_devices
from src.launch.rank_table import RankedDevice, RankTable, Server, find_server, read_rank_table
from src.launch.worker import LOG_NAME, Worker, add_variables, bind_cores, rank_folder
from src.parameters import PARAMETERS, path_parameters
from src.published.table import is_published_name

# Flags of train.py whose values are paths. Each rank runs in a folder of its own, but the caller means paths of theirs.
PATH_FLAGS = ("--config", *(f"--{name}" for name in path_parameters()))


@dataclasses.dataclass(frozen=True)
class LaunchPlan:
    """Everything that is to be started on this server.

    Attributes:
        table: the rank table.
        server: this server's entry in it.
        target: "Ascend" or "CPU".
        ranks: this server's ranks, in their order.
        scheduler: of MindSpore's dynamic cluster, if this server runs it: rank 0's server does.
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
        environment: holds DEVICE_TARGET, RANK_SIZE, SERVER_ID, MASTER_PORT, LAUNCH and BIND_CORES where the user sets
            them.
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
    start = choose_launch(environment, target)
    here = os.getcwd()
    command = [sys.executable, "-u", program, "--run_distribute", "True", "--device_target", target]
    command += ["--dataset_path", os.path.join(here, data), *absolute_paths(flags, here)]
    ranks = tuple(plan_rank(table, device, command, here) for device in server.devices)
    scheduler = None
    if start == "cluster":
        cluster = cluster_variables(table, choose_port(table, environment))
        ranks = join_cluster(ranks, cluster, visible_devices(server) if target == "Ascend" else {})
        scheduler = plan_scheduler(table, cluster, here) if server == table.master else None
    else:
        ranks = tuple(add_variables(rank, {"RANK_TABLE_FILE": table.path}) for rank in ranks)
    if environment.get("BIND_CORES", "1") != "0":
        ranks = bind_cores(ranks, environment)
    return LaunchPlan(
        table=table, server=server, target=target, ranks=ranks, scheduler=scheduler, missing=tuple(missing)
    )


def choose_launch(environment: Mapping[str, str], target: str) -> str:
    """How the ranks find each other: by MindSpore's dynamic "cluster", as msrun starts it, or by the "rank_table".

    Raises:
        UsageError: if LAUNCH is neither, or the device cannot.
    """
    start = environment.get("LAUNCH") or "cluster"
    if start not in ("cluster", "rank_table"):
        raise UsageError(f"LAUNCH is '{start}'; ranks are started by cluster (the default) or by rank_table")
    if start == "rank_table" and target != "Ascend":
        raise UsageError(f"LAUNCH=rank_table is for Ascend; ranks on the {target} are started by cluster")
    return start


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


def plan_rank(table: RankTable, device: RankedDevice, command: Sequence[str], here: str) -> Worker:
    """A rank with the environment variables that the model zoo's launcher sets, RANK_TABLE_FILE aside."""
    folder = rank_folder(device.rank, here)
    variables = {
        "RANK_ID": str(device.rank),
        "DEVICE_ID": str(device.device_id),
        "RANK_SIZE": str(table.rank_size),
    }
    return Worker(
        name=f"rank {device.rank}",
        folder=folder,
        log=os.path.join(folder, LOG_NAME),
        command=tuple(command),
        variables=variables,
    )
