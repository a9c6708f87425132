"""Runs a script in MindSpore's dry run for Ascend, and reads what it compiled, launched, allocated and said."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "script.py")
KERNEL = re.compile(r"GenerateKernelMod\] kernel opname:(\S+), kernel type:(\w+)")
# Reshapes that are their input under another name.
NOT_LAUNCHED = re.compile(r"OptimizeNopNode\] The reference relation of nopnode (\S+), index")
JIT_LEVEL = re.compile(r"The jit_level is: (O\d)")
PEAK = re.compile(r"Actual peak memory usage \(with fragments\): (\d+)M")
# Lines that are MindSpore's log, not the script's.
LOGGED = re.compile(r"^\[(INFO|WARNING|ERROR|CRITICAL|DEBUG)\] ")


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """What a run did.

    Attributes:
        code: exit code.
        said: what the script printed, and what is left of standard error without MindSpore's log.
        kernels: how often each kernel is launched, over all graphs that were compiled, by (operator, kind). The kinds
            are "opapi_kernel" (aclnn), "acl_kernel" (an older operator, compiled singly), "hccl_kernel", "rt_kernel",
            "host_kernel", "aicpu_kernel" ...
        jit_levels: of the graphs that were compiled.
        peak_memory: the most memory of the card that was in use, in MiB; 0 where the run did not say.
        log: all of it.
    """

    code: int
    said: str
    kernels: collections.Counter
    jit_levels: set[str]
    peak_memory: int
    log: str

    def count(self, operator: str | None = None, kind: str | None = None) -> int:
        """How many kernels there are of an operator and a kind; None is any."""
        return sum(n for (o, k), n in self.kernels.items() if operator in (None, o) and kind in (None, k))

    def names(self, kind: str) -> set[str]:
        """The operators that are launched as a kind of kernel."""
        return {operator for (operator, other), count in self.kernels.items() if other == kind and count}


def environment_of(
    standins: Mapping[str, str], rank: int = 0, rank_size: int = 1, rank_table: str | None = None
) -> dict[str, str]:
    """The environment of a run with the stand-ins that `create_standins` made, as one of some ranks.

    Args:
        standins: what `create_standins` returned.
        rank, rank_size: nothing else has to run; the dry run waits for no other rank.
        rank_table: file of the ranks. With one, MindSpore leaves the graph to GE, a part of CANN: the run ends after
            MindSpore's own part, the front end.
    """
    paths = {name: os.pathsep.join(filter(None, [standins[name], os.environ.get(name)])) for name in standins}
    ranks = {"RANK_ID": str(rank), "RANK_SIZE": str(rank_size), "GLOG_v": "1"}
    ranks["MS_SIMULATION_LEVEL"] = "0" if rank_table else "1"
    if rank_table:
        ranks["RANK_TABLE_FILE"] = rank_table
    elif rank_size > 1:
        # As if mpirun had started it.
        ranks["OMPI_COMM_WORLD_RANK"] = str(rank)
    return {**os.environ, **paths, **ranks, "ASCEND_HOME_PATH": standins["ASCEND_HOME_PATH"]}


def start(command: Sequence[str], environment: Mapping[str, str], folder: str, output=subprocess.PIPE):
    """Start a script of this repository in a folder.

    Args:
        command: the script, from the repository's root, and its flags.
        environment: of `environment_of`.
        folder: working directory.
        output: file for what it prints and logs.

    Returns:
        subprocess.Popen.
    """
    words = [sys.executable, "-u", SCRIPT, os.path.join(ROOT, command[0]), *command[1:]]
    return subprocess.Popen(
        words, cwd=folder, env=dict(environment), stdout=output, stderr=subprocess.STDOUT, errors="replace"
    )


def rehearse(command: Sequence[str], environment: Mapping[str, str], folder: str) -> Rehearsal:
    """Run a script as `start` does, and read its log."""
    with start(command, environment, folder) as process:
        return read_log(process.communicate()[0], process.wait())


def read_log(log: str, code: int = 0) -> Rehearsal:
    """What a log of level INFO tells."""
    kernels = collections.Counter(KERNEL.findall(log))
    # Each is an rt_kernel that MindSpore builds and then passes over.
    kernels["Reshape", "rt_kernel"] -= len(set(NOT_LAUNCHED.findall(log)))
    return Rehearsal(
        code=code,
        said="\n".join(line for line in log.splitlines() if not LOGGED.match(line)),
        kernels=+kernels,
        jit_levels=set(JIT_LEVEL.findall(log)),
        peak_memory=max(map(int, PEAK.findall(log)), default=0),
        log=log,
    )
