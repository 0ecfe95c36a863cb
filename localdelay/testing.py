"""Senders for the tests of your own code: one that records, one that fails, one that is throttled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio

from . import arguments
from .errors import Throttled
from .message import Message

__all__ = ["FailingSender", "RecordingSender", "ThrottledPrimary"]


class RecordingSender:
    """A send that takes `duration` seconds and keeps what it was given, with the time."""

    def __init__(self, duration: float = 0.0) -> None:
        self._duration = arguments.at_least("duration", duration, 0)
        self.sent: list[tuple[float, Message]] = []
        """(when its send began, message), in order; seconds on Trio's clock."""

    async def __call__(self, message: Message) -> None:
        """Record the message."""
        began = trio.current_time()
        if self._duration:
            await trio.sleep(self._duration)
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
        """When the sends began, in order; seconds on Trio's clock."""
        return [began for began, _ in self.sent]


class FailingSender(RecordingSender):
    """A send that fails the first `times` times for each message (None: always), and then records it."""

    def __init__(self, error: Callable[[], Exception], times: int | None = None) -> None:
        super().__init__()
        if not callable(error):
            raise TypeError(f"error must be a class or function that makes one, not {error!r}")
        self._error = error
        self._times = times
        self.attempts: list[tuple[float, str, int]] = []
        """(when, id, attempt) of every call, in order."""
        self._failed: Counter[str] = Counter()

    async def __call__(self, message: Message) -> None:
        """Fail, or record the message."""
        self.attempts.append((trio.current_time(), message.id, message.attempt))
        if self._times is None or self._failed[message.id] < self._times:
            self._failed[message.id] += 1
            raise self._error()
        await super().__call__(message)


class ThrottledPrimary:
    """A delayed publish that takes `limit` messages in each second and throttles the rest."""

    def __init__(self, limit: int) -> None:
        self._limit = arguments.at_least("limit", limit, 0)
        self._second = -1.0
        self._taken = 0
        self.published: list[tuple[float, Message]] = []
        """(delay in seconds, message) of all that it took, in order."""
        self.refused = 0

    async def __call__(self, message: Message, delay: float) -> None:
        """Take the message, or raise `Throttled`."""
        second = trio.current_time() // 1
        if second != self._second:
            self._second, self._taken = second, 0
        if self._taken >= self._limit:
            self.refused += 1
            raise Throttled(f"more than {self._limit} messages in a second")
        self._taken += 1
        self.published.append((delay, message))
