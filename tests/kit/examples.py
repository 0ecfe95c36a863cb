"""Programs that are run as their users do it, and the queues of those that use RabbitMQ."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def need(*modules: str) -> None:
    """Skip the test where one of them is missing, or fail it with LOCALDELAY_REQUIRE_BROKERS=1."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        said = f"{', '.join(missing)} not installed: python -m pip install --group examples"
        if os.environ.get("LOCALDELAY_REQUIRE_BROKERS") == "1":
            pytest.fail(said)
        pytest.skip(said)


@contextmanager
def running(directory: Path, command: Sequence[str], **environ: str) -> Iterator[subprocess.Popen[str]]:
    """A module's program (`["celery", ...]`); killed at the end, with its workers.

    `communicate()` of what is yielded gives all it has printed, errors among it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # all of them have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def serving(
    directory: Path, command: Sequence[str], port: int, needs: Sequence[str] = (), **environ: str
) -> Iterator[subprocess.Popen[str]]:
    """The same, once it listens."""
    need(command[0], *needs)
    with running(directory, command, **environ) as process:
        deadline = time.monotonic() + 120
        while not _listens(port):
            ended = process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise RuntimeError(process.communicate()[0] if ended else "it does not listen")
            time.sleep(0.05)
        yield process


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


class Orders:
    """The queues of the programs that use RabbitMQ, and what came into `orders`."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.payloads: set[bytes] = set()
        """Of all that was taken."""
        for queue in ("orders", *(f"orders.after.{seconds}s" for seconds in (1, 2, 3))):
            self.delete(queue)

    def url(self, query: str = "") -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.server.port}/{query}"

    def delete(self, queue: str) -> None:
        with self.server.connection() as connection:
            connection.channel().queue_delete(queue)

    def take(self, ids: Set[str] = frozenset(), at_least: int = 0) -> list[str]:
        """Take messages until these have come, and so many; or for 100 s. Their ids, in their order."""
        taken: list[str] = []
        with self.server.connection() as connection:
            channel, deadline = connection.channel(), time.monotonic() + 100
            channel.queue_declare("orders", durable=True)
            while (len(taken) < at_least or ids - set(taken)) and time.monotonic() < deadline:
                method, properties, payload = channel.basic_get("orders", auto_ack=True)
                if method is None:
                    connection.process_data_events(0.02)
                    continue
                assert payload.startswith(b"close order ")
                self.payloads.add(payload)
                taken.append(properties.message_id)
        return taken

    def wait_until_empty(self, queue: str) -> None:
        with self.server.connection() as connection:
            channel = connection.channel()
            while channel.queue_declare(queue, passive=True).method.message_count:
                connection.process_data_events(0.05)
