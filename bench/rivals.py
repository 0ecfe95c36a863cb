"""Other ways to delay a message that people use in Python, each in its usual and kindest form."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heappop, heappush

import trio

from .literal import Send, Waiting

_POLL = 0.005


class TaskPerMessage:
    """A Trio task a message: it sleeps until the message is due, and sends it."""

    def __init__(self, nursery: trio.Nursery, send: Send) -> None:
        self._nursery = nursery
        self._send = send

    async def _hold(self, message: Waiting) -> None:
        await trio.sleep_until(message[0])
        await self._send(message)

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        self._nursery.start_soon(self._hold, (trio.current_time() + delay, payload))

    async def put(self, payload: bytes, *, delay: float) -> None:
        self.put_nowait(payload, delay=delay)
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_task_per_message(send: Send) -> AsyncIterator[TaskPerMessage]:
    """Leaving the block waits until everything is sent."""
    async with trio.open_nursery() as nursery:
        yield TaskPerMessage(nursery, send)


class CallAt:
    """A timer of asyncio's a message: `loop.call_at`, and the send is a plain function, with no task."""

    def __init__(self, send: Callable[[Waiting], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        self._pending = 0

    def _fire(self, message: Waiting) -> None:
        self._pending -= 1
        self._send(message)

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        due = self._loop.time() + delay
        self._pending += 1
        self._loop.call_at(due, self._fire, (due, payload))

    async def put(self, payload: bytes, *, delay: float) -> None:
        self.put_nowait(payload, delay=delay)
        await asyncio.sleep(0)

    async def join(self) -> None:
        """Wait until everything is sent."""
        while self._pending:  # noqa: ASYNC110 (to set an event would cost something a message)
            await asyncio.sleep(_POLL)


@asynccontextmanager
async def open_call_at(send: Callable[[Waiting], object]) -> AsyncIterator[CallAt]:
    """Leaving the block waits until everything is sent. For asyncio."""
    timers = CallAt(send)
    yield timers
    await timers.join()


class HeapOfThreads:
    """A heap behind a condition, and threads that take from it, sleep and send: the usual recipe."""

    def __init__(self, send: Callable[[Waiting], object], clock: Callable[[], float]) -> None:
        self._send = send
        self._clock = clock
        self._heap: list[Waiting] = []
        self._changed = threading.Condition()
        self._closing = False

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        message = (self._clock() + delay, payload)
        with self._changed:
            heappush(self._heap, message)
            if self._heap[0] is message:
                self._changed.notify()

    async def put(self, payload: bytes, *, delay: float) -> None:
        self.put_nowait(payload, delay=delay)
        await trio.lowlevel.checkpoint()

    def hold(self) -> threading.Condition:
        """Nobody takes a message while this is held, as `with` does."""
        return self._changed

    def work(self) -> None:
        """Send what is due, until it is closed and empty."""
        while (message := self._take()) is not None:
            self._send(message)

    def close(self, *, drop: bool) -> None:
        """Let the threads end once nothing waits any more."""
        with self._changed:
            self._closing = True
            if drop:
                self._heap.clear()
            self._changed.notify_all()

    def _take(self) -> Waiting | None:
        with self._changed:
            while True:
                if not self._heap:
                    if self._closing:
                        self._changed.notify_all()
                        return None
                    self._changed.wait()
                elif (remaining := self._heap[0][0] - self._clock()) > 0:
                    self._changed.wait(remaining)
                else:
                    return heappop(self._heap)


@asynccontextmanager
async def open_heap_of_threads(
    send: Callable[[Waiting], object], clock: Callable[[], float], *, workers: int
) -> AsyncIterator[HeapOfThreads]:
    """Leaving the block waits until everything is sent. The puts come from the Trio thread."""
    heap = HeapOfThreads(send, clock)
    threads = [threading.Thread(target=heap.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield heap
        heap.close(drop=False)
        for thread in threads:
            await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)
    finally:
        heap.close(drop=True)
        for thread in threads:
            thread.join()
