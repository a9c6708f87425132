"""Start the processes of a plan, watch them, and leave none behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Callable

from src.common.cli import RunError, printable
from src.launch.launch_plan import LaunchPlan
from src.launch.worker import Worker

LAST_LINES = 10
POLL_SECONDS = 0.1
# After a failure the other ranks wait in a collective without end; after a signal they finish their steps and save.
GRACE_AFTER_FAILURE = 10
# An NPU with a data sink has up to --sink_size steps under way, which nothing can interrupt.
GRACE_AFTER_SIGNAL = 600
# A killed process ends at once, unless it waits in the kernel for a disk or a device.
KILL_SECONDS = 10
# The scheduler of the dynamic cluster ends by itself once every rank of every server has left.
SCHEDULER_SECONDS = 30


class WorkerProcess:
    """A worker that was started, the leader of a process group of its own.

    It is reaped by `release` alone. Until then its number belongs to no other process, so that a signal sent to the
    number, or to the group of that number, cannot reach a stranger.

    Attributes:
        worker: what was started.
        number: the number of the process and of its group.
        released: whether the number may belong to another process by now.
    """

    def __init__(self, worker: Worker, locks: Sequence[int]):
        self.worker = worker
        self.process = start_worker(worker, locks)
        self.number = self.process.pid
        self.released = False

    def exit_code(self) -> int | None:
        """The exit code, or minus the number of the signal that killed it; None as long as it runs."""
        if self.process.returncode is not None:
            return self.process.returncode
        ended = os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def release(self, seconds: float) -> bool:
        """Wait at most `seconds` for the end and reap the process; no signal may be sent to it any more.

        Returns:
            bool, whether it has ended.
        """
        self.released = True
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def run_workers(plan: LaunchPlan, locks: Sequence[int]) -> int:
    """Start everything, wait for the end, and leave no process behind.

    Args:
        plan: what to start.
        locks: descriptors that the processes inherit.

    Returns:
        int, exit code: 0, or 128 plus the number of the signal that ended the run.

    Raises:
        RunError: if a process could not be started, or failed; the last lines of its log have been printed.
    """
    processes: list[WorkerProcess] = []
    with received_signals() as signals:
        try:
            for worker in plan.workers:
                processes.append(WorkerProcess(worker, locks))
                print(f"{worker.name}: process {processes[-1].number}", flush=True)
            ranks = [process for process in processes if process.worker is not plan.scheduler]
            schedulers = [process for process in processes if process.worker is plan.scheduler]
            failed = wait_for_ranks(ranks, schedulers, signals)
            if failed:
                raise describe_failure(plan, failed)
            if signals:
                print(
                    f"stopping all ranks: {signal.Signals(signals[0]).name} was received; they may finish their "
                    f"steps and save for {GRACE_AFTER_SIGNAL} seconds, a second signal does not wait",
                    flush=True,
                )
                if stop_processes(ranks, GRACE_AFTER_SIGNAL, signals, 1):
                    print("all ranks have stopped", flush=True)
                return 128 + signals[0]
            wait_until(lambda: have_ended(schedulers), SCHEDULER_SECONDS)
            print(f"all {len(ranks)} ranks have finished", flush=True)
            return 0
        finally:
            stop_processes(processes, GRACE_AFTER_FAILURE, signals, len(signals))


@contextlib.contextmanager
def received_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGINT and SIGHUP in a list instead of dying from them."""
    signals: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup sets this
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, frame: signals.append(number)) for number in numbers}
    # Where the caller ignores it, the kernel reaps the processes by itself and nobody learns their exit codes.
    previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def start_worker(worker: Worker, locks: Sequence[int]) -> subprocess.Popen:
    """Start one process in a session of its own, so that it and its children can be stopped together.

    Raises:
        RunError: if it cannot be started.
    """
    # The caller may itself be part of a cluster; its role there is not this worker's, nor is its rank table, with which
    # MindSpore would take another back end.
    others = ("MS_ROLE", "MS_NODE_ID", "RANK_TABLE_FILE")
    inherited = {name: value for name, value in os.environ.items() if name not in others}
    libc = ctypes.CDLL(None)
    launcher = os.getpid()

    def prepare() -> None:
        # Linux kills the worker when this process ends in whatever way: nobody would be left to watch over it.
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


def wait_for_ranks(
    ranks: Sequence[WorkerProcess], schedulers: Sequence[WorkerProcess], signals: Sequence[int]
) -> list[WorkerProcess]:
    """Wait until all ranks have ended well, a rank or the scheduler has failed, or a signal has come.

    Args:
        ranks: this server's ranks.
        schedulers: the scheduler, if this server runs it.
        signals: numbers of the signals received so far; it grows meanwhile.

    Returns:
        list of those that failed. Those that a signal killed come first: the others may have failed for want of them.
    """
    while not signals:
        codes = {process: process.exit_code() for process in [*ranks, *schedulers]}
        failed = [rank for rank in ranks if codes[rank]] or [each for each in schedulers if codes[each]]
        if failed or all(codes[rank] == 0 for rank in ranks):
            return sorted(failed, key=lambda process: codes[process] > 0)
        time.sleep(POLL_SECONDS)
    return []


def have_ended(processes: Sequence[WorkerProcess]) -> bool:
    """Whether none of the processes runs any more."""
    return all(process.exit_code() is not None for process in processes)


def describe_failure(plan: LaunchPlan, failed: Sequence[WorkerProcess]) -> RunError:
    """Print the last lines of the first failed process's log, and return the error that names it."""
    first, *others = failed
    name, log, code = first.worker.name, first.worker.log, first.exit_code()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    too = f" (as did {', '.join(other.worker.name for other in others)})" if others else ""
    lines = read_last_lines(log)
    print(f"the last lines of {log}:", file=sys.stderr)
    print("".join(f"    {line}\n" for line in lines or ["(it is empty)"]), end="", file=sys.stderr, flush=True)
    stopped = "the other ranks of this server" if len(plan.table.servers) > 1 else "the other ranks"
    return RunError(f"{name}, process {first.number}, {how}{too}; {stopped} were stopped")


def read_last_lines(path: str) -> list[str]:
    """The last lines of a log as a terminal can show them, without empty ones and those of MindSpore's cluster."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 16384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return [printable(line.rstrip()) for line in lines if line.strip() and not line.startswith("[INFO] ")][-LAST_LINES:]


def stop_processes(processes: Sequence[WorkerProcess], grace: float, signals: Sequence[int], asked: int) -> bool:
    """Ask processes to end, then kill those that still run, and their children, and release all.

    Args:
        processes: those already released are passed over.
        grace: seconds between asking and killing.
        signals: numbers of the signals received so far; it grows meanwhile.
        asked: with more signals than this, the grace is over.

    Returns:
        bool, whether all have ended; a warning names each that has not.
    """
    processes = [process for process in processes if not process.released]
    for process in processes:
        os.kill(process.number, signal.SIGTERM)
    wait_until(lambda: len(signals) > asked or have_ended(processes), grace)
    for process in processes:
        # The group: a rank's own children, such as data loaders, may have outlived it.
        os.killpg(process.number, signal.SIGKILL)
    deadline = time.monotonic() + KILL_SECONDS
    left = [process for process in processes if not process.release(max(0, deadline - time.monotonic()))]
    for process in left:
        print(
            f"warning: {process.worker.name}, process {process.number}, cannot be killed and is left behind",
            file=sys.stderr,
            flush=True,
        )
    return not left


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition()` holds, at most `seconds`."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
