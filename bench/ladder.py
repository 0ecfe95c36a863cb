"""Finding the highest rate that holds, with few tries. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def ladder(lowest: float, highest: float) -> list[float]:
    """The rates 1, 2, 3, 5 and 7 times a power of ten between the two, ends included."""
    rungs = [float(step * 10**power) for power in range(10) for step in (1, 2, 3, 5, 7)]
    return [rung for rung in rungs if lowest <= rung <= highest]


def rung_at(rungs: Sequence[float], rate: float) -> int:
    """The number of the highest rung that is not above this rate; 0 if all are."""
    return max((number for number, rung in enumerate(rungs) if rung <= rate), default=0)


def highest(rungs: Sequence[float], start: int, holds: Callable[[float], bool]) -> int | None:
    """The number of the highest rung that holds, looked for from rung `start`; None if none does.

    Where one holds, so do all below it: that is assumed. From the start it goes up, or down, in steps of 1,
    2, 4 ... rungs, until it knows one that holds and one that does not, and then halves what is between.
    If the start is right, that takes two tries.
    """
    below, above = -1, len(rungs)
    at, step = min(max(start, 0), above - 1), 1
    while above - below > 1:
        if holds(rungs[at]):
            below = at
        else:
            above = at
        if above == len(rungs):
            at = min(below + step, above - 1)
        elif below < 0:
            at = max(above - step, 0)
        else:
            at = (below + above) // 2
        step *= 2
    return None if below < 0 else below
