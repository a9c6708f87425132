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

from src.common.cli import RunError
from src.launch.plan import LaunchPlan, Worker

LAST_LINES = 10
POLL_SECONDS = 0.1
# After a failure the other ranks wait in a collective without end; after a signal they finish a step and save.
GRACE_AFTER_FAILURE = 10
GRACE_AFTER_SIGNAL = 60
# The scheduler of the dynamic cluster ends by itself once every rank of every server has left.
SCHEDULER_SECONDS = 30


def run_workers(plan: LaunchPlan, locks: Sequence[int]) -> int:
    """Start everything, wait for the end, and leave no process behind.

    Args:
        plan: what to start.
        locks: descriptors that the processes inherit.

    Returns:
        int, exit code: 0, or 128 plus the number of the signal that ended the run.

    Raises:
        RunError: if a process could not be started or failed; the last lines of its log have been printed.
    """
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


def start_worker(worker: Worker, locks: Sequence[int]) -> subprocess.Popen:
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


def wait_for_ranks(plan: LaunchPlan, processes: dict, signals: list[int]) -> list[Worker]:
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


def describe_failure(plan: LaunchPlan, failed: list[Worker], processes: dict) -> RunError:
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


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition()` holds, at most `seconds`."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
