"""NSQ's line protocol alone, on one blocking socket: its Python client is dead. PUB, or MPUB for a batch."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from urllib.parse import urlsplit

from bench.bare import Sent, in_tasks, on_asyncio


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """See `Bare`. Commands are written as there is room, and answers taken in their order."""
    where, command = urlsplit(url), _command(url, payload, batch)
    times: list[float] = []
    under_way: deque[float] = deque()
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"  V2")
        left, rest = count // batch, b""
        begun = time.perf_counter()
        while left or under_way:
            room = min(at_once - len(under_way), left)
            if room:
                under_way.extend([time.perf_counter()] * room)
                connection.sendall(command * room)
                left -= room
            rest += connection.recv(1 << 16)
            while len(rest) >= 10:  # each is OK: a length, a type, two letters
                assert rest[8:10] == b"OK", rest
                rest = rest[10:]
                times.append(time.perf_counter() - under_way.popleft())
        return Sent(time.perf_counter() - begun, times)


def _command(url: str, payload: bytes, batch: int) -> bytes:
    topic = urlsplit(url).path[1:].encode()
    body = struct.pack(">i", len(payload)) + payload
    if batch == 1:
        return b"PUB %b\n%b" % (topic, body)
    bodies = struct.pack(">i", batch) + body * batch
    return b"MPUB %b\n%b%b" % (topic, struct.pack(">i", len(bodies)), bodies)


class _Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.under_way: deque[asyncio.Future[None]] = deque()
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        rest = self._rest + data
        while len(rest) >= 10:
            assert rest[8:10] == b"OK", rest
            rest = rest[10:]
            self.under_way.popleft().set_result(None)
        self._rest = rest


@on_asyncio
async def awaited(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    """The same on asyncio, with a future for each command."""
    where, command = urlsplit(url), _command(url, payload, batch)
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(_Protocol, where.hostname or "", where.port or 4150)
    transport.write(b"  V2")

    def publish() -> asyncio.Future[None]:
        confirmed: asyncio.Future[None] = loop.create_future()
        transport.write(command)
        protocol.under_way.append(confirmed)
        return confirmed

    try:
        return await in_tasks(publish, count=count // batch, at_once=at_once)
    finally:
        transport.close()
