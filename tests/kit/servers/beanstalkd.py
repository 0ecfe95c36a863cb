"""A beanstalkd of a test's own, that has on disk what it confirms; read back by greenstalk."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import greenstalk

from tests.kit.servers.process import OneProcess, Received, free_port, listening, program

_SETTLE = 0.1


class BeanstalkdServer(OneProcess):
    """One beanstalkd process."""

    name: ClassVar[str] = "beanstalkd"
    too_large: ClassVar[int] = 65_536

    def __init__(self, *options: str, durable: bool = True) -> None:
        """Options as beanstalkd takes them on its command line."""
        super().__init__()
        # What it has confirmed a kill must not take.
        on_disk = ("-b", str(self.directory), "-f", "0") if durable else ()
        self._options = (*on_disk, *options)
        self._received: dict[str, list[Received]] = {}

    def start(self) -> None:
        executable = program("beanstalkd", "beanstalkd")
        self.port = self.port or free_port()
        command = [executable, "-l", "127.0.0.1", "-p", str(self.port), *self._options]
        self._process.start(command, listening(self.port))

    def fresh(self) -> str:
        return f"beanstalkd://127.0.0.1:{self.port}/tube{next(self._numbers)}"

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        tube = unquote(urlsplit(url).path[1:])
        # To read takes out: what earlier calls have read is kept here.
        received = self._received.setdefault(tube, [])
        until = time.monotonic() + timeout
        with self.client(watch=tube) as client:
            while len(received) < count and time.monotonic() < until:
                _reserve(client, received, timeout=1)
            time.sleep(_SETTLE)
            while _reserve(client, received, timeout=0):
                pass
        return list(received)

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """Draining: nothing may be put in any more. Only another start ends that."""
        self.drain()
        try:
            yield
        finally:
            self.kill()
            self.restart()

    def drain(self) -> None:
        """Have it drain, and wait until it does."""
        os.kill(self.pid, signal.SIGUSR1)
        with self.client() as client:
            while client.stats()["draining"] != "true":
                time.sleep(0.01)

    def client(self, *, use: str = "default", watch: str = "default") -> greenstalk.Client[bytes]:
        """A client of its own, to be closed by the caller."""
        return greenstalk.Client(("127.0.0.1", self.port), encoding=None, use=use, watch=watch)


def _reserve(client: greenstalk.Client[bytes], received: list[Received], timeout: int) -> bool:
    """Take one job out, if there is one within so many seconds."""
    try:
        job = client.reserve(timeout)
    except greenstalk.TimedOutError:
        return False
    received.append(Received(job.body, {}, time.time()))
    client.delete(job)
    return True
