"""Start the ranks that a rank table gives to this server and watch over them. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import glob
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from src.common.cli import RunError, UsageError
from src.common.files import locked
from src.common.machine import usable_cores
from src.launch.rank_table import RankTable, Server, find_server, read_rank_table

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
USAGE = """usage: sh run_distribute_train.sh [--dry-run] [RANK_TABLE_FILE] [DATA_DIR] [further flags of train.py]
       WAIT=1            waits for all ranks and passes on the exit code
       DEVICE_TARGET=CPU starts the same ranks on the CPU
       RANK_SIZE=N       insists on a rank table of N ranks
       SERVER_ID=ID      takes this entry of the rank table for this server
       MASTER_PORT=PORT  port on rank 0's server through which ranks on the CPU find each other; when left out,
                         8118 for several servers and a free one for a single server"""

# Flags of train.py whose values are paths: ranks run in folders of their own, the caller means theirs.
PATH_FLAGS = ("--eval_dataset_path", "--save_checkpoint_path", "--resume", "--pretrained")
# Flags of train.py that the launcher gives itself.
OWN_FLAGS = {
    "--dataset_path": "it is DATA_DIR",
    "--device_id": "the rank table gives each rank its device",
    "--run_distribute": "ranks that are started together train together",
}

LOG_NAME = "log.txt"
LAUNCHER_LOG = "train_parallel.log"
LAST_LINES = 10
DEFAULT_PORT = 8118
POLL_SECONDS = 0.1
# Seconds. After a failure the other ranks wait in a collective without end; asked to stop, they finish a step and save.
GRACE_AFTER_FAILURE = 10
GRACE_AFTER_SIGNAL = 60
# The scheduler of the dynamic cluster leaves by itself once every rank of every server has.
SCHEDULER_SECONDS = 30

# The scheduler only keeps the register of who is there: it joins and stays until all have left.
SCHEDULER_CODE = (
    "import mindspore; from mindspore import communication; mindspore.set_device('CPU'); communication.init()"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Worker:
    """One process to start.

    Attributes:
        name: for messages, such as "rank 3".
        folder: where it runs and has its log.
        log: path of its output.
        command: program and arguments.
        variables: added to the environment.
        cores: CPU cores that it keeps to, or None.
    """

    name: str
    folder: str
    log: str
    command: tuple[str, ...]
    variables: Mapping[str, str]
    cores: frozenset | None = None

    def describe(self) -> str:
        """The shell command that would do the same, but for the watching."""
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
        pinned = f"taskset -c {','.join(map(str, sorted(self.cores)))} " if self.cores else ""
        return (
            f"{self.name}: cd {shlex.quote(self.folder)} && {variables} {pinned}{shlex.join(self.command)} "
            f"> {shlex.quote(os.path.relpath(self.log, self.folder))}"
        )


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is going to be started on this server."""

    table: RankTable
    server: Server
    target: str
    ranks: tuple[Worker, ...]
    scheduler: Worker | None

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The scheduler, where this server runs it, and the ranks."""
        return ((self.scheduler,) if self.scheduler else ()) + self.ranks

    def describe(self) -> str:
        """Lines for --dry-run."""
        of = f" of {len(self.table.servers)}" if len(self.table.servers) > 1 else ""
        lines = [
            f"rank table {self.table.path}: {self.table.rank_size} ranks; this is server {self.server.server_id}{of}, "
            f"with {len(self.ranks)} of them, on {self.target}"
        ]
        return "\n".join(lines + [worker.describe() for worker in self.workers])


def main(argv: Sequence[str] | None = None, program: str = os.path.join(ROOT, "train.py")) -> int:
    """Check, start and watch; the story in the order in which it happens.

    Args:
        argv: arguments as `USAGE` says.
        program: what each rank runs.

    Returns:
        int, the exit code: 0, or 128 and the number of the signal that ended the run.

    Raises:
        UsageError: before anything was started.
        RunError: if a rank failed; the others were stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    dry_run = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    plan = make_plan(arguments[0], arguments[1], arguments[2:], os.environ, program)
    if dry_run:
        print(plan.describe())
        return 0
    with lock_folders(plan) as locks:
        if os.environ.get("WAIT") == "1":
            print(f"process {os.getpid()} watches over {len(plan.ranks)} ranks, follow rank 0 of them with: ", end="")
            print(f"tail -f {plan.ranks[0].log}", flush=True)
        elif go_into_background(plan):
            return 0
        return run_workers(plan, locks)


