"""One process to start, where it runs, and its share of the cores."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence

from src.common.machine import usable_cores

LOG_NAME = "log.txt"


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


def add_variables(worker: Worker, variables: Mapping[str, str]) -> Worker:
    """A worker with further environment variables."""
    return dataclasses.replace(worker, variables={**worker.variables, **variables})


def rank_folder(rank: int, here: str) -> str:
    """The folder that a rank runs in."""
    return os.path.join(here, f"train_parallel{rank}")


def bind_cores(ranks: Sequence[Worker], environment: Mapping[str, str]) -> tuple[Worker, ...]:
    """The ranks, each with its share of this server's cores, as many neighbouring ones for each."""
    bound = []
    for position, rank in enumerate(ranks):
        cores = share_of_cores(position, len(ranks))
        threads = {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", str(len(cores)))} if cores else {}
        bound.append(dataclasses.replace(add_variables(rank, threads), cores=cores))
    return tuple(bound)


def share_of_cores(position: int, count: int) -> frozenset[int] | None:
    """The cores of one of `count` ranks, or None if there are fewer cores than ranks.

    Without a share of its own every rank starts as many threads as the machine has cores, and they wait for each other.
    """
    cores = usable_cores()
    if count > len(cores):
        return None
    return frozenset(cores[len(cores) * position // count : len(cores) * (position + 1) // count])
