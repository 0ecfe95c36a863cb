"""What `bench.peers` compares: how each is opened, in which world it lives, and which figures it has.

Other ways to delay a message are here in their usual and kindest form.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from heapq import heappop, heappush
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

    @property
    def room(self) -> dict[str, Any]:
        """As all queues are told it."""
        return {"capacity": self.capacity, "workers": self.workers}

    async def send(self, execute_at: float, payload: bytes) -> None:
        """What a rival sends with."""
        self.times.begin(execute_at, payload)

    async def send_message(self, message: localdelay.Message) -> None:
        """What a queue of Trio's sends with."""
        self.times.begin(message.execute_at, message.payload)

    async def send_batch(self, messages: Sequence[localdelay.Message]) -> None:
        """The same with batches."""
        self.times.begin_batch(messages)

    def send_on_its_clock(self, message: localdelay.Message) -> None:
        """What a queue sends with whose execute-at is on a clock of its own."""
        self.times.begin(NO_TIME, message.payload)


Opener: TypeAlias = Callable[[Asked], AbstractAsyncContextManager[Opened]]


@attrs.frozen
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


def _queue(*, in_batches: bool = False, **options: Any) -> Opener:
    @_ending
    @asynccontextmanager
    async def opened(asked: Asked) -> AsyncIterator[Opened]:
        how: dict[str, Any] = {"send_batch": asked.send_batch} if in_batches else {"send": asked.send_message}
        async with localdelay.open_delay_queue(**how, **asked.room, **options) as queue:
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
        async with localdelay.open_delay_queue(asked.send_message, **asked.room) as queue:
            breaker = localdelay.BreakerPolicy() if is_down else None
            fallback = localdelay.Fallback(primary, queue, limit=limit, breaker=breaker)
            if is_down:
                fallback.force_open()
            yield Opened(queue.put_nowait, fallback.publish)

    return opened


@_ending
def _literal(asked: Asked) -> AbstractAsyncContextManager[Opened]:
    return open_literal_port(asked.send, **asked.room)


@_ending
@asynccontextmanager
async def _task_per_message(asked: Asked) -> AsyncIterator[Opened]:
    async def wait(due: float, payload: bytes) -> None:
        await trio.sleep_until(due)
        await asked.send(due, payload)

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        nursery.start_soon(wait, trio.current_time() + delay, payload)

    async with trio.open_nursery() as nursery:
        yield Opened(put_nowait)


def _timers(send: Callable[[float, bytes], object]) -> Opened:
    """A timer of asyncio's a message, `loop.call_at`, which calls this."""
    loop = asyncio.get_running_loop()

    def put_nowait(payload: bytes, /, *, delay: float) -> None:
        due = loop.time() + delay
        loop.call_at(due, send, due, payload)

    return Opened(put_nowait)


@asynccontextmanager
async def _call_at(asked: Asked) -> AsyncIterator[Opened]:
    yield _timers(asked.times.begin)


@asynccontextmanager
async def _call_at_task(asked: Asked) -> AsyncIterator[Opened]:
    """The same with a coroutine that sends, in a task of its own that is kept until it ends."""
    tasks: set[asyncio.Future[None]] = set()

    def begin(due: float, payload: bytes) -> None:
        task = asyncio.ensure_future(asked.send(due, payload))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    yield _timers(begin)


@asynccontextmanager
async def _aio(asked: Asked) -> AsyncIterator[Opened]:
    async def send(message: localdelay.Message) -> None:
        asked.send_on_its_clock(message)

    async with aio.open_delay_queue(send, **asked.room) as queue:
        yield Opened(queue.put_nowait, queue.put, queue.pause, queue.resume)
        await queue.drain(grace=0.0)


