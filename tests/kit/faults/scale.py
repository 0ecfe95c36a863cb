"""How much of a fault is done."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from tests.kit.servers.all import make
from tests.kit.servers.process import Server
from tests.kit.servers.redis import RedisServer


@attrs.frozen(kw_only=True)
class Scale:
    """Given to each fault."""

    seed: int
    long: bool = False

    def random(self, fault: str) -> random.Random:
        """The same draws for the same seed, whatever else is run."""
        return random.Random(f"{self.seed} {fault}")


@contextmanager
def redis() -> Iterator[RedisServer]:
    """A Redis that loses nothing that it has confirmed. Raises `NotInstalled`."""
    with broker("redis") as server:
        assert isinstance(server, RedisServer)
        yield server


@contextmanager
def broker(name: str) -> Iterator[Server]:
    """Any broker of that kind."""
    server = make(name)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@contextmanager
def directory() -> Iterator[Path]:
    """A place for logs and journals."""
    with TemporaryDirectory(prefix="localdelay-faults-") as path:
        yield Path(path)


class Watch:
    """How long it takes."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began
