"""Rank tables: read, checked, searched for this server, and written by scripts/write_rank_table.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from src.common.cli import UsageError
from src.launch.rank_table import find_server, read_device_addresses, read_rank_table
from tests.support.launcher import EIGHT, PAIR, table_of, write_table

ROOT = Path(__file__).parent.parent.parent


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
            (json.dumps(table_of(EIGHT, version="1.2")), "is of version 1.2, and only 1.0 is read; "),
            ('{"version": "2.0", "rank_list": []}', "is of version 2.0, and only 1.0 is read; "),
            (json.dumps(table_of(EIGHT, status="initializing")), "has the status 'initializing', not 'completed'"),
            (json.dumps(table_of(EIGHT, server_count="2")), "says 2 servers and lists 1"),
            (json.dumps(table_of()), "names no server"),
            (json.dumps(table_of(("10.0.0.1", []))), "lists no device for server 10.0.0.1"),
            (json.dumps(table_of(("", [(0, 0)]))), 'has a server without "server_id"'),
            (json.dumps(table_of(("a", [(0, 0), (1, 0)]))), "gives rank 0 twice"),
            (json.dumps(table_of(("a", [(0, 0)]), ("b", [(0, 0)]))), "gives rank 0 twice"),
            (json.dumps(table_of(("a", [(0, 0)]), ("a", [(0, 1)]))), "gives server a twice"),
            (json.dumps(table_of(("a", [(3, 0), (3, 1)]))), "gives device_id 3 of server a twice"),
            (json.dumps(table_of(("{}{1}", [(3, 0), (3, 1)]))), "gives device_id 3 of server {}{1} twice"),
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
