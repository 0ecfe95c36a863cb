"""What happened when in the run with `Fallback`: rates step by step, and the breaker's state. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs

COLUMNS = 64
"""A timeline has no more steps than that: it fits beside a label in a line of text."""


@attrs.frozen
class BreakerChange:
    """The breaker is in another state from now on."""

    at: float
    """Seconds since the first publish."""
    state: str
    """`closed`, `open` or `half_open`."""


@attrs.frozen
class Bucket:
    """One step of time, which ends where the next one begins. Rates are in messages per second."""

    at: float
    """Seconds from the first publish to the beginning of the step."""
    primary: float
    """Published, and taken by the broker's delayed publish."""
    local: float
    """Published, and held in memory."""
    handed_back: float
    """Held in memory until now, and taken by the broker's delayed publish."""
    breaker: str
    """Its state for most of the step; `half_open`, which lasts but a moment, wherever it occurred."""


def timeline(
    primary: Sequence[float],
    local: Sequence[float],
    handed_back: Sequence[float],
    changes: Sequence[BreakerChange],
) -> list[Bucket]:
    """The buckets of what happened at these times, in seconds since the first publish, to the last of them.

    The breaker is closed at first, and `changes` are in the order of time.
    """
    times = [*primary, *local, *handed_back, *(change.at for change in changes)]
    if not times:
        return []
    step = step_for(max(times))
    count = int(max(times) / step) + 1
    rates = [_rates(row, step, count) for row in (primary, local, handed_back)]
    states = _states(changes, step, count)
    begins = [round(number * step, 1) for number in range(count)]
    return [Bucket(*row) for row in zip(begins, *rates, states, strict=True)]


def step_for(seconds: float) -> float:
    """The shortest step of 0.1, 0.2, 0.5, 1, 2, 5, 10, ... s that needs no more than `COLUMNS` for this."""
    steps = (digit * int(10**power) / 10 for power in itertools.count() for digit in (1, 2, 5))
    return next(step for step in steps if int(seconds / step) < COLUMNS)


def step_of(buckets: Sequence[Bucket]) -> float:
    """How long each of these buckets is; there is at least one."""
    return buckets[1].at if len(buckets) > 1 else step_for(0.0)


def _rates(times: Sequence[float], step: float, count: int) -> list[float]:
    counts = [0] * count
    for at in times:
        counts[int(at / step)] += 1
    return [number / step for number in counts]


def _states(changes: Sequence[BreakerChange], step: float, count: int) -> list[str]:
    lasted: list[dict[str, float]] = [{} for _ in range(count)]
    periods = [BreakerChange(0.0, "closed"), *changes, BreakerChange(math.inf, "")]
    for change, later in itertools.pairwise(periods):
        first = int(change.at / step)
        last = int(min(later.at / step, count - 1))
        for number in range(first, last + 1):
            seconds = min(later.at, (number + 1) * step) - max(change.at, number * step)
            lasted[number][change.state] = lasted[number].get(change.state, 0.0) + seconds
    return ["half_open" if "half_open" in state else max(state, key=state.__getitem__) for state in lasted]
