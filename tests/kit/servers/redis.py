"""A Redis server of a test's own, that has on disk what it confirms; read back by redis-py."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar
from urllib.parse import urlsplit

from redis import Redis

from tests.kit.servers.process import OneProcess, Received, free_port, program

_POLL = 0.02
_SETTLE = 0.1
PAYLOAD = b"payload"


class RedisServer(OneProcess):
    """One redis-server process."""

    name: ClassVar[str] = "redis"
    too_large: ClassVar[int] = 1024 * 1024 + 1

    def __init__(self, *settings: str, durable: bool = True) -> None:
        """Settings as redis-server takes them on its command line, such as `--maxclients 1`."""
        # What it has confirmed a kill must not take.
        on_disk = ("--appendonly", "yes", "--appendfsync", "always") if durable else ()
        self._settings = (*on_disk, *settings)
        super().__init__()

    def start(self) -> None:
        executable = program("redis-server", "redis-server")
        self.port = self.port or free_port()
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--maxmemory-policy", "noeviction", "--proto-max-bulk-len", "1mb"]
        command += ["--dir", str(self.directory), *self._settings]
        self._process.start(command, self._answers)

    def fresh(self) -> str:
        return f"redis://127.0.0.1:{self.port}/stream{next(self._numbers)}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        with self.client() as client:
            return read_stream(client, url, count, timeout)

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """Out of memory: nothing may be added any more."""
        with self.client() as client:
            client.config_set("maxmemory", 1)
            try:
                yield
            finally:
                client.config_set("maxmemory", 0)

    def client(self) -> Redis:
        """An independent client, to be closed by the caller."""
        return Redis(host="127.0.0.1", port=self.port)

    def _answers(self) -> bool:
        # Not before it has read its disk: until then it answers every PING with an error.
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))


def read_stream(client: Redis, url: str, count: int, timeout: float) -> list[Received]:
    """As `Server.read`, by this client."""
    stream = urlsplit(url).path[1:]
    until = time.monotonic() + timeout
    while client.xlen(stream) < count and time.monotonic() < until:
        time.sleep(_POLL)
    time.sleep(_SETTLE)
    return [_received(id, fields) for id, fields in client.xrange(stream)]


def _received(id: bytes, fields: dict[bytes, bytes]) -> Received:
    headers = {name.decode(): value.decode() for name, value in fields.items() if name != PAYLOAD}
    return Received(fields[PAYLOAD], headers, int(id.split(b"-")[0]) / 1000)
