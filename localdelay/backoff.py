"""How long to wait after failures in a row: longer each time, up to a bound."""

from __future__ import annotations

import random


def grown(failures: int, *, first: float, most: float, base: float = 2.0) -> float:
    """Seconds to wait after so many failures: `first`, then each time `base` times as long, up to `most`."""
    try:
        return min(most, first * float(base) ** (failures - 1))
    except OverflowError:
        return most if first else 0.0


class Backoff:
    """The waits between attempts to connect, from `first` to `most` seconds.

    Each is cut by up to a half, at random: many instances must not come back together.
    """

    __slots__ = ("_failures", "_first", "_most")

    def __init__(self, first: float = 0.05, most: float = 1.0) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait now that one more has failed."""
        self._failures += 1
        return grown(self._failures, first=self._first, most=self._most) * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """One has succeeded: the waits are short again."""
        self._failures = 0
