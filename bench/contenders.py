"""The queues that are compared, behind the same two calls."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeAlias

import trio

import localdelay

from .literal import Waiting, open_literal_port

LOCALDELAY = "localdelay"
UNCANCELLABLE = "localdelay-uncancellable"
LITERAL = "literal"
BARE = "bare"
"""Trio's memory channel with a clock read, and nobody at its other end: the floor for a put."""
PAYLOADS = "payloads"
"""A list of the payloads: the floor for memory."""
NOTHING = "nothing"
"""Every message is dropped: what the load generator itself costs."""

TITLES = {
    LOCALDELAY: "localdelay",
    UNCANCELLABLE: "  cancellable=False",
    LITERAL: "literal port",
    BARE: "bare memory channel",
    PAYLOADS: "payloads in a list",
    NOTHING: "generator alone",
}

Record: TypeAlias = Callable[[float], object]
"""Called with a message's execute-at at the start of its send."""


class Contender(Protocol):
    """What the scenarios need of a queue."""

    def put_nowait(self, payload: bytes, /, *, delay: float) -> object: ...

    async def put(self, payload: bytes, /, *, delay: float) -> object: ...


class _BareChannel:
    def __init__(self) -> None:
        # The receiving end is kept: without one, a send raises BrokenResourceError.
        self._sending, self._receiving = trio.open_memory_channel[Waiting](math.inf)

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        self._sending.send_nowait((trio.current_time() + delay, payload))

    async def put(self, payload: bytes, *, delay: float) -> None:
        await self._sending.send((trio.current_time() + delay, payload))


class _Payloads:
    def __init__(self) -> None:
        self._payloads: list[bytes] = []

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        self._payloads.append(payload)

    async def put(self, payload: bytes, *, delay: float) -> None:
        self.put_nowait(payload, delay=delay)


class _Nothing:
    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        pass

    async def put(self, payload: bytes, *, delay: float) -> None:
        pass


@asynccontextmanager
async def open_contender(
    name: str, record: Record, *, capacity: int, workers: int = 20
) -> AsyncIterator[Contender]:
    """Open a contender by name. Its send is async, awaits nothing, and calls `record`."""

    async def send_tuple(message: Waiting) -> None:
        record(message[0])

    async def send_message(message: localdelay.Message) -> None:
        record(message.execute_at)

    if name in (LOCALDELAY, UNCANCELLABLE):
        async with localdelay.open_delay_queue(
            send_message, capacity=capacity, workers=workers, cancellable=name == LOCALDELAY
        ) as queue:
            yield queue
    elif name == LITERAL:
        async with open_literal_port(send_tuple, capacity=capacity, workers=workers) as port:
            yield port
    elif name == BARE:
        yield _BareChannel()
    elif name == PAYLOADS:
        yield _Payloads()
    elif name == NOTHING:
        yield _Nothing()
    else:
        raise ValueError(f"no contender is called {name!r}")
