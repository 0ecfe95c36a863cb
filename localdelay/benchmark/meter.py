"""The meter: how late each send begins, and how late each put was, for one clock read a send.

The latency of a message is the time from when its send should have begun, which is the time at which it was
to be put plus its delay, to when it did begin. So it holds the lateness of the put, and the queue's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from localdelay.benchmark.load import NUMBER_BYTES, Delays, Pace, number_in
from localdelay.errors import PartialSendError
from localdelay.lateness import Latencies, LatencyRecorder
from localdelay.message import Message

INTERVAL = 1.0
"""Seconds for which latencies are kept apart."""
SHORTEST = 0.1
"""Seconds: no interval but a lone one is shorter."""
GROUP = 5e-5
"""Seconds: what was to happen within this is recorded as one, by the first and so the latest of it."""


class Due(Protocol):
    """A message that is being sent, of whatever queue."""

    @property
    def payload(self) -> bytes:
        """It begins with the message's number."""

    @property
    def execute_at(self) -> float:
        """Seconds on the clock."""


class Meter:
    """Records every message once, at the beginning of its first send."""

    def __init__(self, pace: Pace, delays: Delays, seed: int, clock: Callable[[], float]) -> None:
        self._pace = pace
        self._delays = delays.table(seed)
        self._mask = len(self._delays) - 1
        self._clock = clock
        self._shortest = delays.shortest
        self._start = self._ends = 0.0
        self._latency = LatencyRecorder()
        self._again: set[int] = set()
        self.begins = 0.0
        """When the first message is due, in seconds on the clock."""
        self.intervals: list[Latencies] = []
        """The latencies of the intervals that are over, from `begins` on."""
        self.puts = LatencyRecorder()
        """How late the load was: when a message was put minus when it was to be put."""
        self.sent = 0
        """Messages whose sends have returned."""
        self.early = 0
        """Messages whose send began before their execute-at."""
        self.failure: Exception | None = None
        """The error of the last send that failed."""
        self.failed_at: float | None = None
        """When the first one began that failed, in seconds on the clock."""

    def start(self, when: float) -> None:
        """The first message is to be put at this time on the clock."""
        self._start = when
        self.begins = when + self._shortest
        self._ends = self.begins + INTERVAL

    def finish(self) -> None:
        """Close the last interval; one that has hardly begun is made a part of that before it."""
        rest = self._latency.take()
        if not rest.counts:
            return
        if self.intervals and self._clock() < self._ends - INTERVAL + SHORTEST:
            rest = Latencies.together([self.intervals.pop(), rest])
        self.intervals.append(rest)

    def put(self, first: int, stop: int, began: float, ended: float) -> None:
        """These have been put between these two times, evenly."""
        step = (ended - began) / (stop - first)
        for low, high, offset in self._groups(first, stop):
            late = began + (high - 1 - first) * step - self._start - offset
            self.puts.record(max(0.0, late), high - low)

    def begin(self, message: Due) -> None:
        """A send begins."""
        now = self._clock()
        if now >= self._ends:
            self._turn(now)
        self._record(message, now)

    def begin_batch(self, messages: Sequence[Message]) -> None:
        """A send of several messages begins."""
        now = self._clock()
        if now >= self._ends:
            self._turn(now)
        last = messages[-1]
        first = number_in(messages[0].payload)
        if (
            self._mask == 0
            and not self._again
            and number_in(last.payload) == first + len(messages) - 1
            and last.execute_at <= now
        ):
            # With one delay for all, and no retries, they come in the order of their numbers.
            self._record_run(first, first + len(messages), now)
        else:
            for message in messages:
                self._record(message, now)

    def end(self, messages: Sequence[Message]) -> None:
        """The send of these has returned: they are sent."""
        self.sent += len(messages)
        if self._again:
            self._again.difference_update(number_in(message.payload) for message in messages)

    def fail(self, messages: Sequence[Message], error: BaseException) -> None:
        """The send of these has failed, or was cut off: they are sent again, and not recorded again."""
        failed = messages
        if isinstance(error, PartialSendError) and isinstance(error.failed, Mapping):
            failed = [message for message in messages if message.id in error.failed]
            error = next(iter(error.failed.values()), error)
        self._again.update(number_in(message.payload) for message in failed)
        self.sent += len(messages) - len(failed)
        if isinstance(error, Exception):
            self.failure = error
            if self.failed_at is None:
                self.failed_at = self._clock()

    def due(self, number: int) -> float:
        """When the send of this message should begin: its place in the load, and its delay."""
        return self._start + self._pace.offset(number) + self._delays[number & self._mask]

    def record(self, number: int, now: float) -> None:
        """The first send of this message began now."""
        self._latency.record(max(0.0, now - self.due(number)))

    def _record(self, message: Due, now: float) -> None:
        number = int.from_bytes(message.payload[:NUMBER_BYTES], "big")
        if self._again and number in self._again:
            return
        if message.execute_at > now:
            self.early += 1
        self.record(number, now)

    def _record_run(self, first: int, stop: int, now: float) -> None:
        """Record consecutive messages with one delay for all."""
        due = self._start + self._delays[0]
        for low, high, offset in self._groups(first, stop):
            self._latency.record(max(0.0, now - due - offset), high - low)

    def _groups(self, first: int, stop: int) -> Iterator[tuple[int, int, float]]:
        """(low, high, when the first of them was to be put), of what was to be put within `GROUP`."""
        pace, low = self._pace, first
        while low < stop:
            offset = pace.offset(low)
            high = min(stop, max(low + 1, pace.put_by(offset + GROUP)))
            yield low, high, offset
            low = high

    def _turn(self, now: float) -> None:
        """Close the intervals that are over by now."""
        self.intervals.append(self._latency.take())
        self._ends += INTERVAL
        while now >= self._ends:
            self.intervals.append(Latencies())
            self._ends += INTERVAL
