"""The launcher, with ranks that are tiny programs but real processes; test_distribute.py has ranks that train."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.common.cli import UsageError
from src.config import PARAMETERS, path_parameters
from src.launch.plan import absolute_paths, make_plan, share_of_cores
from src.launch.rank_table import find_server, read_device_addresses, read_rank_table

ROOT = Path(__file__).parent.parent.parent
CALL = """
import sys
from src.launch import command, processes
from src.common.cli import run_cli
{}
sys.exit(run_cli(lambda argv: command.main(argv, {!r})))
"""


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
    path.write_text(json.dumps(table_of(*servers, **changes)))
    return str(path)


EIGHT = ("127.0.0.1", [(number, number) for number in range(8)])
PAIR = ("127.0.0.1", [(0, 0), (1, 1)])


class TestReadRankTable:
    def test_the_example_of_the_hccl_documentation(self, tmp_path):
        first = ("10.155.111.140", [(0, 0), (1, 1)])
        second = ("10.155.111.141", [(0, 2), (1, 3)])
        table = read_rank_table(write_table(tmp_path / "table.json", second, first))
        assert table.rank_size == 4
        assert table.master.server_id == "10.155.111.140"
        assert [device.rank for device in table.servers[0].devices] == [2, 3]
        assert table.servers[0].devices[1].device_ip == "192.168.0.2"

    @pytest.mark.parametrize(
        "text, sentence",
        [
            ("", "is not JSON: Expecting value"),
            ('{"version": "1.0", ', "is not JSON: "),
            ("[1]", 'has no "server_list"'),
            ("[" * 100000, "is not JSON: "),
            (json.dumps(table_of(EIGHT, version="1.2")), "is of version 1.2, not 1.0"),
            (json.dumps(table_of(EIGHT, status="initializing")), "has the status 'initializing', not 'completed'"),
            (json.dumps(table_of(EIGHT, server_count="2")), "says 2 servers and lists 1"),
            (json.dumps(table_of()), "names no server"),
            (json.dumps(table_of(("10.0.0.1", []))), "lists no device for server 10.0.0.1"),
            (json.dumps(table_of(("", [(0, 0)]))), 'has a server without "server_id"'),
            (json.dumps(table_of(("a", [(0, 0), (1, 0)]))), "gives rank 0 twice"),
            (json.dumps(table_of(("a", [(0, 0)]), ("b", [(0, 0)]))), "gives rank 0 twice"),
            (json.dumps(table_of(("a", [(0, 0)]), ("a", [(0, 1)]))), "gives server a twice"),
            (json.dumps(table_of(("a", [(3, 0), (3, 1)]))), "gives device_id 3 of server a twice"),
            (json.dumps(table_of(("a", [(0, 0), (1, 2)]))), "lists 2 devices, but rank 1 is missing"),
            (json.dumps(table_of(("a", [(0, 1), (1, 2)]))), "lists 2 devices, but rank 0 is missing"),
            (json.dumps(table_of(("a", [(0, -1)]))), "whose rank_id is '-1', not a whole number"),
            (
                '{"version": "1.0", "server_list": [{"server_id": "a", "device": [7]}]}',
                "whose rank_id is '', not a whole",
            ),
            (json.dumps(table_of(PAIR)).replace("192.168.0.2", "192.168.0.1"), "gives device_ip 192.168.0.1 twice"),
            (json.dumps(table_of(PAIR)).replace("192.168.0.2", "npu1"), "gives rank 1 the device_ip 'npu1'"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path, text, sentence):
        path = tmp_path / "table.json"
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            read_rank_table(str(path))
        assert str(error.value).startswith(f"the rank table {path} ")
        assert sentence in str(error.value)

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be read: No such file"):
            read_rank_table(str(tmp_path / "none.json"))
        with pytest.raises(UsageError, match="cannot be read: Is a directory"):
            read_rank_table(str(tmp_path))


class TestFindServer:
    def table(self, tmp_path, *servers):
        return read_rank_table(write_table(tmp_path / "table.json", *servers))

    def test_takes_the_entry_with_an_address_of_this_machine(self, tmp_path):
        table = self.table(tmp_path, ("192.0.2.77", [(0, 0)]), ("127.0.0.1", [(0, 1)]))
        assert find_server(table).server_id == "127.0.0.1"

    def test_without_this_machine(self, tmp_path):
        table = self.table(tmp_path, ("192.0.2.77", [(0, 0)]), ("not.a.host.invalid", [(0, 1)]))
        with pytest.raises(
            UsageError, match="lists no server that is this machine; set SERVER_ID to .* 192.0.2.77, not"
        ):
            find_server(table)
        assert find_server(table, "192.0.2.77").devices[0].rank == 0

    def test_several_entries_of_this_machine_need_a_choice(self, tmp_path):
        table = self.table(tmp_path, ("127.0.0.1", [(0, 0)]), ("127.0.0.2", [(1, 1)]))
        with pytest.raises(UsageError, match="lists several servers that are this machine"):
            find_server(table)
        assert find_server(table, "127.0.0.2").devices[0].rank == 1

    def test_a_choice_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match="SERVER_ID is 10.9.9.9, but the rank table .* lists 127.0.0.1"):
            find_server(self.table(tmp_path, EIGHT), "10.9.9.9")


class TestPlan:
    def plan(self, tmp_path, *servers, flags=(), **environment):
        environment.setdefault("DEVICE_TARGET", "Ascend")
        path = write_table(tmp_path / "table.json", *servers)
        return make_plan([path, "data", *flags], environment, "/code/train.py")

    @pytest.fixture(autouse=True)
    def data(self, tmp_path, monkeypatch):
        (tmp_path / "data").mkdir()
        monkeypatch.chdir(tmp_path)

    def test_eight_devices_get_what_the_model_zoo_gives_them(self, tmp_path):
        devices = [(number, 7 - number) for number in range(8)]
        plan = self.plan(tmp_path, ("127.0.0.1", devices), RANK_SIZE="8")
        assert plan.scheduler is None
        assert [rank.folder for rank in plan.ranks] == [f"{tmp_path}/train_parallel{rank}" for rank in range(8)]
        for number, rank in enumerate(plan.ranks):
            expected = {"RANK_ID": str(number), "DEVICE_ID": str(7 - number), "RANK_SIZE": "8"}
            assert rank.variables == {**expected, "RANK_TABLE_FILE": f"{tmp_path}/table.json"}
            assert rank.log == f"{rank.folder}/log.txt"

    def test_a_server_starts_only_its_own_ranks(self, tmp_path):
        servers = ("10.0.0.1", [(0, 0), (1, 1)]), ("10.0.0.2", [(4, 2), (5, 3)])
        plan = self.plan(tmp_path, *servers, SERVER_ID="10.0.0.2")
        found = [(rank.variables["RANK_ID"], rank.variables["DEVICE_ID"]) for rank in plan.ranks]
        assert found == [("2", "4"), ("3", "5")]
        assert {rank.variables["RANK_SIZE"] for rank in plan.ranks} == {"4"}

    def test_on_the_cpu_the_server_of_rank_0_runs_the_scheduler(self, tmp_path):
        servers = ("10.0.0.1", [(0, 2), (1, 3)]), ("10.0.0.2", [(0, 0), (1, 1)])
        for server, has_scheduler in (("10.0.0.1", False), ("10.0.0.2", True)):
            plan = self.plan(tmp_path, *servers, SERVER_ID=server, DEVICE_TARGET="CPU", MASTER_PORT="9000")
            assert (plan.scheduler is not None) == has_scheduler
            for worker in plan.workers:
                variables = worker.variables
                assert (variables["MS_SCHED_HOST"], variables["MS_SCHED_PORT"]) == ("10.0.0.2", "9000")
                assert variables["MS_WORKER_NUM"] == "4"
                assert variables["MS_ROLE"] == ("MS_SCHED" if worker is plan.scheduler else "MS_WORKER")
            assert [rank.variables["MS_NODE_ID"] for rank in plan.ranks] == ["0", "1"] if has_scheduler else ["2", "3"]

    def test_flags_are_passed_on_after_the_launchers_own(self, tmp_path):
        plan = self.plan(tmp_path, PAIR, flags=["--batch_size", "8", "--lr_max=0.1"])
        assert plan.ranks[1].command[1:] == (
            *("-u", "/code/train.py", "--run_distribute", "True", "--device_target", "Ascend"),
            *("--dataset_path", f"{tmp_path}/data", "--batch_size", "8", "--lr_max=0.1"),
            *("--save_checkpoint_path", f"{tmp_path}/checkpoint"),
        )

    def test_device_target_among_the_flags_counts_too(self, tmp_path):
        assert self.plan(tmp_path, PAIR, flags=["--device_target", "CPU"], DEVICE_TARGET="").scheduler is not None

    @pytest.mark.parametrize(
        "environment, sentence",
        [
            ({"RANK_SIZE": "8"}, "RANK_SIZE is 8, but the rank table .* lists 2 ranks"),
            ({"DEVICE_TARGET": "GPU"}, "DEVICE_TARGET is 'GPU'; a rank table starts ranks on Ascend or CPU"),
            ({"DEVICE_TARGET": "CPU", "MASTER_PORT": "x"}, "MASTER_PORT is 'x', not a port number"),
            ({"DEVICE_TARGET": "CPU", "MASTER_PORT": "65536"}, "MASTER_PORT is '65536', not a port number"),
            ({"flags": ["--device_id", "1"]}, "--device_id cannot be among the further flags: the rank table gives"),
            ({"flags": ["--run_distribute=False"]}, "--run_distribute cannot be among the further flags"),
            ({"flags": ["--dataset_path", "x"]}, "--dataset_path cannot be among the further flags: it is DATA_DIR"),
        ],
    )
    def test_wrong_settings_are_one_sentence(self, tmp_path, environment, sentence):
        with pytest.raises(UsageError, match=sentence):
            self.plan(tmp_path, PAIR, **environment)

    def test_without_an_npu_the_cpu_has_to_be_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr("glob.glob", lambda pattern: [])
        with pytest.raises(
            UsageError, match="there is no NPU on this server .*; DEVICE_TARGET=CPU starts the ranks on"
        ):
            self.plan(tmp_path, PAIR, DEVICE_TARGET="")
        monkeypatch.setattr("glob.glob", lambda pattern: ["/dev/davinci0"])
        assert self.plan(tmp_path, PAIR, DEVICE_TARGET="").target == "Ascend"


def test_paths_among_the_flags_stay_the_callers():
    flags = ["--resume", "auto", "--pretrained", "a.ckpt", "--eval_dataset_path=val", "--opt", "sgd"]
    assert absolute_paths([*flags, "--save_checkpoint_path", "/out"], "/here") == [
        *["--resume", "auto", "--pretrained", "/here/a.ckpt", "--eval_dataset_path=/here/val", "--opt", "sgd"],
        *["--save_checkpoint_path", "/out"],
    ]


def test_every_path_that_train_py_takes_is_known_to_the_launcher():
    paths = {name for name in PARAMETERS if name.endswith(("_path", "resume", "pretrained"))}
    assert paths == set(path_parameters())
    for name in paths:
        assert absolute_paths([f"--{name}", "there"], "/here")[:2] == [f"--{name}", "/here/there"]


def test_cores_are_shared_out_once_or_not_at_all(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {2, 3, 5, 7, 11})
    assert [share_of_cores(rank, 2) for rank in range(2)] == [{2, 3}, {5, 7, 11}]
    assert share_of_cores(0, 6) is None


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
            [sys.executable, "-c", CALL.format(before, str(script)), table, str(tmp_path / "data"), "--flag", "a b"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "DEVICE_TARGET": "Ascend", "WAIT": wait, **environment},
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


def wait_for(condition, seconds=20):
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


# Each rank writes down its own process and that of a child which would outlive it.
WITH_CHILD = """
child = subprocess.Popen(["sleep", "300"])
with open("processes.tmp", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("processes.tmp", "processes")
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
        assert f"stopping all ranks: {number.name} was received; they may finish a step" in out
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
            "stopping all ranks: SIGTERM was received; they may finish a step"
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
        assert len(lines) == 9
        assert lines[8].startswith(f"rank 7: cd {tmp_path}/train_parallel7 && RANK_ID=7 DEVICE_ID=7 RANK_SIZE=8 ")
        assert f"--dataset_path '{folder}' --batch_size 8" in lines[8]
        assert sorted(os.listdir(tmp_path)) == ["my data", "table.json"]

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


class TestWriteRankTable:
    def run(self, folder, *arguments):
        command = [sys.executable, ROOT / "scripts" / "write_rank_table.py", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    def test_device_addresses_come_from_the_npu_configuration(self, tmp_path):
        configuration = tmp_path / "hccn.conf"
        lines = [f"address_{number}=192.98.92.{100 + number}\nnetmask_{number}=255.255.255.0\n" for number in range(4)]
        configuration.write_text("# written by hccn_tool\n" + "".join(lines))
        done = self.run(tmp_path, "--device_num", "2", "--first_device", "2", "--hccn_conf", "hccn.conf")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "wrote rank_table_2pcs.json: 2 ranks, addresses from hccn.conf\n"
        table = read_rank_table(str(tmp_path / "rank_table_2pcs.json"))
        found = [(device.rank, device.device_id, device.device_ip) for device in table.servers[0].devices]
        assert found == [(0, 2, "192.98.92.102"), (1, 3, "192.98.92.103")]
        assert find_server(table) == table.servers[0]

    def test_without_an_npu_it_is_for_ranks_on_the_cpu(self, tmp_path):
        done = self.run(tmp_path, "--hccn_conf", "none", "--out", "my table.json", "--server_id", "127.0.0.1")
        assert done.stdout == "wrote my table.json: 8 ranks, no NPU configuration here: for ranks on the CPU\n"
        table = read_rank_table(str(tmp_path / "my table.json"))
        assert table.rank_size == 8 and table.master.devices[0].device_ip is None

    @pytest.mark.parametrize(
        "arguments, sentence",
        [
            (["--device_num", "0"], "--device_num: expected a whole number of at least 1, not '0'"),
            (["--first_device", "-1"], "--first_device is -1, not a whole number of at least 0"),
            (["--hccn_conf", "hccn.conf"], "hccn.conf gives no address for device 1; --device_num is too large"),
        ],
    )
    def test_wrong_flags_are_one_sentence(self, tmp_path, arguments, sentence):
        (tmp_path / "hccn.conf").write_text("address_0=10.0.0.1\n")
        done = self.run(tmp_path, *arguments)
        assert done.returncode == 2
        assert sentence in done.stderr and done.stderr.count("\n") == 1
        assert os.listdir(tmp_path) == ["hccn.conf"]

    def test_lines_that_are_no_addresses_are_passed_over(self, tmp_path):
        (tmp_path / "hccn.conf").write_bytes(b"address_0=10.0.0.1\naddress_x=10.0.0.2\naddress_1=npu\n\xff\xfe\n=\n")
        assert read_device_addresses(str(tmp_path / "hccn.conf")) == {0: "10.0.0.1"}
