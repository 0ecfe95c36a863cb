"""The usual recipe of plain threads, which ends at once, and drops what waits, when its block is left."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from heapq import heappop, heappush


class HeapOfThreads:
    """A heap behind a condition, and threads that take from it, sleep and send."""

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
