"""The command of run_distribute_train.sh: start the ranks that a rank table gives to this server and watch them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from src.common.cli import UsageError
from src.common.files import locked
from src.launch.launch_plan import LaunchPlan, make_plan
from src.launch.processes import run_workers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
USAGE = """usage: sh run_distribute_train.sh [--dry-run] [RANK_TABLE_FILE] [DATA_DIR] [further flags of train.py]
       --dry-run         prints what would start, on any machine, and what this one lacks for it
       WAIT=1            waits for all ranks and passes on the exit code
       DEVICE_TARGET=CPU starts the same ranks on the CPU
       RANK_SIZE=N       insists on a rank table of N ranks
       SERVER_ID=ID      takes this entry of the rank table for this server
       MASTER_PORT=PORT  port on rank 0's server through which the ranks find each other; when left out, 8118 for
                         several servers and a free one for a single server
       LAUNCH=rank_table starts the ranks on NPUs as MindSpore 2.7 and older did, without its dynamic cluster
       BIND_CORES=0      leaves all cores to every rank, instead of an equal share of them to each"""
LAUNCHER_LOG = "train_parallel.log"


def main(argv: Sequence[str] | None = None, program: str = os.path.join(ROOT, "train.py")) -> int:
    """Check, start and watch; the story in the order in which it happens.

    Args:
        argv: arguments as `USAGE` says.
        program: what each rank runs.

    Returns:
        int, the exit code: 0, 2 after printing the usage, or 128 plus the number of the signal that ended the run.

    Raises:
        UsageError: if nothing can be started.
        RunError: if a rank failed; the others were stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    dry_run = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    if len(arguments) < 2 or arguments[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    plan = make_plan(arguments, os.environ, program, dry_run)
    if dry_run:
        print(plan.describe())
        return 0
    with locked_folders(plan) as locks:
        if os.environ.get("WAIT") == "1":
            print(f"process {os.getpid()} watches over {len(plan.ranks)} ranks, follow rank 0 of them with: ", end="")
            print(f"tail -f {plan.ranks[0].log}", flush=True)
        elif go_into_background(plan):
            return 0
        write_owner(locks)
        return run_workers(plan, locks)


@contextlib.contextmanager
def locked_folders(plan: LaunchPlan) -> Iterator[list[int]]:
    """Create the ranks' folders and lock them, so that no second run writes into them.

    Yields:
        list of int, descriptors that hold the locks. Ranks inherit them, so a folder stays locked as long as its rank
        lives, even when this process is killed.

    Raises:
        UsageError: if a live run uses one of the folders.
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


def write_owner(locks: Sequence[int]) -> None:
    """Write this process's number into the lock files; the error of a second run names it."""
    for lock in locks:
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())


def go_into_background(plan: LaunchPlan) -> bool:
    """Fork: the child goes on without a terminal and writes to train_parallel.log.

    Returns:
        bool, True in the parent, which has printed where to look.
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
