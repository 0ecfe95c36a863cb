"""The queues that are compared, behind the same two calls."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

import trio

import localdelay

from .literal import Waiting, open_literal_port
from .pace import Recorder
from .rivals import open_call_at, open_heap_of_threads, open_task_per_message

LOCALDELAY = "localdelay"
UNCANCELLABLE = "localdelay-uncancellable"
BATCH = "localdelay-batch"
BATCH_UNCANCELLABLE = "localdelay-batch-uncancellable"
DEGRADED = "localdelay-degraded"
"""A `Fallback` whose primary refuses every message."""
LITERAL = "literal"
TASKS = "trio-tasks"
CALL_AT = "asyncio-call_at"
"""The only one that needs an `AsyncioWorld`; all others live in a `TrioWorld`."""
THREADS = "threads"
BARE = "bare"
"""Trio's memory channel with a clock read, and nobody at its other end: the floor for a put."""
PAYLOADS = "payloads"
"""A list of the payloads: the floor for memory."""
NOTHING = "nothing"
"""Every message is dropped: what the load generator itself costs."""

TITLES = {
    LOCALDELAY: "localdelay",
    UNCANCELLABLE: "  cancellable=False",
    DEGRADED: "  through a Fallback",
    BATCH: "localdelay, send_batch",
    LITERAL: "literal port",
    BARE: "bare memory channel",
    PAYLOADS: "payloads in a list",
    NOTHING: "generator alone",
}


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


class _Degraded:
    """A publisher whose primary throttles: every message takes the long way round."""

    def __init__(self, queue: localdelay.DelayQueue) -> None:
        self._publish = localdelay.Fallback(self._refuse, queue).publish

    async def _refuse(self, message: localdelay.Message, delay: float) -> None:
        raise localdelay.Throttled("429")

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        raise TypeError("a publish through the primary has to be awaited")

    async def put(self, payload: bytes, *, delay: float) -> None:
        receipt = await self._publish(payload, delay=delay)
        assert receipt.route is localdelay.Route.LOCAL


@asynccontextmanager
async def open_contender(
    name: str, recorder: Recorder, *, capacity: int, workers: int = 20
) -> AsyncIterator[Contender]:
    """Open a contender by name. Its send awaits nothing, and records.

    Leaving the block waits until everything is sent, where somebody sends.
    """
    record, record_batch = recorder.one, recorder.batch

    async def send_tuple(message: Waiting) -> None:
        record(message[0])

    async def send_message(message: localdelay.Message) -> None:
        record(message.execute_at)

    async def send_batch(messages: Sequence[localdelay.Message]) -> None:
        record_batch(messages)

    def send_at_once(message: Waiting) -> None:
        record(message[0])

    if name in (LOCALDELAY, UNCANCELLABLE, DEGRADED):
        async with localdelay.open_delay_queue(
            send_message, capacity=capacity, workers=workers, cancellable=name != UNCANCELLABLE
        ) as queue:
            yield _Degraded(queue) if name == DEGRADED else queue
    elif name in (BATCH, BATCH_UNCANCELLABLE):
        async with localdelay.open_delay_queue(
            send_batch=send_batch, capacity=capacity, workers=workers, cancellable=name == BATCH
        ) as queue:
            yield queue
    elif name == LITERAL:
        async with open_literal_port(send_tuple, capacity=capacity, workers=workers) as port:
            yield port
    elif name == TASKS:
        async with open_task_per_message(send_tuple) as tasks:
            yield tasks
    elif name == CALL_AT:
        async with open_call_at(send_at_once) as timers:
            yield timers
    elif name == THREADS:
        async with open_heap_of_threads(send_at_once, recorder.clock, workers=workers) as heap:
            yield heap
    elif name == BARE:
        yield _BareChannel()
    elif name == PAYLOADS:
        yield _Payloads()
    elif name == NOTHING:
        yield _Nothing()
    else:
        raise ValueError(f"no contender is called {name!r}")
