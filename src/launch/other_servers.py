"""What the launchers of several servers tell each other: how a run ends on one of them. Standard library only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import socket
import sys
import time
import zlib

from src.launch.rank_table import RankTable, Server

RETRY_SECONDS = 1.0
CONNECT_TIMEOUT = 0.5
# Without an answer for so long a user may want to know.
PATIENCE_SECONDS = 120
LONGEST_LINE = 1 << 16
# Seconds: a server without power is noticed after ALIVE_SECONDS * (1 + ALIVE_PROBES).
ALIVE_SECONDS = 4
ALIVE_PROBES = 3


@dataclasses.dataclass(frozen=True)
class News:
    """What happened on another server.

    Attributes:
        server_id: where.
        signal: number of a signal that stops the run there, or 0.
        failure: a sentence on what failed there, or "".
    """

    server_id: str
    signal: int = 0
    failure: str = ""


@dataclasses.dataclass(eq=False)
class Link:
    """A connection to another launcher: its socket, whose it is, and what came in and is no whole line yet."""

    socket: socket.socket
    server_id: str = ""
    received: bytes = b""


class OtherServers:
    """Connections among the launchers: all others connect to that of rank 0's server, which passes on what it hears.

    Losing them harms no run: a failure elsewhere is then noticed as late as the collectives notice it.

    Args:
        table: the rank table; launchers of another one are not listened to.
        server: this server.
        port: of rank 0's server, for these connections.
    """

    def __init__(self, table: RankTable, server: Server, port: int):
        self.run = f"{zlib.crc32(repr(table.servers).encode()):08x}"
        self.server_id = server.server_id
        self.master = (table.master.server_id, port)
        self.links: list[Link] = []
        self.listener: socket.socket | None = None
        self.wants_master = len(table.servers) > 1 and server != table.master
        self.next_try = 0.0
        self.complains_at = time.monotonic() + PATIENCE_SECONDS
        if len(table.servers) > 1 and server == table.master:
            self.listen()

    def __enter__(self) -> OtherServers:
        return self

    def __exit__(self, *exception) -> None:
        self.tell("done")
        for link in self.links:
            link.socket.close()
        if self.listener:
            self.listener.close()

    def listen(self) -> None:
        """Accept connections from now on, or say why not."""
        try:
            family, _, _, _, address = socket.getaddrinfo(*self.master, type=socket.SOCK_STREAM)[0]
            self.listener = socket.create_server(address[:2], family=family)
            self.listener.setblocking(False)
        except OSError as error:
            self.warn(f"port {self.master[1]} of {self.master[0]} cannot be opened: {error.strerror}")

    def warn(self, why: str) -> None:
        """Say that the servers do not hear of each other."""
        print(
            f"warning: {why}; a failure on one server is noticed late on the others (MASTER_PORT sets another port)",
            file=sys.stderr,
            flush=True,
        )

    def tell(self, what: str, number: int = 0, sentence: str = "") -> None:
        """Tell all other servers: "hello", "done", "signal" with its number, or "failed" with a sentence."""
        self.send(self.links, {"server": self.server_id, "what": what, "signal": number, "sentence": sentence})

    def send(self, links: list[Link], message: dict) -> None:
        """Send a message over some of the links; one that is broken is noticed by the next `poll`."""
        line = json.dumps({"run": self.run, **message}).encode() + b"\n"
        for link in links:
            with contextlib.suppress(OSError):
                link.socket.sendall(line)

    def poll(self) -> list[News]:
        """Take up connections and read what has come, without waiting for it."""
        if self.wants_master and time.monotonic() >= self.next_try:
            self.connect()
        if self.listener:
            with contextlib.suppress(OSError):
                while True:
                    self.add(self.listener.accept()[0])
        return [news for link in list(self.links) for news in self.read(link)]

    def connect(self) -> None:
        """Try to reach rank 0's server, whose launcher may be started later than this one."""
        try:
            connection = socket.create_connection(self.master, CONNECT_TIMEOUT)
        except OSError:
            self.next_try = time.monotonic() + RETRY_SECONDS
            if time.monotonic() > self.complains_at:
                self.complains_at = float("inf")
                self.warn(f"the launcher of rank 0 cannot be reached at {self.master[0]}, port {self.master[1]}")
            return
        self.wants_master = False
        self.add(connection, self.master[0])
        self.tell("hello")

    def add(self, connection: socket.socket, server_id: str = "") -> None:
        """Take up a connection; whose it is says its first message, where it is not known."""
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("KEEPIDLE", ALIVE_SECONDS), ("KEEPINTVL", ALIVE_SECONDS), ("KEEPCNT", ALIVE_PROBES)):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{option}"), value)
        self.links.append(Link(connection, server_id))

    def read(self, link: Link) -> list[News]:
        """What has come over a link; it is closed when its launcher is done, has gone, or is none of this run."""
        lines, ended = receive_lines(link)
        messages = [self.parse(line) for line in lines]
        if None in messages or len(link.received) > LONGEST_LINE:
            self.drop(link)
            return []
        if messages and not link.server_id:
            link.server_id = messages[0]["server"]
        done = any(message["what"] == "done" for message in messages)
        if ended and not done and link.server_id:
            gone = {
                "server": link.server_id,
                "what": "failed",
                "signal": 0,
                "sentence": "its launcher has gone or cannot be reached",
            }
            messages.append(gone)
        if ended or done:
            self.drop(link)
        news = [message for message in messages if message["what"] in ("signal", "failed")]
        for message in news:
            self.send([other for other in self.links if other is not link], message)
        return [News(message["server"], message["signal"], message["sentence"]) for message in news]

    def parse(self, line: bytes) -> dict | None:
        """A message from its line, or None if it is none of this run's launchers."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return None
        kinds = {"run": str, "server": str, "what": str, "signal": int, "sentence": str}
        if not isinstance(message, dict) or message.get("run") != self.run:
            return None
        known = all(type(message.get(name)) is kind for name, kind in kinds.items())
        return message if known and (message["signal"] == 0 or message["signal"] in set(signal.Signals)) else None

    def drop(self, link: Link) -> None:
        """Close a link."""
        link.socket.close()
        self.links.remove(link)


def receive_lines(link: Link) -> tuple[list[bytes], bool]:
    """The whole lines that have come, without waiting, and whether no more will."""
    ended = False
    try:
        while len(link.received) <= LONGEST_LINE and not ended:
            data = link.socket.recv(4096)
            link.received += data
            ended = not data
    except BlockingIOError:
        pass
    except OSError:
        ended = True
    *lines, link.received = link.received.split(b"\n")
    return lines, ended
