"""The consumer: reads back whatever the broker has stored, on a connection of its own."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import trio

from localdelay.brokers.nats import stream_subjects
from localdelay.brokers.nats_answers import Frame, frames
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
_CONNECT = json.dumps({"verbose": False, "pedantic": False, "headers": True, "protocol": 1, "lang": "python"})
_ID = f"\r\n{ID}: ".encode()


class Reader:
    """A JetStream consumer of a stream that is made for it; `open_reader` opens it.

    It reads nothing twice, having nothing to acknowledge: a duplicate here is one in the stream. (A plain
    subscription would not do. The server stores the messages whose time has come and publishes them to
    nobody.) A reading's time is Trio's clock when it is told of: what reading takes is part of the lateness.
    """

    def __init__(self, stream: trio.SocketStream, subject: str, run: Run) -> None:
        """`run` is told of each message; the stream has its name."""
        self._stream = stream
        self._subject = subject
        self._run = run
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._answer, self._answers = trio.open_memory_channel[dict[str, Any]](1)
        self._writing = trio.Lock()

    async def backlog(self) -> tuple[int, int]:
        """(scheduled, unread): what waits in the broker for its time, and what is due and not here yet."""
        asked = {"subjects_filter": self._subject}
        state = (await self._request(f"STREAM.INFO.{self._run.name}", asked))["state"]
        stored = (state.get("subjects") or {}).get(self._subject, 0)
        return state["messages"] - stored, stored - self._run.readings

    async def open(self) -> None:
        """Make the stream, and begin to read it. Raises `ServerError` where the server takes no schedules."""
        await self._write(f"CONNECT {_CONNECT}\r\nSUB {self._inbox} 1\r\n".encode())
        name = self._run.name
        stream = {"name": name, "subjects": stream_subjects(self._subject), "storage": "memory"}
        made = await self._request(f"STREAM.CREATE.{name}", {**stream, "allow_msg_schedules": True})
        if not made["config"].get("allow_msg_schedules"):
            raise ServerError("this NATS server knows no message schedules: it takes version 2.12 or later")
        asked = {"stream_name": name, "config": {**_CONFIG, "filter_subject": self._subject}}
        await self._request(f"CONSUMER.CREATE.{name}.{_CONSUMER}", asked)
        for _ in range(2):  # while the one is answered the next is there
            await self._ask_for_more()

    async def close(self) -> None:
        """Delete the stream."""
        await self._request(f"STREAM.DELETE.{self._run.name}", {})

    async def listen(self) -> None:
        """Take what comes. Raises `ConnectionError` at the end."""
        rest = b""
        async for data in self._stream:
            found, rest = frames(rest + data)
            for frame in found:
                await self._take(frame)
        raise ConnectionError("it has closed the connection")

    async def _take(self, frame: Frame) -> None:
        if frame.kind == b"PING":
            await self._write(b"PONG\r\n")
        elif frame.said == self._subject.encode():
            self._run.read(frame.headers.partition(_ID)[2].partition(b"\r\n")[0].decode())
            if self._run.readings % _AT_ONCE == 0:
                await self._ask_for_more()
        elif frame.said == self._inbox.encode() and frame.data:  # without any it tells of the consumer's end
            self._answer.send_nowait(json.loads(frame.data))

    async def _ask_for_more(self) -> None:
        await self._publish(f"CONSUMER.MSG.NEXT.{self._run.name}.{_CONSUMER}", {"batch": _AT_ONCE})

    async def _request(self, what: str, content: dict[str, Any]) -> dict[str, Any]:
        """What JetStream answers; `ServerError` where it says no, or nothing."""
        await self._publish(what, content)
        with trio.move_on_after(_API_TIMEOUT):
            answer = await self._answers.receive()
            if "error" in answer:
                raise ServerError(f"the NATS server says: {answer['error'].get('description')}")
            return answer
        raise ServerError("the NATS server does not answer")

    async def _publish(self, what: str, content: dict[str, Any]) -> None:
        body = json.dumps(content)
        await self._write(f"PUB $JS.API.{what} {self._inbox} {len(body)}\r\n{body}\r\n".encode())

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            await self._stream.send_all(data)


@asynccontextmanager
async def open_reader(url: str, subject: str, run: Run) -> AsyncIterator[Reader]:
    """Make a stream, read it from its beginning for the length of an `async with` block, and delete it."""
    server = urlsplit(url)
    async with (
        await trio.open_tcp_stream(server.hostname or "", server.port or 0) as stream,
        bare_nursery() as nursery,
    ):
        reader = Reader(stream, subject, run)
        nursery.start_soon(reader.listen)
        await reader.open()
        yield reader
        await reader.close()
        nursery.cancel_scope.cancel()
