"""Rank tables: HCCL's files (version 1.0) that say which device of which server has which rank."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import socket

from src.common.cli import RunError, UsageError
from src.common.files import atomic_write

NPU_CONFIGURATION = "/etc/hccn.conf"


@dataclasses.dataclass(frozen=True)
class RankedDevice:
    """One device of a server.

    Attributes:
        rank: its number among the devices of all servers, from 0.
        device_id: its number on its server, from 0.
        device_ip: address of its network card, or None if the table gives none.
    """

    rank: int
    device_id: int
    device_ip: str | None = None


@dataclasses.dataclass(frozen=True)
class Server:
    """A server: its address or name, and its devices in the order of their ranks."""

    server_id: str
    devices: tuple[RankedDevice, ...]


@dataclasses.dataclass(frozen=True)
class RankTable:
    """All servers of a run.

    Attributes:
        path: absolute path of the file.
        servers: in the file's order.
    """

    path: str
    servers: tuple[Server, ...]

    @property
    def rank_size(self) -> int:
        """How many devices train together."""
        return sum(len(server.devices) for server in self.servers)

    @property
    def master(self) -> Server:
        """The server of rank 0."""
        return next(server for server in self.servers if server.devices[0].rank == 0)


def read_rank_table(path: str) -> RankTable:
    """Read and check a rank table.

    Raises:
        UsageError: if the file is missing or is no rank table, or if its ranks are not 0 to N - 1, each once.
    """
    try:
        with open(path, encoding="utf-8") as file:
            table = json.load(file)
    except OSError as error:
        raise UsageError(f"the rank table {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the rank table {path} is not JSON: {str(error).splitlines()[0]}") from None
    try:
        servers = tuple(parse_server(entry) for entry in parse_table(table))
        check_servers(servers)
    except ValueError as error:
        raise UsageError(f"the rank table {path} {error}") from None
    return RankTable(os.path.abspath(path), servers)


def parse_table(table: object) -> list:
    """The server entries of a parsed file.

    Raises:
        ValueError: with words that continue the sentence "the rank table FILE".
    """
    version = str(table.get("version")) if isinstance(table, dict) else "1.0"
    if version != "1.0":
        # 1.2 is of Atlas A3's super pods; both have fields of their own.
        raise ValueError(
            f"is of version {version}, and only 1.0 is read; scripts/write_rank_table.py writes one for a server of "
            "cards numbered from 0, and msrun needs none"
        )
    if not isinstance(table, dict) or not isinstance(table.get("server_list"), list):
        raise ValueError('has no "server_list"')
    if table.get("status", "completed") != "completed":
        raise ValueError(f"has the status '{table['status']}', not 'completed'")
    servers = table["server_list"]
    if not servers:
        raise ValueError("names no server")
    if "server_count" in table and str(table["server_count"]) != str(len(servers)):
        raise ValueError(f"says {table['server_count']} servers and lists {len(servers)}")
    return servers


def parse_server(entry: object) -> Server:
    """A server from its entry in the file; errors as in `parse_table`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("server_id"), str) or not entry["server_id"]:
        raise ValueError('has a server without "server_id"')
    server_id = entry["server_id"]
    devices = entry.get("device")
    if not isinstance(devices, list) or not devices:
        raise ValueError(f"lists no device for server {server_id}")
    parsed = [parse_device(device, server_id) for device in devices]
    check_once([device.device_id for device in parsed], "device_id", f" of server {server_id}")
    return Server(server_id, tuple(sorted(parsed, key=lambda device: device.rank)))


def parse_device(entry: object, server_id: str) -> RankedDevice:
    """A device from its entry in the file; errors as in `parse_table`."""
    numbers = {}
    for name in ("rank_id", "device_id"):
        text = str(entry.get(name, "")) if isinstance(entry, dict) else ""
        if not (text.isascii() and text.isdigit()):
            raise ValueError(f"has a device of server {server_id} whose {name} is '{text}', not a whole number")
        numbers[name] = int(text)
    address = entry.get("device_ip") or None
    if address is not None and not is_address(address):
        raise ValueError(f"gives rank {numbers['rank_id']} the device_ip '{address}', which is no IP address")
    return RankedDevice(numbers["rank_id"], numbers["device_id"], address)


