"""What is put under a load: anything with a `put_nowait` that sends each message when it is due.

Here are the four plans that are compared, each with a send that does nothing but tell when it began.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio

from localdelay.benchmark.comparison import Job, Plan, queue_url
from localdelay.benchmark.load import PutNowait
from localdelay.benchmark.meter import NO_TIME
from localdelay.errors import LocalDelayError
from localdelay.message import Message
from localdelay.queue.opening import open_delay_queue

_PUTTERS = 400
"""Puts that wait for Redis at the same time."""

Send: TypeAlias = Callable[[float, bytes], Awaitable[None]]
"""Is called with the execute-at (seconds on Trio's clock) and the payload of a message that is due."""


async def _nothing() -> int:
    await trio.lowlevel.checkpoint()
    return 0


@attrs.frozen
class Opened:
    """A contender that runs: what a load, a scenario or a comparison may need of it."""

    put_nowait: PutNowait
    put: Callable[..., Any] | None = None
    """`await put(payload, delay=...)`."""
    hold: Callable[[], Any] | None = None
    """Awaited: nothing is sent until `release`. Where there is none, holding the loop does it."""
    release: Callable[[], Any] | None = None
    put_waiting: Callable[..., Any] | None = None
    """`put(payload, delay=...)` of a plain thread, which waits for room."""
    commands: Callable[[], int] = lambda: 0
    """Commands sent to Redis so far."""
    left: Callable[[], Awaitable[int]] = _nothing
    """How many messages wait in Redis, for whoever comes next."""


@asynccontextmanager
async def open_literal_port(send: Send, *, capacity: int, workers: int) -> AsyncIterator[Opened]:
    """A channel and workers that each sleep on a message: what localdelay is measured against.

    One bounded memory channel, FIFO, and a pool of workers. A worker receives a message, sleeps until it is
    due (once received, it can't be put back) and sends it. There are no ids, no retries and no statistics.
    Leaving the block waits until everything is sent.
    """
    sending, receiving = trio.open_memory_channel[tuple[float, bytes]](capacity)

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        sending.send_nowait((trio.current_time() + delay, payload))

    async def put(payload: bytes, /, *, delay: float) -> None:
        await sending.send((trio.current_time() + delay, payload))

    async def work() -> None:
        async for message in receiving:
            await trio.sleep_until(message[0])
            await send(*message)

    async with trio.open_nursery() as nursery, sending:
        for _ in range(workers):
            nursery.start_soon(work)
        yield Opened(put_nowait, put)


@attrs.frozen(kw_only=True)
class Opening:
    """How to run one instance of a plan."""

    job: Job
    name: str
    """Is in the names of its keys."""
    capacity: int
    """How many messages may wait, of a plan that has a limit of its own."""
    begin: Callable[[float, bytes], object]
    """Is called with execute-at and payload when the send of a message begins, and is all of that send."""
    stored: Callable[[bytes], object]
    """Is called with a payload once the plan has it."""
    refuse: Callable[[bytes], object] = lambda _: None
    """Is called with a payload that Redis did not take; where it is memory, `put_nowait` raises."""
    lease: float = 30.0
    """Seconds, of `open_redis_delay_queue`."""

    async def send(self, message: Message) -> None:
        """What the queues send with."""
        self.begin(message.execute_at, message.payload)

    def storing(self, put_nowait: PutNowait) -> PutNowait:
        """This put, after which the plan has the message."""
        stored = self.stored

        def put(payload: bytes, /, *, delay: float) -> None:
            put_nowait(payload, delay=delay)
            stored(payload)

        return put


def open_plan(opening: Opening) -> AbstractAsyncContextManager[Opened]:
    """Run one instance of a plan; leaving the block ends it at once, whatever waits."""
    return _PLANS[opening.job.plan](opening)


@asynccontextmanager
async def _memory(opening: Opening) -> AsyncIterator[Opened]:
    workers = opening.job.asked.workers
    async with open_delay_queue(opening.send, capacity=opening.capacity, workers=workers) as queue:
        yield Opened(opening.storing(queue.put_nowait))
        await queue.drain(grace=0.0)


@asynccontextmanager
async def _memory_literal(opening: Opening) -> AsyncIterator[Opened]:
    async def send(execute_at: float, payload: bytes) -> None:
        opening.begin(execute_at, payload)

    workers = opening.job.asked.workers
    with trio.CancelScope() as scope:
        async with open_literal_port(send, capacity=opening.capacity, workers=workers) as port:
            yield Opened(opening.storing(port.put_nowait))
            scope.cancel()


@asynccontextmanager
async def _redis(opening: Opening) -> AsyncIterator[Opened]:
    from localdelay.redis_plan import RedisTuning, open_redis_delay_queue

    async with (
        open_redis_delay_queue(
            opening.send,
            url=queue_url(opening.job.server, opening.name),
            shards=opening.job.asked.shards,
            workers=opening.job.asked.workers,
            tuning=RedisTuning(lease=opening.lease),
        ) as queue,
        _putting(queue.put, opening) as put_nowait,
    ):
        yield Opened(put_nowait, commands=lambda: queue.statistics().commands, left=queue.count)


@asynccontextmanager
async def _redis_literal(opening: Opening) -> AsyncIterator[Opened]:
    from localdelay.benchmark.redis import SortedSets, open_link

    async with open_link(opening.job.server) as link, trio.open_nursery() as nursery:
        sets = SortedSets(link, opening.name, opening.job.asked.shards, partial(opening.begin, NO_TIME))
        nursery.start_soon(sets.run)
        async with _putting(sets.put, opening) as put_nowait:
            yield Opened(put_nowait, commands=lambda: link.commands, left=sets.count)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _putting(put_one: Callable[..., Awaitable[object]], opening: Opening) -> AsyncIterator[PutNowait]:
    """A put that does not wait, made of one that does."""
    sending, receiving = trio.open_memory_channel[tuple[bytes, float]](10**9)

    async def work() -> None:
        async for payload, delay in receiving:
            try:
                await put_one(payload, delay=delay)
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
