"""What it means that a rate is held, and which rates to try to find the highest one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

HELD_P99 = 0.010
"""Seconds. A rate is held if the latency stays under this at p99, and everything was put and sent, and
nothing early. The latency counts from the schedule of the load, and so holds what the puts were late."""


def is_held(p99: float | None, *, offered: int, sent: int, early: int, most: float = HELD_P99) -> bool:
    """Whether a load was held; `p99` is None where nothing was sent. `most` is another bound than 10 ms."""
    return p99 is not None and p99 < most and sent == offered and not early


def ladder(lowest: float, highest: float) -> list[float]:
    """The rates 1, 2, 3, 5 and 7 times a power of ten between the two, ends included."""
    rungs = [float(step * 10**power) for power in range(10) for step in (1, 2, 3, 5, 7)]
    return [rung for rung in rungs if lowest <= rung <= highest]


def next_rate(rungs: Sequence[float], tried: Mapping[float, bool], stride: int = 1) -> float | None:
    """The next rate to try, where these were tried and held or not; None: the highest one is known.

    Where one is held, so are all below it: that is assumed. From what was tried first it goes up, or down,
    in steps of once, twice, four times ... `stride` rungs, until one is known that is held and one that is
    not, and then halves what is between.
    """
    held = best(tried) or 0.0
    failed = min((rate for rate, ok in tried.items() if not ok), default=float("inf"))
    between = [rung for rung in rungs if held < rung < failed]
    if not between:
        return None
    step = min(stride << len(tried) - 1, len(between))
    if failed == float("inf"):
        return between[step - 1]
    if not held:
        return between[-step]
    return between[(len(between) - 1) // 2]


def best(tried: Mapping[float, bool]) -> float | None:
    """The highest rate that was held; None: none was."""
    return max((rate for rate, ok in tried.items() if ok), default=None)
