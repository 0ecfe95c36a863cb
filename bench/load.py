"""The load: an open-loop generator, and what is made of the latencies that it leads to.

Open loop: message i is put at start + i / rate, whether or not the earlier ones have been sent, so a slow
queue cannot slow its own load down and look better for it.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import attrs
import trio

BODY_BYTES = 500
CHUNK = 256
"""Messages put in a row by a generator that is behind, before the others get their turn."""
_ROUNDING = 1e-3


class PutNowait(Protocol):
    """`put_nowait` of either contender."""

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


def body(number: int) -> bytes:
    """500 bytes that no other number has, so that nothing can be shared or compressed away."""
    return number.to_bytes(BODY_BYTES, "big")


def draw_delays(count: int, low: float, high: float, seed: int) -> array[float]:
    """`count` delays in seconds, uniform between the two; one and the same if they are equal."""
    if low == high:
        return array("d", (low,)) * count
    uniform = random.Random(seed).uniform
    return array("d", (uniform(low, high) for _ in range(count)))


class Generator:
    """Puts message i at start + i / rate, and remembers how late it was with that.

    Two clock reads a wake-up, none a message: inside a run of puts the times are interpolated.
    """

    def __init__(self, clock: Callable[[], float], *, rate: float, delays: Sequence[float]) -> None:
        self._clock = clock
        self._rate = rate
        self._delays = delays
        self._start = 0.0
        self._runs: list[tuple[int, float, float]] = []
        self.done = 0
        """Messages put so far."""

    async def offer(self, put_nowait: PutNowait) -> None:
        """Put them all."""
        clock, rate, delays = self._clock, self._rate, self._delays
        count = len(delays)
        start = self._start = clock()
        while self.done < count:
            began = clock()
            due = min(count, int((began - start) * rate + _ROUNDING) + 1)
            stop = min(due, self.done + CHUNK)
            for number in range(self.done, stop):
                put_nowait(number.to_bytes(BODY_BYTES, "big"), delay=delays[number])
            self.done = stop
            self._runs.append((stop, began, clock()))
            if stop < due:
                await trio.lowlevel.checkpoint()
            else:
                await trio.sleep_until(start + stop / rate)

    def lateness(self) -> Percentiles:
        """How late the puts were: the generator's own error, in seconds."""
        late: list[float] = []
        for (first, _, _), (stop, began, ended) in pairwise([(0, 0.0, 0.0), *self._runs]):
            step = (ended - began) / max(1, stop - first)
            late += (
                max(0.0, began + (number - first) * step - self._start - number / self._rate)
                for number in range(first, stop)
            )
        return percentiles(late)
