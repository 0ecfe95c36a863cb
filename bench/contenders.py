"""What `bench.peers` compares: how each is opened, in which world it lives, and which figures it has."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import attrs
import trio

import localdelay
from localdelay import aio, threads
from localdelay.benchmark.contenders import Opened, open_literal_port
from localdelay.benchmark.load import Loop
from localdelay.benchmark.meter import NO_TIME

from .loops import World
from .rivals import CallAt, CallAtTask, TaskPerMessage, open_heap_of_threads
from .times import Times

OPEN = ("held", "low", "high", "mixed")
"""The figures of an open loop."""
CLOSED = ("put", "burst", "memory")
ALL = (*OPEN, *CLOSED)
PROGRAM: Literal["program"] = "program"
"""The world of what is no Python."""


@attrs.frozen(kw_only=True)
class Asked:
    """What a contender is opened with."""

    times: Times
    loop: Loop
    capacity: int
    workers: int = 20


Opener: TypeAlias = Callable[[Asked], AbstractAsyncContextManager[Opened]]


@attrs.frozen(kw_only=True)
class Contender:
    """One row of the table."""

    title: str
    world: World | Literal["program"]
    open: Opener | None = None
    """Leaving the block ends it at once, whatever waits. None: it is built, and run as a program."""
    likely: float = 10_000
    """Messages/s, where the search for the rate that is held begins."""
    figures: Sequence[str] = ALL


def _ending(opener: Opener) -> Opener:
    """What lives on Trio is left by a cancellation."""

    @asynccontextmanager
    async def opened(asked: Asked) -> AsyncIterator[Opened]:
        with trio.CancelScope() as scope:
            async with opener(asked) as queue:
                yield queue
                scope.cancel()

    return opened


def _sending(asked: Asked) -> dict[str, Any]:
    begin = asked.times.begin

    async def send(message: localdelay.Message) -> None:
        begin(message.execute_at, message.payload)

    return {"send": send, "capacity": asked.capacity, "workers": asked.workers}


def _one_by_one(**options: Any) -> Opener:
    @_ending
    @asynccontextmanager
    async def opened(asked: Asked) -> AsyncIterator[Opened]:
        async with localdelay.open_delay_queue(**_sending(asked), **options) as queue:
            yield Opened(queue.put_nowait, queue.put)

    return opened


def _in_batches(**options: Any) -> Opener:
    @_ending
    @asynccontextmanager
    async def opened(asked: Asked) -> AsyncIterator[Opened]:
        begin_batch = asked.times.begin_batch

        async def send_batch(messages: Sequence[localdelay.Message]) -> None:
            begin_batch(messages)

        async with localdelay.open_delay_queue(
            send_batch=send_batch, capacity=asked.capacity, workers=asked.workers, **options
        ) as queue:
            yield Opened(queue.put_nowait, queue.put)

    return opened


def _through_fallback(
    *, refuses: bool = False, is_down: bool = False, limit: localdelay.RateLimit | None = None
) -> Opener:
    """A publisher whose primary takes everything, refuses everything, or is known to be down."""

    async def primary(message: localdelay.Message, delay: float) -> None:
        if refuses:
            raise localdelay.Throttled("429")

    @_ending
    @asynccontextmanager
    async def opened(asked: Asked) -> AsyncIterator[Opened]:
        async with localdelay.open_delay_queue(**_sending(asked)) as queue:
            breaker = localdelay.BreakerPolicy() if is_down else None
            fallback = localdelay.Fallback(primary, queue, limit=limit, breaker=breaker)
            if is_down:
                fallback.force_open()
            yield Opened(queue.put_nowait, fallback.publish)

    return opened


@_ending
@asynccontextmanager
async def _literal(asked: Asked) -> AsyncIterator[Opened]:
    begin = asked.times.begin

    async def send(execute_at: float, payload: bytes) -> None:
        begin(execute_at, payload)

    async with open_literal_port(send, capacity=asked.capacity, workers=asked.workers) as port:
        yield port


@_ending
@asynccontextmanager
async def _task_per_message(asked: Asked) -> AsyncIterator[Opened]:
    begin = asked.times.begin

    async def send(execute_at: float, payload: bytes) -> None:
        begin(execute_at, payload)

    async with trio.open_nursery() as nursery:
        yield Opened(TaskPerMessage(nursery, send).put_nowait)


@asynccontextmanager
async def _call_at(asked: Asked) -> AsyncIterator[Opened]:
    yield Opened(CallAt(asked.times.begin).put_nowait)


@asynccontextmanager
async def _call_at_task(asked: Asked) -> AsyncIterator[Opened]:
    begin = asked.times.begin

    async def send(execute_at: float, payload: bytes) -> None:
        begin(execute_at, payload)

    yield Opened(CallAtTask(send).put_nowait)


@asynccontextmanager
async def _aio(asked: Asked) -> AsyncIterator[Opened]:
    begin = asked.times.begin

    async def send(message: localdelay.Message) -> None:
        begin(NO_TIME, message.payload)

    async with aio.open_delay_queue(send, capacity=asked.capacity, workers=asked.workers) as queue:
        yield Opened(queue.put_nowait, queue.put, queue.pause, queue.resume)
        await queue.drain(grace=0.0)


@asynccontextmanager
async def _heap_of_threads(asked: Asked) -> AsyncIterator[Opened]:
    async with open_heap_of_threads(asked.times.begin, asked.loop.clock, workers=asked.workers) as heap:
        # It has no bound, and never waits.
        yield Opened(heap.put_nowait, None, heap.hold, heap.release, heap.put_nowait)


@asynccontextmanager
async def _threads(asked: Asked) -> AsyncIterator[Opened]:
    begin = asked.times.begin

    def send(message: localdelay.Message) -> None:
        begin(NO_TIME, message.payload)

    with threads.open_delay_queue(send, capacity=asked.capacity, workers=asked.workers) as queue:

        async def hold() -> None:
            queue.pause()

        async def release() -> None:
            queue.resume()

        yield Opened(queue.put_nowait, None, hold, release, queue.put)
        queue.drain(grace=0.0)


@asynccontextmanager
async def _bare_channel(asked: Asked) -> AsyncIterator[Opened]:
    # The receiving end is kept: without one, a send raises BrokenResourceError.
    sending, receiving = trio.open_memory_channel[tuple[float, bytes]](math.inf)

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        sending.send_nowait((trio.current_time() + delay, payload))

    yield Opened(put_nowait)
    receiving.close()


@asynccontextmanager
async def _list_of_payloads(asked: Asked) -> AsyncIterator[Opened]:
    kept: list[bytes] = []
    yield Opened(lambda payload, /, *, delay: kept.append(payload))


GO, JAVA, LITERAL, BARE = "go", "java", "literal", "bare"
LOCALDELAY, BATCH, LEAN = "localdelay", "localdelay-batch", "localdelay-batch-uncancellable"
THREADS, AIO = "localdelay-threads", "localdelay-aio"
HEAP, CALL_AT_TASK = "threads-heapq", "asyncio-call_at-task"
CLOSED_BREAKER, LIMITED, OPEN_BREAKER, REFUSED = (
    f"localdelay-fallback{suffix}" for suffix in ("", "-limit", "-down", "-refused")
)

CONTENDERS = MappingProxyType(
    {
        GO: Contender(title="Go: channel, 20 goroutines", world=PROGRAM, likely=500_000),
        JAVA: Contender(title="Java: DelayQueue, 20 threads", world=PROGRAM, likely=70_000),
        LITERAL: Contender(title="literal port on Trio", world="trio", open=_literal, likely=30_000),
        "trio-tasks": Contender(
            title="Trio, a task a message", world="trio", open=_task_per_message, likely=5_000
        ),
        LOCALDELAY: Contender(
            title="localdelay, send",
            world="trio",
            open=_one_by_one(),
            likely=100_000,
            figures=(*ALL, "five", "await"),
        ),
        BATCH: Contender(
            title="localdelay, send_batch",
            world="trio",
            open=_in_batches(),
            likely=200_000,
            figures=(*ALL, "five", "await"),
        ),
        LEAN: Contender(
            title="localdelay, send_batch, cancellable=False",
            world="trio",
            open=_in_batches(cancellable=False),
            likely=200_000,
            figures=(*ALL, "five", "await"),
        ),
        "asyncio-call_at": Contender(
            title="asyncio, call_at a message", world="asyncio", open=_call_at, likely=20_000
        ),
        CALL_AT_TASK: Contender(
            title="asyncio, call_at and a task a message", world="asyncio", open=_call_at_task, likely=20_000
        ),
        AIO: Contender(
            title="localdelay.aio, coroutine send",
            world="asyncio",
            open=_aio,
            likely=20_000,
            figures=(*ALL, "await"),
        ),
        HEAP: Contender(
            title="threads, heapq and a Condition",
            world="threads",
            open=_heap_of_threads,
            likely=50_000,
            figures=(*ALL, "producers"),
        ),
        THREADS: Contender(
            title="localdelay.threads, blocking send",
            world="threads",
            open=_threads,
            likely=20_000,
            figures=(*ALL, "producers"),
        ),
        CLOSED_BREAKER: Contender(
            title="Fallback, primary takes all",
            world="trio",
            open=_through_fallback(),
            figures=("await",),
        ),
        LIMITED: Contender(
            title="Fallback, the same with a RateLimit",
            world="trio",
            open=_through_fallback(limit=localdelay.RateLimit(1e9)),
            figures=("await",),
        ),
        OPEN_BREAKER: Contender(
            title="Fallback, breaker open",
            world="trio",
            open=_through_fallback(is_down=True),
            figures=("await",),
        ),
        REFUSED: Contender(
            title="Fallback, primary refuses all",
            world="trio",
            open=_through_fallback(refuses=True),
            figures=("await", "memory"),
        ),
        BARE: Contender(title="bare memory channel", world="trio", open=_bare_channel, figures=("put",)),
        "payloads": Contender(
            title="payloads in a list", world="trio", open=_list_of_payloads, figures=("memory",)
        ),
    }
)
"""In the order of the table."""
