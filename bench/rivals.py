"""Other ways to delay a message that people use in Python, each in its usual and kindest form.

Each ends at once, and drops what waits, when its block is left.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heappop, heappush

import trio

from localdelay.benchmark.contenders import Send


class TaskPerMessage:
    """A Trio task a message: it sleeps until the message is due, and sends it."""

    def __init__(self, nursery: trio.Nursery, send: Send) -> None:
        self._nursery = nursery
        self._send = send

    async def _hold(self, due: float, payload: bytes) -> None:
        await trio.sleep_until(due)
        await self._send(due, payload)

    def put_nowait(self, payload: bytes, /, *, delay: float) -> None:
        self._nursery.start_soon(self._hold, trio.current_time() + delay, payload)


class CallAt:
    """A timer of asyncio's a message, `loop.call_at`; the send is a plain function, with no task."""

    def __init__(self, send: Callable[[float, bytes], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send

    def put_nowait(self, payload: bytes, /, *, delay: float) -> None:
        due = self._loop.time() + delay
        self._loop.call_at(due, self._send, due, payload)


class CallAtTask:
    """The same with a coroutine that sends, in a task of its own that is kept until it ends."""

    def __init__(self, send: Send) -> None:
        self._tasks: set[asyncio.Future[None]] = set()

        def begin(due: float, payload: bytes) -> None:
            task = asyncio.ensure_future(send(due, payload))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._timers = CallAt(begin)
        self.put_nowait = self._timers.put_nowait


class HeapOfThreads:
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
async def open_heap_of_threads(
    send: Callable[[float, bytes], object], clock: Callable[[], float], *, workers: int
) -> AsyncIterator[HeapOfThreads]:
    """Run the threads for the length of the block."""
    heap = HeapOfThreads(send, clock)
    threads = [threading.Thread(target=heap.work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield heap
    finally:
        heap.close()
        for thread in threads:
            thread.join()
