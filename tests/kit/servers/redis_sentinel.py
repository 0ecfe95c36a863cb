"""A Redis and its replica, and three sentinels that look after them, on loopback."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

from redis import Redis, RedisError

from tests.kit.servers.process import Process, Received, free_port, listening, program
from tests.kit.servers.redis import RedisServer, read_stream

SERVICE = "orders"
_POLL = 0.05
_TIMEOUT = 150.0
_DOWN_AFTER = 1000
"""Milliseconds of silence after which a master is taken to be down."""


class RedisSentinels:
    """Five processes. A master that does not answer for a second is replaced by its replica."""

    def __init__(self, sentinels: int = 3, *settings: str, password: str = "", lines: str = "") -> None:
        """`settings` are the servers', and the password, and lines of their file, the sentinels'."""
        self._settings = settings
        self._password = password
        self._lines = lines
        if password:
            self._lines += f"\nrequirepass {password}\nsentinel sentinel-pass {password}"
        self.sentinels = [(free_port(), Process("redis-sentinel")) for _ in range(sentinels)]
        self.servers: list[RedisServer] = []
        self._names = itertools.count(1)

    def start(self) -> None:
        """Start them, and wait until each sentinel knows of all others."""
        common = ("--repl-diskless-sync-delay", "0", *self._settings)
        self._begin(RedisServer(*common))
        self._begin(RedisServer("--replicaof", "127.0.0.1", f"{self.servers[0].port}", *common))
        quorum = len(self.sentinels) // 2 + 1
        for port, process in self.sentinels:
            file = process.directory / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {process.directory}\n{self._lines}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} {quorum}\n"
                f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
            )
            command = [program("redis-server", "redis-server"), str(file), "--sentinel"]
            process.start(command, listening(port))
        for port, _ in self.sentinels:
            self._until(lambda port=port: self._is_complete(port), "the sentinels do not find each other")

    def stop(self) -> None:
        for _, process in self.sentinels:
            process.kill()
            process.stop()
        for server in self.servers:
            server.kill()
            server.stop()

    def fresh(self) -> str:
        """The URL of a queue, or a stream, that is new and empty."""
        hosts = ",".join(f"127.0.0.1:{port}" for port, _ in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}/queue{next(self._names)}"

    def master(self) -> RedisServer:
        """Whom a sentinel takes to be the master."""
        for port, process in self.sentinels:
            if process.runs:
                with self._sentinel(port) as client:
                    _, found = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
                return next(server for server in self.servers if server.port == int(found))
        raise RuntimeError("there is no sentinel")

    def read(self, url: str, count: int, timeout: float = 10.0) -> list[Received]:
        """What the stream has, as of a single Redis."""
        with self.master().client() as client:
            return read_stream(client, url.replace(f"{SERVICE}/", ""), count, timeout)

    def wait_until_taken_over(self, victim: RedisServer) -> None:
        """Wait until the master is another one, and takes itself for it."""
        self._until(lambda: self.master() is not victim and self._role(self.master()) == "master", "nobody")

    def wait_until_replica(self, server: RedisServer) -> None:
        """Wait until this server copies another one."""
        self._until(lambda: self._role(server) == "slave", "it is no replica")

    def _sentinel(self, port: int) -> Redis:
        return Redis(port=port, password=self._password or None)

    def _begin(self, server: RedisServer) -> None:
        self.servers.append(server)
        server.start()

    def _role(self, server: RedisServer) -> str:
        with server.client() as client:
            return str(client.info("replication")["role"])

    def _is_complete(self, port: int) -> bool:
        with self._sentinel(port) as client:
            told = client.sentinel_master(SERVICE)
        others = told["num-other-sentinels"] == len(self.sentinels) - 1
        return bool(others and told["num-slaves"] == 1)

    def _until(self, done: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + _TIMEOUT
        while time.monotonic() < until:
            try:
                if done():
                    return
            except (RedisError, OSError):
                pass
            time.sleep(_POLL)
        raise RuntimeError(what)
