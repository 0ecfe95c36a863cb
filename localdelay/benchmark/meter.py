"""The meter: how late each send begins, and how late each put was, for one clock read a send.

The latency of a message is the time from when its send should have begun, which is the time at which it was
to be put plus its delay, to when it did begin. So it holds the lateness of the put, and the queue's own.
"""

from __future__ import annotations

import math
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


NO_TIME = -math.inf
"""The execute-at of a message that has it on another clock, or not at all."""


class Recorder(Protocol):
    """Whom a load and the sends under it are told to."""

    @property
    def sent(self) -> int:
        """Messages that were sent so far."""

    def put(self, first: int, stop: int, began: float, ended: float) -> None:
        """These were put between these two times."""


class Meter:
    """Records every message once, at the beginning of its first send."""

    def __init__(self, pace: Pace, delays: Delays, seed: int, clock: Callable[[], float]) -> None:
        self._pace = pace
        self._clock = clock
        self._delays = delays.table(seed)
        self._mask = len(self._delays) - 1
        self._shortest = delays.shortest
        self._start = self._ends = 0.0
        self._latency = LatencyRecorder()
        self._again: set[int] = set()
        self.intervals: list[Latencies] = []
        """The latencies of the intervals that are over, from when the first message was due."""
        self.total = Latencies()
        """All of them in one."""
        self.p99: float | None = None
        """Seconds, of these; None where nothing was sent."""
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
        self._ends = when + self._shortest + INTERVAL

    def finish(self) -> None:
        """Close the last interval; one that has hardly begun is made a part of that before it."""
        rest = self._latency.take()
        if not rest.counts:
            return
        self._close(rest)
        if len(self.intervals) > 1 and self._clock() < self._ends - INTERVAL + SHORTEST:
            self.intervals[-2:] = [Latencies.together(self.intervals[-2:])]

    def put(self, first: int, stop: int, began: float, ended: float) -> None:
        """These have been put between these two times, evenly."""
        step = (ended - began) / (stop - first)
        for low, high, offset in self._groups(first, stop):
            late = began + (high - 1 - first) * step - self._start - offset
            self.puts.record(max(0.0, late), high - low)

    def begin(self, execute_at: float, payload: bytes) -> None:
        """The send of this message begins."""
        now = self._clock()
        if now >= self._ends:
            self._turn(now)
        self._record(execute_at, payload, now)

    def begin_batch(self, messages: Sequence[Message]) -> None:
        """A send of several messages begins."""
        now = self._clock()
        if now >= self._ends:
            self._turn(now)
        first, last = number_in(messages[0].payload), messages[-1]
        stop = first + len(messages)
        in_order = self._mask == 0 and not self._again and number_in(last.payload) == stop - 1
        if in_order and last.execute_at <= now:
            # With one delay for all, and no retries, they come in the order of their numbers.
            due = self._start + self._delays[0]
            for low, high, offset in self._groups(first, stop):
                self._latency.record(max(0.0, now - due - offset), high - low)
        else:
            for message in messages:
                self._record(message.execute_at, message.payload, now)

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

    def _record(self, execute_at: float, payload: bytes, now: float) -> None:
        number = int.from_bytes(payload[:NUMBER_BYTES], "big")
        if self._again and number in self._again:
            return
        if execute_at > now:
            self.early += 1
        self.record(number, now)

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
        while now >= self._ends:
            self._close(self._latency.take())
            self._ends += INTERVAL

    def _close(self, interval: Latencies) -> None:
        self.intervals.append(interval)
        if interval.counts:
            self.total = Latencies.together([self.total, interval])
            self.p99 = self.total.at(0.99)[0]
