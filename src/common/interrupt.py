"""Ctrl-C ends every program with one sentence and exit code 130, whatever its libraries do with the signal; so does,
with exit code 1, a library that cannot be loaded.

MindSpore installs a handler of its own at each run of a graph, which makes SIGTERM of SIGINT, and an exception raised
while MindSpore loads aborts the process. So SIGINT is blocked in all threads, and one thread waits for it.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Callable, NoReturn

EXIT_CODE = 128 + signal.SIGINT
FLUSH_SECONDS = 1.0
MAIN_SECONDS = 0.3
"""How long the main thread may take to its next instruction in Python."""
SENTENCE = "stopped by the user"
LEAST_ADDRESS_SPACE = 800 << 20
"""Bytes. MindSpore needs more to be loaded; with less it fails in the middle, or waits for ever for a thread."""
OURS = ("src", "scripts", "benchmarks", "tests")

unfinished: set[str] = set()
"""Temporary files and folders, which `leave` removes."""
_actions: list[Callable[[], None]] = []
"""What the signal does: the last one; `leave` where there is none."""
_listening = False
_leaving = threading.Lock()


def listen() -> None:
    """Let a thread receive SIGINT from now on; a program calls this before it imports anything that starts threads.

    Where the caller ignores the signal, as shells do for what runs in the background, it stays unheard.
    """
    global _listening
    sys.excepthook = explain_loading
    if RoomForMindspore not in sys.meta_path:
        sys.meta_path.insert(0, RoomForMindspore)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if _listening or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    _listening = True
    signal.signal(signal.SIGINT, lambda number, frame: act())
    os.register_at_fork(after_in_child=hear_as_usual)
    threading.Thread(target=wait_for_interrupts, name="interrupts", daemon=True).start()


def leave_while_loading() -> None:
    """End with the sentence, until the program installs a handler of its own; for programs without MindSpore."""
    sys.excepthook = explain_loading
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: leave())


class RoomForMindspore:
    """What Python asks for each module before it looks for it: MindSpore is not begun where it does not fit."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if name == "mindspore" and limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
            flush_output()
            mebibytes = limit >> 20
            stop(f"MindSpore does not fit into {mebibytes} MiB, the shell's limit (ulimit -v); raise the limit", 1)


def explain_loading(kind: type[BaseException], error: BaseException, traceback) -> None:
    """Say in a sentence what could not be loaded, and end at once: MindSpore, half loaded, would abort at the exit.

    What is missing of this repository, and what else is wrong, gets Python's traceback.
    """
    ours = str(getattr(error, "name", None)).partition(".")[0] in OURS
    if not issubclass(kind, (ImportError, MemoryError)) or ours:
        sys.__excepthook__(kind, error, traceback)
        return
    sentence = " ".join(str(error).split()) or "there is not enough memory to load the program"
    if issubclass(kind, ModuleNotFoundError):
        sentence += "; pip install -r requirements.txt installs what is missing"
    elif "map segment" in sentence or "allocate" in sentence:
        sentence += "; there is not enough memory to load it"
    flush_output()
    stop(sentence, 1)


def stop(sentence: str, code: int) -> NoReturn:
    """End the process now with a sentence on standard error; on a terminal, what stands in its line stays above."""
    with contextlib.suppress(OSError):
        os.write(2, f"{chr(10) if code == EXIT_CODE and os.isatty(2) else ''}error: {sentence}\n".encode())
    os._exit(code)


def wait_for_interrupts() -> None:
    while True:
        signal.sigwait({signal.SIGINT})
        if not _actions:
            # The main thread leaves, between two of its instructions: beside it, what is being removed could still get
            # its name. Where it waits or computes in C++, this thread does it.
            _thread.interrupt_main()
            time.sleep(MAIN_SECONDS)
        act()


def act() -> None:
    """Do what the signal does at present."""
    (_actions[-1] if _actions else leave)()


@contextlib.contextmanager
def acting(action: Callable[[], None]) -> Iterator[None]:
    """Let the signal do something else for the length of a block; `action` is called in another thread."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


@contextlib.contextmanager
def heard_by_children() -> Iterator[None]:
    """Let processes that are started in this block hear the signal: they inherit what their parent's thread blocks."""
    if not _listening:
        yield
        return
    if threading.current_thread() is threading.main_thread():
        # This thread hears it as well, and MindSpore may have left its handler.
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))
    hear()
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def run_child(command: Sequence[str], **options) -> subprocess.CompletedProcess:
    """`subprocess.run` of a process that hears the signal."""
    with heard_by_children():
        return subprocess.run(command, **options)


def hear() -> None:
    """Let this thread receive the signal."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def hear_as_usual() -> None:
    """What a forked process does with the signal: nothing of this module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hear()


def leave() -> None:
    """End the process now, in whatever thread: no unfinished file stays, what was printed is seen."""
    if not _leaving.acquire(blocking=False):
        time.sleep(60)  # another thread has begun to
    for path in list(unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.remove(path)
    # The main thread may hold the stream's lock, for a reader that does not read.
    flush = threading.Thread(target=flush_output, daemon=True)
    flush.start()
    flush.join(FLUSH_SECONDS)
    # A progress bar's line does not end, and the terminal has written ^C behind it.
    stop(SENTENCE, EXIT_CODE)


def flush_output() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
