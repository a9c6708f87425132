"""MindSpore's dynamic cluster, through which ranks find each other: what its members and its scheduler are told."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence

from src.common.cli import UsageError
from src.launch.rank_table import RankTable, Server
from src.launch.worker import Worker, add_variables, rank_folder

DEFAULT_PORT = 8118

# The scheduler joins like a rank, computes nothing, and leaves when all ranks have left.
SCHEDULER_CODE = (
    "import mindspore; from mindspore import communication; mindspore.set_device('CPU'); communication.init()"
)


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


def join_cluster(ranks: Sequence[Worker], cluster: Mapping[str, str], devices: Mapping[str, str]) -> tuple[Worker, ...]:
    """The ranks as members of the dynamic cluster.

    In it MindSpore numbers the devices of a server from 0 in the order of its ranks, whatever DEVICE_ID says. Where the
    table has others, `devices` makes the driver show those alone, under the same numbers.
    """
    joined = []
    for position, rank in enumerate(ranks):
        own = {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank.variables["RANK_ID"]}
        if devices:
            own["DEVICE_ID"] = str(position)
        joined.append(add_variables(rank, {**cluster, **own, **devices}))
    return tuple(joined)


def visible_devices(server: Server) -> dict[str, str]:
    """The setting of the Ascend driver that shows a server's devices alone; empty where they are numbered from 0.

    Raises:
        UsageError: if the devices do not rise with the ranks, which the dynamic cluster cannot do.
    """
    numbers = [device.device_id for device in server.devices]
    if numbers != sorted(numbers):
        raise UsageError(
            f"the rank table gives server {server.server_id} the devices {', '.join(map(str, numbers))} in the order "
            "of its ranks; they must rise with the ranks, or be started with LAUNCH=rank_table"
        )
    if numbers == list(range(len(numbers))):
        return {}
    return {"ASCEND_RT_VISIBLE_DEVICES": ",".join(map(str, numbers))}


def plan_scheduler(table: RankTable, cluster: Mapping[str, str], here: str) -> Worker:
    """The scheduler of the dynamic cluster, with its log beside rank 0's."""
    variables = {"RANK_ID": "0", "RANK_SIZE": str(table.rank_size), **cluster, "MS_ROLE": "MS_SCHED", "GLOG_v": "3"}
    log = os.path.join(rank_folder(0, here), "scheduler.log")
    return Worker(
        name="the scheduler", folder=here, log=log, command=(sys.executable, "-c", SCHEDULER_CODE), variables=variables
    )
