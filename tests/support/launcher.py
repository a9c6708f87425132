"""The launcher for tests: its command with another program as the ranks, rank tables, and what its processes do."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

CODE = """
import sys
from src.launch import command, processes
from src.common.cli import run_cli
{}
sys.exit(run_cli(lambda argv: command.main(argv, {!r})))
"""


def launcher_command(program: Path, before: str = "") -> list[str]:
    """The launcher's command, to which its arguments are added.

    Args:
        program: what each rank runs instead of train.py.
        before: Python statements that come first; `command` and `processes` are the launcher's modules.
    """
    return [sys.executable, "-c", CODE.format(before, str(program))]


# Servers of eight devices and of two.
EIGHT = ("127.0.0.1", [(number, number) for number in range(8)])
PAIR = ("127.0.0.1", [(0, 0), (1, 1)])


def table_of(*servers, **changes):
    """A rank table: each server a pair of its id and the (device_id, rank_id) of its devices."""
    entries = []
    for number, (server_id, devices) in enumerate(servers):
        listed = [
            {"device_id": str(device), "device_ip": f"192.168.{number}.{device + 1}", "rank_id": str(rank)}
            for device, rank in devices
        ]
        entries.append({"server_id": server_id, "device": listed, "host_nic_ip": "reserve"})
    return {
        **{"version": "1.0", "server_count": str(len(entries)), "server_list": entries, "status": "completed"},
        **changes,
    }


def write_table(path, *servers, **changes):
    """Write such a table; returns the path as text."""
    path.write_text(json.dumps(table_of(*servers, **changes)))
    return str(path)


def wait_for(condition, seconds=20):
    """Wait until `condition()` holds; the test fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def is_running(process):
    """Whether a process number is in use by something that is not a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