def make_plan(
    table_path: str, data: str, flags: Sequence[str], environment: Mapping[str, str], program: str, here: str = ""
) -> Plan:
    """Decide what to start, and refuse what cannot work.

    Args:
        table_path: the rank table.
        data: what train.py gets as --dataset_path.
        flags: passed on to train.py.
        environment: DEVICE_TARGET, RANK_SIZE, SERVER_ID and MASTER_PORT as `USAGE` says.
        program: what each rank runs.
        here: the caller's folder; the current one when empty.

    Raises:
        UsageError: one sentence.
    """
    here = here or os.getcwd()
    if not os.path.exists(data):
        raise UsageError(f"DATA_DIR: there is no '{data}'")
    for flag, reason in OWN_FLAGS.items():
        if flag_value(flags, flag) is not None:
            raise UsageError(f"{flag} cannot be among the further flags: {reason}")
    table = read_rank_table(table_path)
    wanted = environment.get("RANK_SIZE", "")
    if wanted and wanted != str(table.rank_size):
        raise UsageError(f"RANK_SIZE is {wanted}, but the rank table {table.path} lists {table.rank_size} ranks")
    server = find_server(table, environment.get("SERVER_ID"))
    target = find_target(flags, environment)
    cluster = cluster_variables(table, find_port(table, environment)) if target == "CPU" else {}
    ranks = []
    for position, device in enumerate(server.devices):
        folder = os.path.join(here, f"train_parallel{device.rank}")
        variables = {
            "RANK_ID": str(device.rank),
            "DEVICE_ID": str(device.device_id),
            "RANK_SIZE": str(table.rank_size),
            "RANK_TABLE_FILE": table.path,
        }
        command = [sys.executable, "-u", program, "--run_distribute", "True", "--device_target", target]
        command += ["--dataset_path", os.path.join(here, data), *absolute_paths(flags, here)]
        cores = None
        if target == "CPU":
            variables.update(cluster, MS_ROLE="MS_WORKER", MS_NODE_ID=str(device.rank))
            cores = share_of_cores(position, len(server.devices))
            if cores:
                variables["OMP_NUM_THREADS"] = environment.get("OMP_NUM_THREADS", str(len(cores)))
        log = os.path.join(folder, LOG_NAME)
        ranks.append(Worker(f"rank {device.rank}", folder, log, tuple(command), variables, cores))
    scheduler = None
    if target == "CPU" and server == table.master:
        variables = {"RANK_ID": "0", "RANK_SIZE": str(table.rank_size), **cluster, "MS_ROLE": "MS_SCHED", "GLOG_v": "3"}
        command = (sys.executable, "-c", SCHEDULER_CODE)
        scheduler = Worker("the scheduler", here, os.path.join(ranks[0].folder, "scheduler.log"), command, variables)
    return Plan(table, server, target, tuple(ranks), scheduler)


def find_target(flags: Sequence[str], environment: Mapping[str, str]) -> str:
    """Ascend, unless the CPU is asked for by DEVICE_TARGET or --device_target.

    Raises:
        UsageError: if it is neither, or there is no NPU and nobody asked for the CPU.
    """
    given = flag_value(flags, "--device_target") or environment.get("DEVICE_TARGET", "")
    if given not in ("", "Ascend", "CPU"):
        raise UsageError(f"DEVICE_TARGET is '{given}'; a rank table starts ranks on Ascend or CPU")
    if not given and not glob.glob("/dev/davinci[0-9]*"):
        raise UsageError(
            "there is no NPU on this server (no /dev/davinci*); DEVICE_TARGET=CPU starts the ranks on the CPU"
        )
    return given or "Ascend"


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """The value that train.py's parser would take for a flag, or None where it is not given."""
    value = None
    for position, flag in enumerate(flags):
        if flag.startswith(name + "="):
            value = flag[len(name) + 1 :]
        elif flag == name and position + 1 < len(flags):
            value = flags[position + 1]
    return value


