"""The four plans behind one face: messages are put in without waiting, and sent to a sink."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, TypeAlias

import attrs
import trio

from localdelay.benchmark.meter import Due
from localdelay.errors import LocalDelayError
from localdelay.message import Message
from localdelay.queue.queue import open_delay_queue

from .channel import Waiting, open_literal_port
from .settings import Plan, Settings, queue_url

_PUTTERS = 400
"""Puts that wait for Redis at the same time."""

Sink: TypeAlias = Callable[[Due], None]
"""Is called when the send of a message begins, and is all of that send."""
Stored: TypeAlias = Callable[[bytes], None]
"""Is called with a payload once the plan has it."""


class Plain(NamedTuple):
    """A message of a plan that has no class for them."""

    execute_at: float
    payload: bytes


@attrs.frozen
class Opened:
    """A plan that runs."""

    put: Callable[[bytes, float], None]
    """Take in a payload that is due in so many seconds; raises `QueueFull` or `trio.WouldBlock`."""
    commands: Callable[[], int]
    """Commands sent to Redis so far."""
    left: Callable[[], Awaitable[int]]
    """How many messages it has that are not finished."""


class Sent:
    """Counts what becomes of the puts that wait for Redis."""

    def __init__(self) -> None:
        self.refused = 0


def open_plan(
    plan: Plan, settings: Settings, capacity: int, sink: Sink, stored: Stored, opening: Opening
) -> AbstractAsyncContextManager[Opened]:
    """Run one instance of a plan; leaving the block ends it at once, whatever waits.

    `capacity` is how many messages may wait, of a plan that has a limit of its own.
    """
    if plan is Plan.MEMORY:
        return _memory(settings, capacity, sink, stored)
    if plan is Plan.MEMORY_LITERAL:
        return _memory_literal(settings, capacity, sink, stored)
    if plan is Plan.REDIS:
        return _redis(settings, sink, stored, opening)
    return _redis_literal(settings, sink, stored, opening)


@attrs.frozen(kw_only=True)
class Opening:
    """What the plans that wait in Redis need besides."""

    server: str = attrs.field(default="", repr=False)
    name: str = ""
    lease: float = 30.0
    """Seconds, of `open_redis_delay_queue`."""
    refused: Sent = attrs.field(factory=Sent)


def _no_commands() -> int:
    return 0


@asynccontextmanager
async def _memory(settings: Settings, capacity: int, sink: Sink, stored: Stored) -> AsyncIterator[Opened]:
    async def send(message: Message) -> None:
        sink(message)

    async with open_delay_queue(send, capacity=capacity, workers=settings.workers) as queue:

        def put(payload: bytes, delay: float) -> None:
            queue.put_nowait(payload, delay=delay)
            stored(payload)

        async def left() -> int:
            await trio.lowlevel.checkpoint()
            return queue.statistics().pending

        yield Opened(put, _no_commands, left)
        await queue.drain(grace=0.0)


@asynccontextmanager
async def _memory_literal(
    settings: Settings, capacity: int, sink: Sink, stored: Stored
) -> AsyncIterator[Opened]:
    pending = 0

    async def send(message: Waiting) -> None:
        nonlocal pending
        sink(Plain(*message))
        pending -= 1

    with trio.CancelScope() as scope:
        async with open_literal_port(send, capacity=capacity, workers=settings.workers) as port:

            def put(payload: bytes, delay: float) -> None:
                nonlocal pending
                port.put_nowait(payload, delay=delay)
                pending += 1
                stored(payload)

            async def left() -> int:
                await trio.lowlevel.checkpoint()
                return pending

            yield Opened(put, _no_commands, left)
            scope.cancel()


@asynccontextmanager
async def _redis(settings: Settings, sink: Sink, stored: Stored, opening: Opening) -> AsyncIterator[Opened]:
    from localdelay.redis_plan import open_redis_delay_queue

    async def send(message: Message) -> None:
        sink(message)

    async with (
        open_redis_delay_queue(
            send,
            url=queue_url(opening.server, opening.name),
            shards=settings.shards,
            workers=settings.workers,
            lease=opening.lease,
        ) as queue,
        _putting(lambda payload, delay: queue.put(payload, delay=delay), stored, opening.refused) as put,
    ):
        yield Opened(put, lambda: queue.statistics().commands, queue.count)


@asynccontextmanager
async def _redis_literal(
    settings: Settings, sink: Sink, stored: Stored, opening: Opening
) -> AsyncIterator[Opened]:
    from .link import open_link
    from .sorted_sets import SortedSets

    clock = trio.lowlevel.current_clock().current_time

    async def send(due: float, payload: bytes) -> None:
        # Its wall clock says nothing on this one; that it is not early, its own poll has made sure.
        sink(Plain(clock(), payload))

    async with open_link(opening.server) as link, trio.open_nursery() as nursery:
        sets = SortedSets(link, opening.name, settings.shards, send)
        nursery.start_soon(sets.run)
        async with _putting(
            lambda payload, delay: sets.put(payload, delay=delay), stored, opening.refused
        ) as put:
            yield Opened(put, lambda: link.commands, sets.count)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _putting(
    put_one: Callable[[bytes, float], Awaitable[object]], stored: Stored, counts: Sent
) -> AsyncIterator[Callable[[bytes, float], None]]:
    """A put that does not wait, made of one that does."""
    sending, receiving = trio.open_memory_channel[tuple[bytes, float]](10**9)

    async def work() -> None:
        async for payload, delay in receiving:
            try:
                await put_one(payload, delay)
            except (LocalDelayError, ConnectionError):
                counts.refused += 1
            else:
                stored(payload)

    def put(payload: bytes, delay: float) -> None:
        sending.send_nowait((payload, delay))

    async with trio.open_nursery() as nursery:
        for _ in range(_PUTTERS):
            nursery.start_soon(work)
        yield put
        nursery.cancel_scope.cancel()
