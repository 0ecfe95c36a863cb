"""For the tests of your own code: a send that records, one that fails, a primary that is throttled, a clock.

The sends are for the queues of all three worlds. Times are Trio's in a queue of Trio's, and with
`localdelay.threads`; on an asyncio loop they are those of the `clock` that a fake was given, which is to be
that of its queue, else of `time.perf_counter`.

    clock = MovableClock()
    send = RecordingSender(clock=clock)
    with threads.open_delay_queue(send, capacity=10, workers=1, clock=clock) as queue:
        queue.put(b"close order 7", delay=120.0)
        clock.advance(119.0)
        assert send.payloads == []
        clock.advance(1.0)
        assert send.times == [120.0]

On asyncio it is `await clock.advance_async(119.0)`; with Trio, `trio.testing.MockClock`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import trio

from . import arguments
from .errors import Throttled
from .message import Message
from .portal.movable import MovableClock
from .worlds import is_trio_task

__all__ = ["FailingSender", "MovableClock", "RecordingSender", "ThrottledPrimary"]


def _now(clock: MovableClock | None) -> float:
    if clock is not None:
        return clock.current_time()
    return trio.current_time() if is_trio_task() else time.perf_counter()


async def _sleep(seconds: float, clock: MovableClock | None) -> None:
    if is_trio_task():
        await trio.sleep(seconds)
    elif clock is not None:
        await clock.sleep(seconds)
    else:
        import asyncio

        await asyncio.sleep(seconds)


class RecordingSender:
    """A send that takes `duration` seconds and keeps what it was given, with the time."""

    def __init__(self, duration: float = 0.0, *, clock: MovableClock | None = None) -> None:
        self._duration = arguments.at_least("duration", duration, 0)
        self._clock = clock
        self.sent: list[tuple[float, Message]] = []
        """(when its send began, message), in order; in seconds."""

    async def __call__(self, message: Message) -> None:
        """Record the message."""
        began = _now(self._clock)
        if self._duration:
            await _sleep(self._duration, self._clock)
        self.sent.append((began, message))

    @property
    def ids(self) -> list[str]:
        """The ids of what was sent, in order."""
        return [message.id for _, message in self.sent]

    @property
    def payloads(self) -> list[bytes]:
        """The payloads of what was sent, in order."""
        return [message.payload for _, message in self.sent]

    @property
    def times(self) -> list[float]:
        """When the sends began, in order; in seconds."""
        return [began for began, _ in self.sent]


class FailingSender(RecordingSender):
    """A send that fails the first `times` times for each message (None: always), and then records it."""

    def __init__(
        self,
        error: Callable[[], Exception],
        times: int | None = None,
        *,
        clock: MovableClock | None = None,
    ) -> None:
        super().__init__(clock=clock)
        if not callable(error):
            raise TypeError(f"error must be a class or function that makes one, not {error!r}")
        self._error = error
        self._times = times
        self.attempts: list[tuple[float, str, int]] = []
        """(when, id, attempt) of every call, in order."""
        self._failed: Counter[str] = Counter()

    async def __call__(self, message: Message) -> None:
        """Fail, or record the message."""
        self.attempts.append((_now(self._clock), message.id, message.attempt))
        if self._times is None or self._failed[message.id] < self._times:
            self._failed[message.id] += 1
            raise self._error()
        await super().__call__(message)


class ThrottledPrimary:
    """A delayed publish that takes `limit` messages in each second and throttles the rest.

    For `localdelay.threads.Fallback`, which calls an ordinary function, it is the method `blocking`.
    """

    def __init__(self, limit: int, *, clock: MovableClock | None = None) -> None:
        self._limit = arguments.at_least("limit", limit, 0)
        self._clock = clock
        self._second = -1.0
        self._taken = 0
        self.published: list[tuple[float, Message]] = []
        """(delay in seconds, message) of all that it took, in order."""
        self.refused = 0

    async def __call__(self, message: Message, delay: float) -> None:
        """Take the message, or raise `Throttled`."""
        self.blocking(message, delay)

    def blocking(self, message: Message, delay: float) -> None:
        """Take the message, or raise `Throttled`."""
        second = _now(self._clock) // 1
        if second != self._second:
            self._second, self._taken = second, 0
        if self._taken >= self._limit:
            self.refused += 1
            raise Throttled(f"more than {self._limit} messages in a second")
        self._taken += 1
        self.published.append((delay, message))
