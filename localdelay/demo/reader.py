"""The consumer: reads back whatever the broker has stored, on a connection of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay.brokers.nats import stream_subjects
from localdelay.brokers.wire import ID
from localdelay.demo.client import connected, trio_asyncio
from localdelay.demo.report import Run
from localdelay.demo.server import ServerError

_API_TIMEOUT = 10.0


@attrs.frozen
class Reader:
    """An ordered JetStream consumer of a stream that is made for it; `open_reader` opens it.

    It is ordered because such a consumer can't lose anything by itself: the server numbers what it
    delivers, and where a number is missing nats-py starts again behind the last one it has got. Nor does it
    read anything twice, having nothing to acknowledge: a duplicate here is one in the stream. (A plain NATS
    subscription would not do. The server stores the messages whose time has come and publishes them to
    nobody.) A reading's time is Trio's clock when nats-py hands it over, so what nats-py takes is part of the
    lateness.
    """

    client: Client
    subject: str
    run: Run
    """What is told of each message; the stream has its name."""

    async def backlog(self) -> tuple[int, int]:
        """(scheduled, unread): what waits in the broker for its time, and what is due and not here yet."""
        state = (await self.request("INFO", {"subjects_filter": self.subject}))["state"]
        stored = (state.get("subjects") or {}).get(self.subject, 0)
        return state["messages"] - stored, stored - self.run.readings

    async def read(self, message: Msg) -> None:
        """Note a message that has come."""
        self.run.read((message.headers or {}).get(ID, ""))

    async def request(self, verb: str, content: dict[str, Any]) -> dict[str, Any]:
        """Ask the server something about the stream; `ServerError` where it says no."""
        answer = await trio_asyncio.aio_as_trio(self.client.request)(
            f"$JS.API.STREAM.{verb}.{self.run.name}", json.dumps(content).encode(), timeout=_API_TIMEOUT
        )
        info: dict[str, Any] = json.loads(answer.data)
        if "error" in info:
            raise ServerError(f"the NATS server says: {info['error'].get('description')}")
        return info


@asynccontextmanager
async def open_reader(url: str, subject: str, run: Run) -> AsyncIterator[Reader]:
    """Make a stream, read it from its beginning for the length of an `async with` block, and delete it.

    Raises `ServerError` where the server takes no schedules.
    """
    client = Client()
    async with connected(client, url):
        reader = Reader(client, subject, run)
        # nats-py's own configuration object knows nothing of schedules in its older releases.
        stream = {"name": run.name, "subjects": stream_subjects(subject), "storage": "memory"}
        made = await reader.request("CREATE", {**stream, "allow_msg_schedules": True})
        if not made["config"].get("allow_msg_schedules"):
            raise ServerError("this NATS server knows no message schedules: it takes version 2.12 or later")
        subscribe = trio_asyncio.aio_as_trio(client.jetstream().subscribe)
        await subscribe(subject, stream=run.name, ordered_consumer=True, cb=reader.read)
        yield reader
        await reader.request("DELETE", {})
