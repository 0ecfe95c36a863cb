"""Something that speaks as much of NATS as a client needs, and misbehaves as it is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from tests.kit.servers.network import listening

INFO = {"server_id": "FAKE", "version": "2.15.0", "proto": 1, "headers": True, "max_payload": 1_048_576}


@attrs.define
class Received:
    """One publish."""

    stream: trio.SocketStream
    subject: str
    reply: str
    body: bytes

    async def answer(self, data: bytes = b'{"stream":"S","seq":1}') -> None:
        await self.stream.send_all(b"MSG %b 1 %d\r\n%b\r\n" % (self.reply.encode(), len(data), data))


Published = Callable[[Received], Awaitable[None]]
Greet = Callable[[trio.SocketStream], Awaitable[None]]


async def confirm(received: Received) -> None:
    await received.answer()


@asynccontextmanager
async def fake_server(
    published: Published = confirm, *, greet: Greet | None = None, **info: object
) -> AsyncIterator[str]:
    """A server that does `published` for each publish; with `greet`, nothing but that for each connection.

    Gives its host and port. `info` is what it says of itself.
    """
    async with listening(greet or partial(_serve, published, {**INFO, **info})) as port:
        yield f"127.0.0.1:{port}"


async def _serve(published: Published, info: dict[str, object], stream: trio.SocketStream) -> None:
    buffer = b""
    try:
        await stream.send_all(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while True:
            line, found, rest = buffer.partition(b"\r\n")
            words = line.split()
            size = int(words[-1]) + 2 if found and words[0] in (b"PUB", b"HPUB") else 0
            if not found or len(rest) < size:
                received = await stream.receive_some()
                if not received:
                    return
                buffer += received
                continue
            body, buffer = rest[: size - 2], rest[size:]
            if words[0] == b"PING":
                await stream.send_all(b"PONG\r\n")
            elif size:
                await published(Received(stream, words[1].decode(), words[2].decode(), body))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
