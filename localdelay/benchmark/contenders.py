"""What is put under a load: anything with a `put_nowait` that sends each message when it is due.

Here are the four plans that are compared, each with a send that does nothing but tell a sink.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, TypeAlias

import attrs
import trio

from localdelay.benchmark.comparison import Comparison, Plan, queue_url
from localdelay.benchmark.load import PutNowait
from localdelay.benchmark.meter import Due
from localdelay.errors import LocalDelayError
from localdelay.message import Message
from localdelay.queue.queue import open_delay_queue

_PUTTERS = 400
"""Puts that wait for Redis at the same time."""

Waiting: TypeAlias = tuple[float, bytes]
"""(execute-at in seconds on Trio's clock, payload)."""
Send: TypeAlias = Callable[[Waiting], Awaitable[None]]


class LiteralPort:
    """The write-up's plan 2, ported to Trio word for word: what localdelay is measured against.

    One bounded memory channel, FIFO, and a pool of workers. A worker receives a message, sleeps until it is
    due (once received, it can't be put back) and sends it. Nothing more: no ids, no retries, no statistics.
    """

    def __init__(self, channel: trio.MemorySendChannel[Waiting]) -> None:
        self._channel = channel

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        """Take in a message that is due in `delay` seconds; `trio.WouldBlock` if the channel is full."""
        self._channel.send_nowait((trio.current_time() + delay, payload))

    async def put(self, payload: bytes, *, delay: float) -> None:
        """Take in a message that is due in `delay` seconds, waiting for room where there is none."""
        await self._channel.send((trio.current_time() + delay, payload))


async def _work(receiving: trio.MemoryReceiveChannel[Waiting], send: Send) -> None:
    async for message in receiving:
        await trio.sleep_until(message[0])
        await send(message)


@asynccontextmanager
async def open_literal_port(send: Send, *, capacity: int, workers: int) -> AsyncIterator[LiteralPort]:
    """Run the pool; leaving the block waits until everything is sent."""
    sending, receiving = trio.open_memory_channel[Waiting](capacity)
    async with trio.open_nursery() as nursery, sending:
        for _ in range(workers):
            nursery.start_soon(_work, receiving, send)
        yield LiteralPort(sending)


class Plain(NamedTuple):
    """A message of a plan that has no class for them."""

    execute_at: float
    payload: bytes


@attrs.frozen(kw_only=True)
class Opening:
    """How to run one instance of a plan."""

    plan: Plan
    asked: Comparison
    capacity: int
    """How many messages may wait, of a plan that has a limit of its own."""
    sink: Callable[[Due], None]
    """Is called when the send of a message begins, and is all of that send."""
    stored: Callable[[bytes], object]
    """Is called with a payload once the plan has it."""
    refuse: Callable[[bytes], object] = lambda _: None
    """Is called with a payload that Redis did not take; where it is memory, `put_nowait` raises."""
    server: str = attrs.field(default="", repr=False)
    name: str = ""
    lease: float = 30.0
    """Seconds, of `open_redis_delay_queue`."""


async def _nothing() -> int:
    await trio.lowlevel.checkpoint()
    return 0


@attrs.frozen
class Opened:
    """A plan that runs."""

    put_nowait: PutNowait
    commands: Callable[[], int] = lambda: 0
    """Commands sent to Redis so far."""
    left: Callable[[], Awaitable[int]] = _nothing
    """How many messages wait in Redis, for whoever comes next."""


def open_plan(opening: Opening) -> AbstractAsyncContextManager[Opened]:
    """Run one instance of a plan; leaving the block ends it at once, whatever waits."""
    return _PLANS[opening.plan](opening)


@asynccontextmanager
async def _memory(opening: Opening) -> AsyncIterator[Opened]:
    async def send(message: Message) -> None:
        opening.sink(message)

    async with open_delay_queue(send, capacity=opening.capacity, workers=opening.asked.workers) as queue:
        yield Opened(_storing(queue.put_nowait, opening))
        await queue.drain(grace=0.0)


@asynccontextmanager
async def _memory_literal(opening: Opening) -> AsyncIterator[Opened]:
    async def send(message: Waiting) -> None:
        opening.sink(Plain(*message))

    with trio.CancelScope() as scope:
        async with open_literal_port(send, capacity=opening.capacity, workers=opening.asked.workers) as port:
            yield Opened(_storing(port.put_nowait, opening))
            scope.cancel()


def _storing(put_nowait: PutNowait, opening: Opening) -> PutNowait:
    stored = opening.stored

    def put(payload: bytes, /, *, delay: float) -> None:
        put_nowait(payload, delay=delay)
        stored(payload)

    return put


@asynccontextmanager
async def _redis(opening: Opening) -> AsyncIterator[Opened]:
    from localdelay.redis_plan import open_redis_delay_queue

    async def send(message: Message) -> None:
        opening.sink(message)

    async with (
        open_redis_delay_queue(
            send,
            url=queue_url(opening.server, opening.name),
            shards=opening.asked.shards,
            workers=opening.asked.workers,
            lease=opening.lease,
        ) as queue,
        _putting(lambda payload, delay: queue.put(payload, delay=delay), opening) as put_nowait,
    ):
        yield Opened(put_nowait, lambda: queue.statistics().commands, queue.count)


@asynccontextmanager
async def _redis_literal(opening: Opening) -> AsyncIterator[Opened]:
    from localdelay.benchmark.redis import SortedSets, open_link

    clock = trio.lowlevel.current_clock().current_time

    async def send(_: float, payload: bytes) -> None:
        # Its wall clock says nothing on this one; that it is not early, its own poll has made sure.
        opening.sink(Plain(clock(), payload))

    async with open_link(opening.server) as link, trio.open_nursery() as nursery:
        sets = SortedSets(link, opening.name, opening.asked.shards, send)
        nursery.start_soon(sets.run)
        async with _putting(lambda payload, delay: sets.put(payload, delay=delay), opening) as put_nowait:
            yield Opened(put_nowait, lambda: link.commands, sets.count)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _putting(
    put_one: Callable[[bytes, float], Awaitable[object]], opening: Opening
) -> AsyncIterator[PutNowait]:
    """A put that does not wait, made of one that does."""
    sending, receiving = trio.open_memory_channel[tuple[bytes, float]](10**9)

    async def work() -> None:
        async for payload, delay in receiving:
            try:
                await put_one(payload, delay)
            except (LocalDelayError, ConnectionError):
                opening.refuse(payload)
            else:
                opening.stored(payload)

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        sending.send_nowait((payload, delay))

    async with trio.open_nursery() as nursery:
        for _ in range(_PUTTERS):
            nursery.start_soon(work)
        yield put_nowait
        nursery.cancel_scope.cancel()


_PLANS: dict[Plan, Callable[[Opening], AbstractAsyncContextManager[Opened]]] = {
    Plan.MEMORY: _memory,
    Plan.MEMORY_LITERAL: _memory_literal,
    Plan.REDIS: _redis,
    Plan.REDIS_LITERAL: _redis_literal,
}
