"""The consumer: reads back whatever the broker has stored, on a connection of its own."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any, NoReturn
from urllib.parse import urlsplit

import trio

from localdelay.brokers.line import connect_socket
from localdelay.brokers.nats import stream_subjects
from localdelay.brokers.nats_answers import Frame
from localdelay.brokers.nats_line import Connection
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ID
from localdelay.demo.report import Run
from localdelay.demo.server import ServerError
from localdelay.nurseries import bare_nursery

_API_TIMEOUT = 10.0
_CONSUMER = "demo"
_CONFIG = {"name": _CONSUMER, "ack_policy": "none", "inactive_threshold": 3_600_000_000_000}  # nanoseconds
# Twice as many are on their way. Of the largest messages the server would not keep many more for a client
# that is slow: it would hang up.
_AT_ONCE = 25
_ID = f"\r\n{ID}: ".encode()


class Reader(Connection):
    """A JetStream consumer of a stream that is made for it; `open_reader` opens it.

    It reads nothing twice, having nothing to acknowledge: a duplicate here is one in the stream. (A plain
    subscription would not do. The server stores the messages whose time has come and publishes them to
    nobody.) A reading's time is Trio's clock when it is told of: what reading takes is part of the lateness.
    """

    def __init__(self, connected: socket.socket, subject: str, run: Run) -> None:
        """`run` is told of each message; the stream has its name."""
        super().__init__(connected, Outbox(lambda error: error, 0, 0), "_INBOX", again=False)
        self._subject = subject
        self._run = run

    async def backlog(self) -> tuple[int, int]:
        """(scheduled, unread): what waits in the broker for its time, and what is due and not here yet."""
        asked = {"subjects_filter": self._subject}
        state = (await self._request(f"STREAM.INFO.{self._run.name}", asked))["state"]
        stored = (state.get("subjects") or {}).get(self._subject, 0)
        return state["messages"] - stored, stored - self._run.readings

    async def make(self) -> None:
        """Make the stream, and begin to read it. Raises `ServerError` where the server takes no schedules."""
        name = self._run.name
        stream = {"name": name, "subjects": stream_subjects(self._subject), "storage": "memory"}
        made = await self._request(f"STREAM.CREATE.{name}", {**stream, "allow_msg_schedules": True})
        if not made["config"].get("allow_msg_schedules"):
            raise ServerError("this NATS server knows no message schedules: it takes version 2.12 or later")
        asked = {"stream_name": name, "config": {**_CONFIG, "filter_subject": self._subject}}
        await self._request(f"CONSUMER.CREATE.{name}.{_CONSUMER}", asked)
        for _ in range(2):  # while the one is answered the next is there
            self._ask_for_more()

    async def remove(self) -> None:
        """Delete the stream."""
        await self._request(f"STREAM.DELETE.{self._run.name}", {})

    async def listen(self) -> NoReturn:
        """Take what comes. Raises `ConnectionError` at the end."""
        raise await self.lost()

    def answered(self, answer: Frame) -> None:
        """Note a message that has come."""
        if answer.said != self._subject.encode():
            super().answered(answer)
            return
        self._run.read(answer.headers.partition(_ID)[2].partition(b"\r\n")[0].decode())
        if self._run.readings % _AT_ONCE == 0:
            self._ask_for_more()

    def _ask_for_more(self) -> None:
        self.call(f"CONSUMER.MSG.NEXT.{self._run.name}.{_CONSUMER}", {"batch": _AT_ONCE})

    async def _request(self, what: str, content: Mapping[str, Any]) -> Any:
        """What JetStream answers; `ServerError` where it says no, or nothing."""
        try:
            answer = await self.ask(what, content, _API_TIMEOUT)
        except trio.TooSlowError:
            raise ServerError("the NATS server does not answer") from None
        if answer is None:  # nobody is there for JetStream
            raise ServerError("the NATS server does not answer")
        if "error" in answer:
            raise ServerError(f"the NATS server says: {answer['error'].get('description')}")
        return answer


@asynccontextmanager
async def open_reader(url: str, subject: str, run: Run) -> AsyncIterator[Reader]:
    """Make a stream, read it from its beginning for the length of an `async with` block, and delete it."""
    server = urlsplit(url)
    host, port = server.hostname or "", server.port or 0
    with closing(Reader(await connect_socket(host, port), subject, run)) as reader:
        await reader.open(host, {}, needs_tls=False)
        async with bare_nursery() as nursery:
            nursery.start_soon(reader.listen)
            await reader.make()
            yield reader
            await reader.remove()
            nursery.cancel_scope.cancel()
