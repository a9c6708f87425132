"""The launcher, with ranks that are tiny programs but real processes; test_distribute.py has ranks that train."""

import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.launcher import EIGHT, PAIR, is_running, launcher_command, wait_for, write_table

ROOT = Path(__file__).parent.parent.parent
# Without a scheduler, which would import MindSpore.
OLD_START = {"DEVICE_TARGET": "Ascend", "LAUNCH": "rank_table"}


@pytest.fixture
def start(tmp_path):
    """Start the launcher with a tiny program as the ranks; returns the process. Whatever is left is ended."""
    started = []
    (tmp_path / "data").mkdir()
    table = write_table(tmp_path / "table.json", PAIR)

    def start(program, wait="1", before="", folder=tmp_path, table=table, **environment):
        script = tmp_path / "rank.py"
        script.write_text("import os, signal, subprocess, sys, time\nrank = int(os.environ['RANK_ID'])\n" + program)
        process = subprocess.Popen(
            [*launcher_command(script, before), table, str(tmp_path / "data"), "--flag", "a b"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **OLD_START, "WAIT": wait, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read(path):
    return path.read_text() if path.exists() else ""


# Each rank writes down its own process and that of a child which would outlive it.
WITH_CHILD = """
child = subprocess.Popen(["sleep", "300"])
with open("processes.tmp", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("processes.tmp", "processes")
"""

# The launcher says of each signal that it sends whether its number is still that of a rank.
SIGNALS_ARE_CHECKED = """
import os

def checked(send):
    def send_checked(number, *arguments):
        whom = "a live or unreaped process" if os.path.exists(f"/proc/{number}") else "a stranger"
        print("signal to", whom, file=sys.stderr)
        send(number, *arguments)
    return send_checked

os.kill, os.killpg = checked(os.kill), checked(os.killpg)
"""


def wait_for_processes(tmp_path):
    """The processes of both ranks and their children, once they stand."""
    files = [tmp_path / f"train_parallel{rank}" / "processes" for rank in range(2)]
    wait_for(lambda: all(file.exists() for file in files))
    return [int(number) for file in files for number in file.read_text().split()]


class TestSupervision:
    def test_ranks_run_in_their_folders_with_their_variables(self, start, tmp_path):
        names = "RANK_ID DEVICE_ID RANK_SIZE RANK_TABLE_FILE"
        process = start(f"print(os.getcwd(), *[os.environ[n] for n in '{names}'.split()], sys.argv[-3])")
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert out.endswith("all 2 ranks have finished\n")
        for rank in range(2):
            folder = tmp_path / f"train_parallel{rank}"
            assert (folder / "log.txt").read_text() == f"{folder} {rank} {rank} 2 {tmp_path}/table.json a b\n"

    def test_a_killed_rank_brings_the_run_down(self, start, tmp_path):
        process = start(WITH_CHILD + "print('at work', flush=True)\ntime.sleep(300)")
        processes = wait_for_processes(tmp_path)
        wait_for(lambda: "at work" in read(tmp_path / "train_parallel1" / "log.txt"))
        began = time.monotonic()
        os.kill(processes[2], signal.SIGKILL)
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 30
        assert process.returncode == 1
        assert f"the last lines of {tmp_path}/train_parallel1/log.txt:\n    at work\n" in err
        assert err.endswith(
            f"error: rank 1, process {processes[2]}, was killed by SIGKILL; the other ranks were stopped\n"
        )
        wait_for(lambda: not any(map(is_running, processes)), 5)

    def test_a_rank_that_fails_is_named_with_the_last_lines_of_its_log(self, start):
        process = start(
            "if rank: time.sleep(300)\nfor line in range(30): print('line', line)\nprint('no space left')\n"
            "print('[INFO] DISTRIBUTED of MindSpore')\nsys.exit(3)"
        )
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "    line 21\n" in err and "    line 20\n" not in err
        assert "    no space left\nerror: rank 0, process " in err
        assert "ended with exit code 3; the other ranks were stopped\n" in err

    def test_a_log_reaches_the_terminal_as_text(self, start):
        process = start("print('\\x1b[2J\\x1b]0;title\\x07 bar\\rdone'); sys.exit(3)")
        _, err = process.communicate(timeout=30)
        assert all(line.isprintable() for line in err.split("\n"))
        assert r"    \x1b[2J\x1b]0;title\x07 bar" in err

    def test_a_rank_that_ignores_sigterm_is_stopped_all_the_same(self, start, tmp_path):
        ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WITH_CHILD
        process = start(
            ignore + "if rank: time.sleep(300)\ntime.sleep(0.5)\nsys.exit(1)",
            before="processes.GRACE_AFTER_FAILURE = 1",
        )
        processes = wait_for_processes(tmp_path)
        process.communicate(timeout=30)
        assert process.returncode == 1
        wait_for(lambda: not any(map(is_running, processes)), 5)

    @pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_a_signal_stops_all_ranks_and_lets_them_save(self, start, tmp_path, number, code):
        handler = "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        process = start(handler + WITH_CHILD + "time.sleep(300)")
        processes = wait_for_processes(tmp_path)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == code
        assert f"stopping all ranks: {number.name} was received; they may finish their steps" in out
        assert [read(tmp_path / f"train_parallel{rank}" / "log.txt") for rank in range(2)] == ["saved\n"] * 2
        wait_for(lambda: not any(map(is_running, processes)), 5)

    def test_a_second_signal_does_not_wait_for_them(self, start, tmp_path):
        process = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WITH_CHILD + "time.sleep(300)")
        processes = wait_for_processes(tmp_path)
        process.terminate()
        assert "stopping all ranks" in "".join(process.stdout.readline() for _ in range(4))
        began = time.monotonic()
        process.terminate()
        assert process.wait(30) == 143
        assert time.monotonic() - began < 5
        wait_for(lambda: not any(map(is_running, processes)), 5)

    @pytest.mark.parametrize("stopped_by", ["the end", "a failure", "a signal"])
    def test_no_signal_is_sent_to_a_number_that_another_process_may_have(self, start, tmp_path, stopped_by):
        """A rank's number is its own until the launcher has reaped it; a zombie is still listed in /proc."""
        endings = {"the end": "", "a failure": "sys.exit(rank)", "a signal": "time.sleep(300)"}
        process = start(WITH_CHILD + endings[stopped_by], before=SIGNALS_ARE_CHECKED)
        processes = wait_for_processes(tmp_path)
        if stopped_by == "a signal":
            process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == {"the end": 0, "a failure": 1, "a signal": 143}[stopped_by]
        assert err.count("signal to a live or unreaped process") >= 2
        assert "signal to a stranger" not in err
        wait_for(lambda: not any(map(is_running, processes)), 5)

    def test_a_rank_that_cannot_be_killed_is_named_and_left(self, start, tmp_path):
        """As one that waits in the kernel for a disk; here the launcher's SIGKILL is kept from it."""
        before = "import os\nos.killpg = lambda *_: None\nprocesses.GRACE_AFTER_SIGNAL = processes.KILL_SECONDS = 0.5"
        process = start(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WITH_CHILD + "time.sleep(300)", before=before
        )
        ranks = wait_for_processes(tmp_path)
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert process.returncode == 143
        for rank in range(2):
            assert f"warning: rank {rank}, process {ranks[2 * rank]}, cannot be killed and is left behind\n" in err
        assert "all ranks have stopped" not in out
        for child in ranks[1::2]:
            os.kill(child, signal.SIGKILL)

    def test_exit_codes_are_seen_where_the_caller_ignores_ended_children(self, start):
        process = start("sys.exit(3 * rank)", before="import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)")
        _, err = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "ended with exit code 3; the other ranks were stopped\n" in err

    def test_ranks_do_not_survive_a_launcher_that_is_killed(self, start, tmp_path):
        process = start(WITH_CHILD + "time.sleep(300)")
        processes = wait_for_processes(tmp_path)
        process.kill()
        wait_for(lambda: not any(map(is_running, processes[::2])), 5)
        for child in processes[1::2]:
            os.kill(child, signal.SIGKILL)

    def test_a_folder_of_a_live_run_is_not_touched(self, start, tmp_path):
        first = start(WITH_CHILD + "print('first', flush=True)\ntime.sleep(300)")
        wait_for_processes(tmp_path)
        second = start("print('second')")
        _, err = second.communicate(timeout=30)
        assert second.returncode == 2
        assert err == (
            f"error: {tmp_path}/train_parallel0 is in use by a live run (started by process {first.pid}); "
            "stop it, or start elsewhere\n"
        )
        assert (tmp_path / "train_parallel0" / "log.txt").read_text() == "first\n"
        first.terminate()
        first.communicate(timeout=30)
        third = start("print('third')")
        third.communicate(timeout=30)
        assert third.returncode == 0
        assert (tmp_path / "train_parallel0" / "log.txt").read_text() == "third\n"

    def test_in_the_background_it_says_where_to_look_and_how_it_ended(self, start, tmp_path):
        process = start("time.sleep(1)\nsys.exit(rank)", wait="")
        out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert out.startswith("started 2 ranks under process ")
        assert f"follow with: tail -f {tmp_path}/train_parallel0/log.txt\n" in out
        log = tmp_path / "train_parallel.log"
        wait_for(lambda: "error: rank 1, process" in read(log))
        watcher = int(out.split("process ")[1].split(";")[0])
        wait_for(lambda: not is_running(watcher))

    def test_a_background_run_is_stopped_through_its_watcher(self, start, tmp_path):
        out, _ = start(WITH_CHILD + "time.sleep(300)", wait="").communicate(timeout=30)
        processes = wait_for_processes(tmp_path)
        watcher = int(out.split("process ")[1].split(";")[0])
        os.kill(watcher, signal.SIGTERM)
        wait_for(lambda: not any(map(is_running, [*processes, watcher])))
        assert (
            "stopping all ranks: SIGTERM was received; they may finish their steps"
            in (tmp_path / "train_parallel.log").read_text()
        )


class TestSeveralServers:
    """A launcher for each of three servers, for which addresses of this machine stand; rank r is of server r."""

    @pytest.fixture
    def launchers(self, start, tmp_path):
        """Start the launchers with a program; returns their processes."""
        servers = [(f"127.0.0.{rank + 1}", [(0, rank)]) for rank in range(3)]
        table = write_table(tmp_path / "servers.json", *servers)
        return lambda program: [start(program, table=table, SERVER_ID=server_id) for server_id, _ in servers]

    def test_all_end_well(self, launchers, tmp_path):
        for process in launchers("time.sleep((3 - rank) / 4)"):
            out, err = process.communicate(timeout=30)
            assert (process.returncode, err) == (0, "")
            assert out.endswith("all 1 ranks have finished\n")

    def test_a_launcher_ends_its_own_ranks_alone(self, launchers, tmp_path):
        first, second, third = launchers("if rank == 1: sys.exit(3)\ntime.sleep(1)")
        _, err = second.communicate(timeout=30)
        assert second.returncode == 1
        assert err.endswith("ended with exit code 3; the other ranks of this server were stopped\n")
        for process in (first, third):
            assert (process.communicate(timeout=30)[1], process.returncode) == ("", 0)


class TestScript:
    """scripts/run_distribute_train.sh itself, under a POSIX shell."""

    def run(self, folder, *arguments, **environment):
        command = ["dash", ROOT / "scripts" / "run_distribute_train.sh", *arguments]
        environment = {**os.environ, "PYTHON": sys.executable, **environment}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)

    def test_dry_run_prints_what_would_start_and_starts_nothing(self, tmp_path):
        folder = tmp_path / "my data"
        folder.mkdir()
        write_table(tmp_path / "table.json", EIGHT)
        arguments = ["--dry-run", "table.json", "my data", "--batch_size", "8"]
        done = self.run(tmp_path, *arguments, DEVICE_TARGET="Ascend")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0] == (
            f"rank table {tmp_path}/table.json: 8 ranks; this is server 127.0.0.1, with 8 of them, on Ascend"
        )
        assert len(lines) == 10
        assert lines[1].startswith(f"the scheduler: cd {tmp_path} && ")
        assert lines[9].startswith(f"rank 7: cd {tmp_path}/train_parallel7 && RANK_ID=7 DEVICE_ID=7 RANK_SIZE=8 ")
        assert f"--dataset_path '{folder}' --batch_size 8" in lines[9]
        assert sorted(os.listdir(tmp_path)) == ["my data", "table.json"]

    @pytest.mark.skipif(bool(glob.glob("/dev/davinci*")), reason="this machine has NPUs")
    def test_dry_run_plans_for_other_machines_and_notes_what_this_one_lacks(self, tmp_path):
        """Without NPU, without the images, and on none of the servers."""
        write_table(tmp_path / "table.json", ("203.0.113.1", [(0, 0), (1, 1)]), ("203.0.113.2", [(0, 2), (1, 3)]))
        done = self.run(tmp_path, "--dry-run", "table.json", "/data/train", DEVICE_TARGET="", SERVER_ID="")
        assert (done.returncode, done.stderr) == (0, "")
        first, *ranks, data, server, device = done.stdout.splitlines()
        assert first.endswith("4 ranks; this is server 203.0.113.1 of 2, with 2 of them, on Ascend")
        assert [line.partition(":")[0] for line in ranks] == ["the scheduler", "rank 0", "rank 1"]
        assert data == "note: DATA_DIR: there is no '/data/train'"
        assert server.startswith("note: the rank table ") and server.endswith("take: 203.0.113.1, 203.0.113.2")
        assert device.startswith("note: there is no NPU on this server (no /dev/davinci*); DEVICE_TARGET=CPU ")
        other = self.run(tmp_path, "--dry-run", "table.json", "/data/train", DEVICE_TARGET="", SERVER_ID="203.0.113.2")
        assert "rank 2: " in other.stdout and "lists no server" not in other.stdout
        assert os.listdir(tmp_path) == ["table.json"]
        started = self.run(tmp_path, "table.json", "/data/train", DEVICE_TARGET="", SERVER_ID="203.0.113.2")
        assert (started.returncode, started.stderr) == (2, "error: DATA_DIR: there is no '/data/train'\n")

    def test_dry_run_still_refuses_what_is_wrong(self, tmp_path):
        write_table(tmp_path / "table.json", EIGHT)
        for environment, sentence in (
            ({"SERVER_ID": "203.0.113.9"}, "error: SERVER_ID is 203.0.113.9, but "),
            ({"RANK_SIZE": "4"}, "error: RANK_SIZE is 4, but "),
        ):
            done = self.run(tmp_path, "--dry-run", "table.json", "data", **environment)
            assert done.returncode == 2 and done.stderr.startswith(sentence)

    @pytest.mark.parametrize("arguments", [[], ["table.json"], ["--batch_size", "8"]])
    def test_too_few_arguments_print_the_usage(self, tmp_path, arguments):
        done = self.run(tmp_path, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: sh run_distribute_train.sh [--dry-run] [RANK_TABLE_FILE] [DATA_DIR]")

    def test_refusals_have_exit_code_2_and_leave_nothing(self, tmp_path):
        (tmp_path / "data").mkdir()
        done = self.run(tmp_path, "none.json", "data")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("error: the rank table none.json cannot be read: No such file or directory")
        write_table(tmp_path / "table.json", EIGHT)
        done = self.run(tmp_path, "table.json", "nothing here")
        assert (done.returncode, done.stderr) == (2, "error: DATA_DIR: there is no 'nothing here'\n")
        assert sorted(os.listdir(tmp_path)) == ["data", "table.json"]
