"""Programs in a terminal of their own, where Ctrl-C reaches them as it reaches a user's."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from pathlib import Path


def become_foreground():
    """Make the new process the one that Ctrl-C at its terminal reaches."""
    os.setsid()
    # As shells do; these tests may themselves run in the background, where it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program in a pseudo-terminal, 30 lines of 120 columns.

    Attributes:
        process: the program.
        text: what the terminal has shown so far.
    """

    def __init__(self, command, folder):
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self.modes = termios.tcgetattr(self.slave)
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self.slave)
        self.process = subprocess.Popen(command, cwd=folder, preexec_fn=become_foreground, **streams)
        self.text = ""

    def read(self):
        """Take in what is there, waiting for at most a twentieth of a second; returns all that was shown."""
        while select.select([self.master], [], [], 0.05)[0]:
            self.text += os.read(self.master, 1 << 16).decode()
        return self.text

    def press_ctrl_c(self):
        os.write(self.master, b"\x03")

    def finish(self):
        """Wait for the end; returns (exit code, what was shown, whether the terminal is as it was found)."""
        while self.process.poll() is None:
            self.read()
        self.read()
        as_found = termios.tcgetattr(self.slave) == self.modes
        os.close(self.master)
        os.close(self.slave)
        return self.process.returncode, self.text, as_found


def cpu_seconds(process):
    """The processor's time that a process has taken so far, which no other program changes; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
