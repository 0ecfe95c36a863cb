"""A token bucket, which calls of the primary and sends of due messages can share, in whatever thread.

It fills at `rate` tokens a second up to `burst`, and may owe: `acquire` takes its tokens at once and
sleeps until the debt that it finds is paid, in the order of the calls. `try_acquire` takes only what is
there. So what must go out (due messages) comes before what could as well go elsewhere (a call of the
primary), and neither needs to know of the other.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import trio

from . import arguments


class RateLimit:
    """At most `rate` calls a second over time, and `burst` at once.

    `burst` is by default what a tenth of a second lets through, and at least 1. Raises `TypeError` and
    `ValueError` for arguments that are no positive numbers.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self.rate = arguments.number("rate", rate)
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be over 0 and finite, not {rate!r}")
        self.burst = max(1.0, self.rate / 10) if burst is None else arguments.at_least("burst", burst, 1)
        self._tokens = self.burst  # as of `_at`
        self._at = -math.inf
        self._lock = threading.Lock()
        self._clock = trio.current_time

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Read the time, in seconds, from this instead of Trio's clock, which other threads can't."""
        self._clock = clock

    @property
    def available(self) -> float:
        """Tokens that are there at this moment; negative while calls of `acquire` wait."""
        return self._take(0)

    @property
    def wait(self) -> float:
        """Seconds until a token is there for `try_acquire`, if nobody takes it."""
        return max(0.0, 1.0 - self.available) / self.rate

    def try_acquire(self, count: int = 1) -> bool:
        """Take tokens if they are there now, and say whether they were."""
        with self._lock:
            self._fill()
            if self._tokens < count - 1e-9:  # what filling by floats may leave out
                return False
            self._tokens -= count
            return True

    def give_back(self, count: int = 1) -> None:
        """Return tokens that were taken and are not needed."""
        self._take(-count)

    async def acquire(self, count: int = 1) -> None:
        """Take tokens, and wait until they are there. A call that is cancelled gives them back."""
        left = self._take(count)
        try:
            await trio.sleep(max(0.0, -left / self.rate))
        except BaseException:
            self.give_back(count)
            raise

    def _take(self, count: int) -> float:
        """Take tokens that may not be there yet, or give some back; return how many are left."""
        with self._lock:
            self._fill()
            self._tokens = min(self.burst, self._tokens - count)
            return self._tokens

    def _fill(self) -> None:
        now = self._clock()
        if now > self._at:
            elapsed = now - self._at if self._at > -math.inf else 0.0
            self._tokens = min(self.burst, self._tokens + elapsed * self.rate)
        self._at = now  # also where another run's clock stands behind
