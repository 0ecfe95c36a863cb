"""A limit that finds its rate, and counts what is taken of it."""

from __future__ import annotations

import math
from typing import Any

from localdelay import AdaptiveLimit
from localdelay.breaker import Outcome


class Finding(AdaptiveLimit):
    """Of the time since it has begun to limit: what was taken of it, and the calls that were made."""

    def __init__(self) -> None:
        super().__init__()
        self.taken = 0.0
        self.calls = 0.0
        self.refused_at = -math.inf
        """When it heard last of one that was refused."""

    def copy(self) -> Finding:
        return Finding()

    def called(self, count: int) -> None:
        """So many calls are made."""
        self.calls += count

    def try_acquire(self, count: float = 1) -> bool:
        may_call = super().try_acquire(count)
        if may_call and self.limits:  # else nothing was taken for it
            self.taken += count
        return may_call

    def give_back(self, count: float = 1) -> None:
        super().give_back(count)
        self.taken -= count

    def owe(self, count: float) -> float:
        left = super().owe(count)
        self.taken += count
        return left

    def record(self, outcome: Outcome, *args: Any, **options: Any) -> None:
        begins = self.limit_rate is None
        super().record(outcome, *args, **options)
        if outcome is Outcome.THROTTLED:
            self.refused_at = self.clock()
        if begins and self.limit_rate is not None:
            self.taken = self.calls = 0.0
