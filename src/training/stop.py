"""How a run is asked to stop: by a signal, to this rank or to another."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from src.common.interrupt import acting
from src.runtime.collective import sum_floats


class StopRequest:
    """SIGTERM and SIGINT ask for a stop after the step; a second one leaves at once.

    Python runs signal handlers between two instructions of its main thread, which waits while a graph is compiled or a
    long step runs; a thread of our own receives the signals meanwhile.

    Attributes:
        signal: number of the signal that came, to this rank or another; or 0.
        received: number of the signal that came to this rank; or 0.
        say: prints the line that acknowledges the first signal.
    """

    NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.signal = self.received = 0
        self.say: Callable[[str], None] = print_line
        self.held = contextlib.ExitStack()

    def __enter__(self) -> StopRequest:
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        # `train.py` listens to SIGINT in a way of its own, on which MindSpore has no influence.
        self.held.enter_context(acting(lambda: self.receive(signal.SIGINT)))
        for number in self.NUMBERS:
            self.held.callback(signal.signal, number, signal.signal(number, lambda number, frame: None))
        self.held.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False))
        threading.Thread(target=self.listen, args=(reader,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.held.close()
        os.close(self.writer)

    def listen(self, reader: int) -> None:
        """Receive the signals, which Python writes to the pipe as one byte each, until the pipe is closed."""
        while received := os.read(reader, 1):
            if received[0] in self.NUMBERS:
                self.receive(received[0])
        os.close(reader)

    def receive(self, number: int) -> None:
        """Remember and acknowledge the first signal, obey the second."""
        if self.received:
            os._exit(128 + number)
        self.signal = self.received = number
        # A reader of our output that has left must not keep the second signal from being heard.
        with contextlib.suppress(OSError, ValueError):
            self.say("stopping after this step; a second signal ends at once")

    def is_asked(self) -> bool:
        """Whether a signal came to any rank; all ranks call this after the same step and get the same answer."""
        asked = sum_floats([float(self.signal > 0)])[0] > 0
        if asked and not self.signal:
            self.signal = signal.SIGTERM
        return asked

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0


def print_line(text: str) -> None:
    """Print a line that is seen at once, in a file too."""
    print(text, flush=True)