def absolute_paths(flags: Sequence[str], here: str) -> list[str]:
    """Flags of train.py with their paths made absolute; all ranks share one folder of checkpoints, the caller's."""
    result = []
    path_follows = False
    for flag in flags:
        name, equals, value = flag.partition("=")
        if path_follows and flag != "auto":
            flag = os.path.join(here, flag)
        elif equals and name in PATH_FLAGS and value != "auto":
            flag = f"{name}={os.path.join(here, value)}"
        path_follows = not equals and name in PATH_FLAGS
        result.append(flag)
    if flag_value(flags, "--save_checkpoint_path") is None:
        result += ["--save_checkpoint_path", os.path.join(here, "checkpoint")]
    return result


def find_port(table: RankTable, environment: Mapping[str, str]) -> int:
    """The scheduler's port: the one asked for; else a free one, which several servers could not agree on.

    Raises:
        UsageError: if MASTER_PORT is not a port number.
    """
    port = environment.get("MASTER_PORT", "")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"MASTER_PORT is '{port}', not a port number from 1 to 65535")
    if port:
        return int(port)
    return DEFAULT_PORT if len(table.servers) > 1 else find_free_port()


def cluster_variables(table: RankTable, port: int) -> dict[str, str]:
    """What every process of MindSpore's dynamic cluster, which is behind msrun too, finds in its environment."""
    return {
        "MS_WORKER_NUM": str(table.rank_size),
        "MS_SCHED_HOST": table.master.server_id if len(table.servers) > 1 else "127.0.0.1",
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": "600",
    }


