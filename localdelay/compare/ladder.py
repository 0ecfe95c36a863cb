"""Which rates to try, to find the highest one that is held. Pure."""

from __future__ import annotations

from collections.abc import Mapping

RUNGS = tuple(step * 10.0**power for power in range(1, 6) for step in (1, 2, 5))
"""Messages/s: 10, 20, 50, ... 500,000."""
_STRIDE = 3
"""Rungs in one step while none has failed: ten times as much."""


def next_rate(tried: Mapping[float, bool]) -> float | None:
    """The next rate to try, where these were tried; None: it is known.

    It goes up, or down, from the rate that was measured at first, ten times a step, and then halves what is
    between the highest that is held and the lowest that is not.
    """
    held = max((one for one, ok in tried.items() if ok), default=0.0)
    failed = min((one for one, ok in tried.items() if not ok), default=float("inf"))
    between = [rung for rung in RUNGS if held < rung < failed]
    if not between:
        return None
    if failed == float("inf"):
        return between[min(_STRIDE, len(between)) - 1]
    if held == 0.0:
        return between[-min(_STRIDE, len(between))]
    return between[(len(between) - 1) // 2]


def best(tried: Mapping[float, bool]) -> float | None:
    """The highest rate that was held."""
    return max((rate for rate, ok in tried.items() if ok), default=None)
