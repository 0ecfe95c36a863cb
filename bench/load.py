"""The load: the open-loop generator of `localdelay bench`, and what is made of the latencies it leads to."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import attrs

from localdelay.benchmark import load
from localdelay.benchmark.load import CHUNK

__all__ = [
    "BODY_BYTES",
    "CHUNK",
    "Generator",
    "Percentiles",
    "PutNowait",
    "body",
    "draw_delays",
    "percentiles",
]

BODY_BYTES = 500


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
    """Puts message i at start + i / rate, and remembers how late it was with that."""

    def __init__(self, clock: Callable[[], float], *, rate: float, delays: Sequence[float]) -> None:
        self._delays = delays
        self._pace = load.Pace(rate, rate, len(delays) / rate)
        self._generator = load.Generator(self._pace, clock)
        self._runs: list[tuple[int, float, float]] = []

    @property
    def done(self) -> int:
        """Messages put so far."""
        return self._generator.done

    async def offer(self, put_nowait: PutNowait) -> None:
        """Put them all."""
        delays = self._delays

        def put_run(first: int, stop: int) -> None:
            for number in range(first, stop):
                put_nowait(number.to_bytes(BODY_BYTES, "big"), delay=delays[number])

        def after_run(_: int, stop: int, began: float, ended: float) -> None:
            self._runs.append((stop, began, ended))

        await self._generator.offer(put_run, after_run)

    def lateness(self) -> Percentiles:
        """How late the puts were: the generator's own error, in seconds."""
        start, offset = self._generator.start, self._pace.offset
        late: list[float] = []
        for (first, _, _), (stop, began, ended) in pairwise([(0, 0.0, 0.0), *self._runs]):
            step = (ended - began) / max(1, stop - first)
            late += (
                max(0.0, began + (number - first) * step - start - offset(number))
                for number in range(first, stop)
            )
        return percentiles(late)
