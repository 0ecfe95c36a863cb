"""Redis's clock, as seen from Trio's. Pure: the caller reads both."""

from __future__ import annotations

import math

_PERIOD = 5.0
"""Seconds. The clocks are compared anew within two of these, for Redis's may be slewed or set."""


class RedisClock:
    """Translates instants of Redis's clock (microseconds, its TIME) into Trio's (seconds), not too early.

    A reply that has come by `now` was made before, so Trio's clock was at most `now` when Redis's showed what
    the reply says. The quickest reply of the last seconds gives the best bound; what is left of its way back
    is how late this clock is. No clock of this machine but the monotonic one takes part. Where Redis's clock
    is set back this one is early by the step until the next two periods are over, and by what the two drift
    apart in that time always.
    """

    def __init__(self) -> None:
        self._base = 0
        self._begun = -math.inf
        self._now = self._before = math.inf  # the smallest offset in this period, and in the one before

    def observe(self, redis: int, now: float) -> None:
        """Redis's clock showed `redis`, and that is known at `now`."""
        self._base = self._base or redis
        if now - self._begun >= _PERIOD:
            self._before = self._now if now - self._begun < 2 * _PERIOD else math.inf
            self._now = math.inf
            self._begun = now
        self._now = min(self._now, now - (redis - self._base) / 1e6)

    def forget(self) -> None:
        """It may be another Redis from now on: the next observation counts alone."""
        self._begun = -math.inf

    def local(self, redis: float) -> float:
        """The instant on Trio's clock: never before it, and later by a fraction of a round trip."""
        return (redis - self._base) / 1e6 + min(self._now, self._before)

    def redis(self, local: float) -> int:
        """The instant on Redis's clock, as good as it is known."""
        return self._base + math.ceil((local - min(self._now, self._before)) * 1e6)