class _HeapOfThreads:
    """A heap behind a condition, and threads that take from it, sleep and send: the usual recipe."""

    def __init__(self, send: Callable[[float, bytes], object], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._heap: list[tuple[float, bytes]] = []
        self._changed = threading.Condition()
        self._closed = False

    def put_nowait(self, payload: bytes, /, *, delay: float) -> None:
        message = (self._clock() + delay, payload)
        with self._changed:
            heappush(self._heap, message)
            if self._heap[0] is message:
                self._changed.notify()

    async def hold(self) -> None:
        """Nobody takes a message from now on."""
        self._changed.acquire()

    async def release(self) -> None:
        self._changed.release()

    def work(self) -> None:
        """Send what is due, until it is closed."""
        while (message := self._take()) is not None:
            self._send(*message)

    def close(self) -> None:
        """End the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> tuple[float, bytes] | None:
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                elif (remaining := self._heap[0][0] - self._clock()) > 0:
                    self._changed.wait(remaining)
                else:
                    return heappop(self._heap)
            return None


@asynccontextmanager
async def _heap_of_threads(asked: Asked) -> AsyncIterator[Opened]:
    heap = _HeapOfThreads(asked.times.begin, asked.loop.clock)
    workers = [threading.Thread(target=heap.work, daemon=True) for _ in range(asked.workers)]
    for thread in workers:
        thread.start()
    try:
        # It has no bound, and never waits.
        yield Opened(heap.put_nowait, None, heap.hold, heap.release, heap.put_nowait)
    finally:
        heap.close()
        for thread in workers:
            thread.join()


@asynccontextmanager
async def _threads(asked: Asked) -> AsyncIterator[Opened]:
    with threads.open_delay_queue(asked.send_on_its_clock, **asked.room) as queue:

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
_OURS, _AWAITED, _THREADED = (*ALL, "five", "await"), (*ALL, "await"), (*ALL, "producers")
_UNLIMITED = _through_fallback(limit=localdelay.RateLimit(1e9))

CONTENDERS = MappingProxyType(
    {
        GO: Contender("Go: channel, 20 goroutines", PROGRAM, likely=500_000),
        JAVA: Contender("Java: DelayQueue, 20 threads", PROGRAM, likely=70_000),
        LITERAL: Contender("literal port on Trio", "trio", _literal, 30_000),
        "trio-tasks": Contender("Trio, a task a message", "trio", _task_per_message, 5_000),
        LOCALDELAY: Contender("localdelay, send", "trio", _queue(), 100_000, _OURS),
        BATCH: Contender("localdelay, send_batch", "trio", _queue(in_batches=True), 200_000, _OURS),
        LEAN: Contender(
            "localdelay, send_batch, cancellable=False",
            "trio",
            _queue(in_batches=True, cancellable=False),
            200_000,
            _OURS,
        ),
        "asyncio-call_at": Contender("asyncio, call_at a message", "asyncio", _call_at, 20_000),
        CALL_AT_TASK: Contender("asyncio, call_at and a task a message", "asyncio", _call_at_task, 20_000),
        AIO: Contender("localdelay.aio, coroutine send", "asyncio", _aio, 20_000, _AWAITED),
        HEAP: Contender("threads, heapq and a Condition", "threads", _heap_of_threads, 50_000, _THREADED),
        THREADS: Contender("localdelay.threads, blocking send", "threads", _threads, 20_000, _THREADED),
        CLOSED_BREAKER: Contender(
            "Fallback, primary takes all", "trio", _through_fallback(), figures=("await",)
        ),
        LIMITED: Contender("Fallback, the same with a RateLimit", "trio", _UNLIMITED, figures=("await",)),
        OPEN_BREAKER: Contender(
            "Fallback, breaker open", "trio", _through_fallback(is_down=True), figures=("await",)
        ),
        REFUSED: Contender(
            "Fallback, primary refuses all",
            "trio",
            _through_fallback(refuses=True),
            figures=("await", "memory"),
        ),
        BARE: Contender("bare memory channel", "trio", _bare_channel, figures=("put",)),
        "payloads": Contender("payloads in a list", "trio", _list_of_payloads, figures=("memory",)),
    }
)
"""In the order of the table."""
