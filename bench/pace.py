"""The load, on whichever event loop: message i is put at start + i / rate, late or not (open loop).

Whether or not the earlier ones have been sent, so a slow queue cannot slow its own load down and look
better for it. Here, too, is what is recorded of each send, and what a run comes to.
"""

from __future__ import annotations

import math
import random
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle, islice, pairwise
from typing import Any, Protocol, TypeAlias

import attrs

from localdelay.benchmark.load import CHUNK

from .worlds import World

BODY_BYTES = 500

Run: TypeAlias = tuple[float, float, float]
"""Messages put so far, and when the last of the puts in a row began and ended, in seconds."""

body = struct.Struct(f">{BODY_BYTES - 8}xQ").pack
"""500 bytes that no other number has, so that nothing can be shared or compressed away.

A quarter of what `int.to_bytes` takes for the same bytes, which is a part of every put that is measured.
"""
_ROUNDING = 1e-3


class PutNowait(Protocol):
    """`put_nowait` of any contender."""

    def __call__(self, payload: bytes, /, *, delay: float) -> object: ...


@attrs.frozen
class Percentiles:
    """Exact percentiles (nearest rank of the sorted values), in the unit of the values."""

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0


def percentiles(values: Sequence[float]) -> Percentiles:
    """Sort, and read off the ranks."""
    if not values:
        return Percentiles()
    ordered = sorted(values)
    count = len(ordered)
    p50, p90, p99, p999 = (ordered[math.ceil(count * rank / 1000) - 1] for rank in (500, 900, 990, 999))
    return Percentiles(count, p50, p90, p99, p999, ordered[-1])


class Pace:
    """Says when the next messages are due to be put, puts them, and remembers how late it was with that.

    Two clock reads a wake-up, none a message: inside a run of puts the times are interpolated.
    """

    def __init__(self, clock: Callable[[], float], *, rate: float, delays: Sequence[float]) -> None:
        self._clock = clock
        self._rate = rate
        self._delays = delays
        self._start: float | None = None
        self.runs: list[Run] = []
        """The times count from the start."""
        self.done = 0
        """Messages put so far."""

    def put_due(self, put_nowait: PutNowait) -> float | None:
        """Put what is to be put by now, and return when to call again: 0 for at once, None for never."""
        clock, rate, delays = self._clock, self._rate, self._delays
        count, first = len(delays), self.done
        began = clock()
        if self._start is None:
            self._start = began
        start = self._start
        due = min(count, int((began - start) * rate + _ROUNDING) + 1)
        stop = min(due, first + CHUNK)
        for number in range(first, stop):
            put_nowait(body(number), delay=delays[number])
        if stop > first:
            self.done = stop
            self.runs.append((stop, began - start, clock() - start))
        if stop == count:
            return None
        return 0.0 if stop < due else start + stop / rate

    def lateness(self) -> Percentiles:
        """How late the puts were: the load's own error, in seconds."""
        return percentiles(put_lateness(self.runs, self._rate))


async def offer(world: World, pace: Pace, put_nowait: PutNowait) -> None:
    """Put them all, each at its time."""
    while (when := pace.put_due(put_nowait)) is not None:
        if when:
            await world.sleep_until(when)
        else:
            await world.checkpoint()


def put_lateness(runs: Iterable[Run], rate: float) -> array[float]:
    """How much later than i / rate each message was put, in seconds."""
    late = array("d")
    for (first, _, _), (stop, began, ended) in pairwise([(0, 0.0, 0.0), *runs]):
        count = int(stop - first)
        step = (ended - began) / count - 1 / rate
        behind = began - first / rate
        late.fromlist([max(0.0, behind + number * step) for number in range(count)])
    return late


def draw_delays(count: int, low: float, high: float, seed: int) -> array[float]:
    """`count` delays in seconds, uniform between the two; one and the same if they are equal."""
    if low == high:
        return array("d", (low,)) * count
    uniform = random.Random(seed).uniform
    return array("d", (uniform(low, high) for _ in range(count)))


def take_turns(count: int, delays: Sequence[float]) -> array[float]:
    """`count` delays, these in turn, over and over."""
    return array("d", islice(cycle(delays), count))


class _Due(Protocol):
    @property
    def execute_at(self) -> float: ...


class Recorder:
    """Keeps how late each send began, in seconds: every value, so that percentiles are exact."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.late = late = array("d")
        keep = late.append

        def one(execute_at: float) -> None:
            keep(clock() - execute_at)

        def batch(messages: Sequence[_Due]) -> None:
            now = clock()
            late.fromlist([now - message.execute_at for message in messages])

        self.one: Callable[[float], None] = one
        """To be called at the start of a send, with the execute-at of its message."""
        self.batch: Callable[[Sequence[_Due]], None] = batch
        """To be called at the start of a send of several messages. One clock read serves them all."""


@attrs.frozen
class Outcome:
    """What happened in an open loop. Times in seconds."""

    offered: int
    late: Sequence[float]
    """Lateness of each message that was sent."""
    runs: Sequence[Run]
    rate: float
    cpu: float
    """Processor time of the process, load included."""
    wall: float

    def figures(self) -> dict[str, Any]:
        """The figures that every open loop has, whoever ran it."""
        sent, done = len(self.late), int(self.runs[-1][0]) if self.runs else 0
        return {
            "offered": self.offered,
            "put": done,
            "sent": sent,
            "unsent": self.offered - sent,
            "early": sum(1 for lateness in self.late if lateness < 0),
            "lateness": attrs.asdict(percentiles(self.late)),
            "put_lateness": attrs.asdict(percentiles(put_lateness(self.runs, self.rate))),
            "cpu_us": 1e6 * self.cpu / max(1, sent or done),
            "seconds": self.wall,
        }
