"""The consumer: reads back whatever the broker has stored, on a connection of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay.brokers.nats import connected, stream_subjects
from localdelay.brokers.nats_loop import trio_asyncio
from localdelay.brokers.wire import ID
from localdelay.demo.report import Reading
from localdelay.demo.server import ServerError

_API_TIMEOUT = 10.0


@attrs.frozen
class Backlog:
    """What the broker still has to deliver, by its own count."""

    scheduled: int
    """Messages that wait in it for their time."""
    unread: int
    """Due messages that the consumer has not got yet."""


class Reader:
    """An ordered JetStream consumer of a stream that is made for it; `open_reader` opens it.

    It is ordered because such a consumer can't lose anything by itself: the server numbers what it
    delivers, and where a number is missing nats-py starts again behind the last one it has got. Nor does it
    read anything twice, having nothing to acknowledge: a duplicate here is one in the stream. (A plain NATS
    subscription would not do. The server stores the messages whose time has come and publishes them to
    nobody.) `readings` grows as messages come in; a reading's time is Trio's clock when nats-py hands it
    over, so what nats-py takes is part of the lateness.
    """

    def __init__(self, client: Client, stream: str, subject: str) -> None:
        self.readings: list[Reading] = []
        self.ids: set[str] = set()
        self._client = client
        self._stream = stream
        self._subject = subject

    async def backlog(self) -> Backlog:
        """Ask the broker what is left."""
        info = await self._request("INFO", {"subjects_filter": self._subject})
        stored = (info["state"].get("subjects") or {}).get(self._subject, 0)
        return Backlog(info["state"]["messages"] - stored, stored - len(self.readings))

    async def start(self) -> None:
        """Make the stream, and read it from its beginning.

        Raises `ServerError` where the server takes no schedules.
        """
        # nats-py's own configuration object knows nothing of schedules in its older releases.
        info = await self._request(
            "CREATE",
            {
                "name": self._stream,
                "subjects": stream_subjects(self._subject),
                "storage": "memory",
                "allow_msg_schedules": True,
            },
        )
        if not info["config"].get("allow_msg_schedules"):
            raise ServerError("this NATS server knows no message schedules: it takes version 2.12 or later")
        await trio_asyncio.aio_as_trio(self._client.jetstream().subscribe)(
            self._subject, stream=self._stream, ordered_consumer=True, cb=self._read
        )

    async def delete(self) -> None:
        """Delete the stream and all that is in it."""
        await self._request("DELETE", {})

    async def _read(self, message: Msg) -> None:
        reading = Reading((message.headers or {}).get(ID, ""), trio.current_time())
        self.readings.append(reading)
        self.ids.add(reading.id)

    async def _request(self, verb: str, content: dict[str, Any]) -> dict[str, Any]:
        answer = await trio_asyncio.aio_as_trio(self._client.request)(
            f"$JS.API.STREAM.{verb}.{self._stream}", json.dumps(content).encode(), timeout=_API_TIMEOUT
        )
        info: dict[str, Any] = json.loads(answer.data)
        if "error" in info:
            raise ServerError(f"the NATS server says: {info['error'].get('description')}")
        return info


@asynccontextmanager
async def open_reader(url: str, *, stream: str, subject: str) -> AsyncIterator[Reader]:
    """Make a stream and read it for the length of an `async with` block; then delete it."""
    client = Client()
    async with connected(client, url, reconnect=False):
        reader = Reader(client, stream, subject)
        await reader.start()
        yield reader
        await reader.delete()