def find_free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def share_of_cores(position: int, count: int) -> frozenset | None:
    """The cores of one of `count` ranks, or None where there are fewer cores than ranks.

    Without a share of its own every rank starts as many threads as the machine has cores, and they wait for each other.
    """
    cores = usable_cores()
    if count > len(cores):
        return None
    return frozenset(cores[len(cores) * position // count : len(cores) * (position + 1) // count])


@contextlib.contextmanager
def lock_folders(plan: Plan) -> Iterator[list[int]]:
    """Create the ranks' folders and hold them, so that no second run writes into them.

    Yields:
        list of int, descriptors that hold the locks. Ranks inherit them: a folder stays locked as long as its rank
        lives, even when this process was killed.

    Raises:
        UsageError: if a live run uses one of them.
    """
    with contextlib.ExitStack() as stack:
        locks = []
        for rank in plan.ranks:
            os.makedirs(rank.folder, exist_ok=True)
            path = os.path.join(rank.folder, ".lock")
            try:
                locks.append(stack.enter_context(locked(path)))
            except BlockingIOError:
                with open(path) as lock:
                    owner = lock.read().strip()
                raise UsageError(
                    f"{rank.folder} is in use by a live run (started by process {owner}); stop it, or start elsewhere"
                ) from None
        yield locks


def sign_locks(locks: list[int]) -> None:
    """Write this process's number into the locks, for the sentence that a second run gets."""
    for lock in locks:
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())


def go_into_background(plan: Plan) -> bool:
    """Fork: the child goes on without a terminal, its words in train_parallel.log.

    Returns:
        bool, True in the parent, which has said where to look.
    """
    log = os.path.abspath(LAUNCHER_LOG)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(descriptor)
        print(f"started {len(plan.ranks)} ranks under process {child}; stop them all with: kill {child}")
        print(f"follow with: tail -f {plan.ranks[0].log}")
        print(f"how they end: {log}")
        return True
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for source, standard in ((null, 0), (descriptor, 1), (descriptor, 2)):
        os.dup2(source, standard)
    return False


def run_workers(plan: Plan, locks: list[int]) -> int:
    """Start everything, wait for the end, and leave no process behind.

    Returns:
        int, exit code: 0, or 128 and the number of the signal that ended the run.

    Raises:
        RunError: if a rank failed, with the rank; the last lines of its log have been printed.
    """
    sign_locks(locks)
    processes: dict[Worker, subprocess.Popen] = {}
    with received_signals() as signals:
        try:
            for worker in plan.workers:
                processes[worker] = start_worker(worker, locks)
                print(f"{worker.name}: process {processes[worker].pid}", flush=True)
            failed = wait_for_ranks(plan, processes, signals)
            if failed:
                raise describe_failure(plan, failed, processes)
            if signals:
                print(
                    f"stopping all ranks: {signal.Signals(signals[0]).name} was received; they may finish a step and "
                    f"save for {GRACE_AFTER_SIGNAL} seconds, a second signal does not wait",
                    flush=True,
                )
                stop_processes([processes[rank] for rank in plan.ranks], GRACE_AFTER_SIGNAL, signals, 1)
                print("all ranks have stopped", flush=True)
                return 128 + signals[0]
            if plan.scheduler:
                wait_until(lambda: processes[plan.scheduler].poll() is not None, SCHEDULER_SECONDS)
            print(f"all {len(plan.ranks)} ranks have finished", flush=True)
            return 0
        finally:
            stop_processes(list(processes.values()), GRACE_AFTER_FAILURE, signals, len(signals))


@contextlib.contextmanager
def received_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGHUP in a list instead of dying from them."""
    signals: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's wish is respected
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, frame: signals.append(number)) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def start_worker(worker: Worker, locks: list[int]) -> subprocess.Popen:
    """Start one process in a session of its own, so that it and its children can be stopped together.

    Raises:
        RunError: if it cannot be started.
    """
    # A role that the caller's environment names is of another cluster.
    inherited = {name: value for name, value in os.environ.items() if name not in ("MS_ROLE", "MS_NODE_ID")}
    libc = ctypes.CDLL(None, use_errno=True)
    launcher = os.getpid()

    def prepare() -> None:
        # Linux ends the rank when this process is killed: nobody would be left to watch over it.
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != launcher:
            os._exit(1)
        if worker.cores:
            os.sched_setaffinity(0, worker.cores)

    try:
        with open(worker.log, "w") as log:
            return subprocess.Popen(
                worker.command,
                cwd=worker.folder,
                env={**inherited, **worker.variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=locks,
                preexec_fn=prepare,
            )
    except OSError as error:
        raise RunError(f"{worker.name} could not be started: {error.filename}: {error.strerror}") from None


def wait_for_ranks(plan: Plan, processes: dict, signals: list[int]) -> list[Worker]:
    """Wait until all ranks have ended well, one of them or the scheduler has failed, or a signal came.

    Returns:
        list of those that failed, in the order of their ranks.
    """
    while not signals:
        codes = {worker: process.poll() for worker, process in processes.items()}
        failed = [worker for worker in plan.ranks if codes[worker]]
        if not failed and plan.scheduler and codes[plan.scheduler]:
            failed = [plan.scheduler]
        if failed or all(codes[worker] == 0 for worker in plan.ranks):
            # Ranks that a signal killed come first: the others may have failed for want of them.
            return sorted(failed, key=lambda worker: codes[worker] > 0)
        time.sleep(POLL_SECONDS)
    return []


def describe_failure(plan: Plan, failed: list[Worker], processes: dict) -> RunError:
    """Print the last lines of the first failed rank's log; the error says which it is."""
    worker = failed[0]
    code = processes[worker].returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    others = f" (as did {', '.join(other.name for other in failed[1:])})" if failed[1:] else ""
    lines = read_last_lines(worker.log)
    print(f"the last lines of {worker.log}:", file=sys.stderr)
    print("".join(f"    {line}\n" for line in lines or ["(it is empty)"]), end="", file=sys.stderr, flush=True)
    stopped = "the other ranks of this server" if len(plan.table.servers) > 1 else "the other ranks"
    return RunError(f"{worker.name}, process {processes[worker].pid}, {how}{others}; {stopped} were stopped")


def read_last_lines(path: str) -> list[str]:
    """The last lines of a log that say something: neither empty nor MindSpore's own progress in joining and leaving."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("[INFO] ")][-LAST_LINES:]


def stop_processes(processes: Sequence[subprocess.Popen], grace: float, signals: list[int], asked: int) -> None:
    """Ask all that still run to end, and end them after `grace` seconds or when there are more signals than `asked`."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    wait_until(lambda: len(signals) > asked or all(process.poll() is not None for process in processes), grace)
    for process in processes:
        # The group: a rank's own children, such as data loaders, may have outlived it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition, seconds: float) -> None:
    """Wait until `condition()` holds, at most `seconds`."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