def check_servers(servers: tuple[Server, ...]) -> None:
    """Refuse servers, ranks or addresses that are given twice, and missing ranks; errors as in `parse_table`."""
    devices = [device for server in servers for device in server.devices]
    check_once([server.server_id for server in servers], "server")
    check_once([device.rank for device in devices], "rank")
    check_once([device.device_ip for device in devices if device.device_ip], "device_ip")
    missing = sorted(set(range(len(devices))) - {device.rank for device in devices})
    if missing:
        raise ValueError(f"lists {len(devices)} devices, but rank {missing[0]} is missing")


def check_once(values: list, what: str, where: str = "") -> None:
    """Refuse a value that is given twice; `what` and `where` name it. Errors as in `parse_table`."""
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"gives {what} {value}{where} twice")
        seen.add(value)


def is_address(text: object) -> bool:
    """Whether `text` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def find_server(table: RankTable, server_id: str | None = None) -> Server:
    """The entry of the server that this program runs on.

    Args:
        table: the rank table.
        server_id: the entry to take; without it, the one whose address or name is this machine's.

    Raises:
        UsageError: if there is no such entry, or if several are this machine's.
    """
    listed = ", ".join(server.server_id for server in table.servers)
    if server_id:
        found = [server for server in table.servers if server.server_id == server_id]
        if not found:
            raise UsageError(f"SERVER_ID is {server_id}, but the rank table {table.path} lists {listed}")
        return found[0]
    found = [server for server in table.servers if is_this_machine(server.server_id)]
    if len(found) == 1:
        return found[0]
    count = "several servers that are" if found else "no server that is"
    raise UsageError(
        f"the rank table {table.path} lists {count} this machine; set SERVER_ID to the entry to take: {listed}"
    )


def is_this_machine(host: str) -> bool:
    """Whether an address or name belongs to this machine; a socket can be bound to no other."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        return False
    return True


def find_address() -> str:
    """The address under which other machines reach this one, or 127.0.0.1 if there is no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing, it only chooses the outgoing network card. The address belongs
            # to the block that is reserved for documentation.
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def read_device_addresses(path: str = NPU_CONFIGURATION) -> dict[int, str]:
    """The network addresses of this server's NPUs, by device number; empty if there is no NPU configuration.

    Raises:
        RunError: if the file exists and cannot be read.
    """
    addresses = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = (part.strip() for part in line.partition("="))
                if name.startswith("address_") and name[len("address_") :].isdigit() and is_address(value):
                    addresses[int(name[len("address_") :])] = value
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"the NPU configuration {path} cannot be read: {error.strerror}") from None
    return addresses


def write_rank_table(path: str, server_id: str, device_ids: list[int], addresses: dict[int, str]) -> None:
    """Write the rank table of a single server.

    Args:
        path: the file to write.
        server_id: the server's address or name.
        device_ids: numbers of its devices; the first becomes rank 0, the next rank 1, and so on.
        addresses: network addresses by device number; a device that is not among them gets no "device_ip".

    Raises:
        OSError: if the file cannot be written.
    """
    devices = []
    for rank, device_id in enumerate(device_ids):
        address = {"device_ip": addresses[device_id]} if device_id in addresses else {}
        devices.append({"device_id": str(device_id), **address, "rank_id": str(rank)})
    server = {"server_id": server_id, "device": devices, "host_nic_ip": "reserve"}
    table = {"version": "1.0", "server_count": "1", "server_list": [server], "status": "completed"}
    with atomic_write(path, "w") as file:
        file.write(json.dumps(table, indent=4) + "\n")
