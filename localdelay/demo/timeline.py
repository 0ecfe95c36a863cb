"""What happened when in the run with `Fallback`, step by step, and the rate that was found. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import attrs

COLUMNS = 64
"""A timeline has no more steps than that: it fits beside a label in a line of text."""


@attrs.frozen
class Bucket:
    """One step of time, which ends where the next one begins. Rates are in messages a second."""

    at: float
    """Seconds from the first publish to the beginning of the step."""
    primary: float
    """Published, and taken by the broker's delayed publish."""
    local: float
    """Published, and held in memory."""
    handed_back: float
    """Held in memory until now, and taken by the broker's delayed publish."""
    found: float | None
    """What the limit let through at the end of the step; None while it let all through."""


def timeline(
    primary: Sequence[float],
    local: Sequence[float],
    handed_back: Sequence[float],
    found: Sequence[tuple[float, float | None]],
) -> list[Bucket]:
    """The buckets of what happened at these times, in seconds since the first publish, to the last of them.

    `found` has the rates that were found, each with the time when it was looked at, in the order of time.
    """
    times = [*primary, *local, *handed_back]
    if not times:
        return []
    step = step_for(max(times))
    count = int(max(times) / step) + 1
    rates = [_rates(row, step, count) for row in (primary, local, handed_back)]
    begins = [round(number * step, 1) for number in range(count)]
    return [Bucket(*row) for row in zip(begins, *rates, _last(found, step, count), strict=True)]


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


def _last(found: Sequence[tuple[float, float | None]], step: float, count: int) -> list[float | None]:
    """What was seen last by the end of each step."""
    seen = {int(at / step): rate for at, rate in found}
    rates: list[float | None] = []
    for number in range(count):
        rates.append(seen.get(number, rates[-1] if rates else None))
    return rates
