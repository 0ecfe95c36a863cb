"""What stands before the primary: the breaker and the limit, asked and told together, from any thread.

A lock makes a step of each call. What the step changed is said when the lock is free again: one log line
and one event for each change of the breaker's state.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from .breaker import Breaker, BreakerPolicy, BreakerState, Outcome
from .errors import BreakerOpen, RateLimited, Throttled
from .limit import RateLimit
from .listening import Closed, Event, HalfOpened, Listener, Opened, Reason, tell

logger = logging.getLogger("localdelay")

_T = TypeVar("_T")
_SHUT = (BreakerState.OPEN, BreakerState.FORCED_OPEN)


class Gate:
    """Lets calls of the primary through, or not. `clock` gives the time in seconds, in whatever thread."""

    def __init__(
        self,
        policy: BreakerPolicy | None,
        limit: RateLimit | None,
        listener: Listener | None,
        clock: Callable[[], float],
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._breaker = Breaker(policy or BreakerPolicy(), clock())
        if policy is None:
            self._breaker.disable(clock())
        self._limit = limit
        if limit is not None:
            limit.use_clock(clock)
        self._listener = listener
        self._seen = self._breaker.state
        self._shut_since = math.inf
        self.on_change: Callable[[], None] = lambda: None
        """Called in the thread that has changed the state."""

    def ask(self) -> tuple[int | None, Reason | None]:
        """A ticket for one call, or why there is none. Every ticket goes to `record` or `release`."""
        ticket = self._step(self._breaker.ask)
        if ticket is None:
            return None, Reason.BREAKER_OPEN
        if self._limit is not None and not self._limit.try_acquire():
            self.record(ticket, Outcome.OTHER)
            return None, Reason.RATE_LIMITED
        return ticket, None

    def ask_for_spare(self) -> tuple[int | None, float]:
        """A ticket for a call that can wait, and else after how many seconds to ask again.

        Infinite seconds: the breaker is open.
        """
        if self._limit is not None and not self._limit.try_acquire():
            return None, self._limit.wait
        ticket = self._step(self._breaker.ask)
        if ticket is None and self._limit is not None:
            self._limit.give_back()
        return ticket, math.inf

    def release(self, ticket: int) -> None:
        """Return a ticket for a call that was not made."""
        self.record(ticket, Outcome.OTHER)
        if self._limit is not None:
            self._limit.give_back()

    def record(self, ticket: int, outcome: Outcome, error: Exception | None = None) -> None:
        """Take note of what came of a call."""
        retry_after = error.retry_after if isinstance(error, Throttled) else None
        jitter = random.random()
        self._step(
            lambda now: self._breaker.record(ticket, outcome, now, jitter=jitter, retry_after=retry_after)
        )

    def refusal(self, reason: Reason) -> Exception:
        """What to raise, or to give as the reason, for a call that was not made."""
        if reason is Reason.FORCED:
            return BreakerOpen('the primary is not called: the mode is "forced"')
        if reason is Reason.BREAKER_OPEN:
            retry_in = self.retry_in
            return BreakerOpen("the breaker is open", retry_after=None if retry_in == math.inf else retry_in)
        return RateLimited("the limit is reached")

    @property
    def state(self) -> BreakerState:
        """The breaker's."""
        return self._breaker.state

    @property
    def state_for(self) -> float:
        """Seconds since the breaker is in this state."""
        return max(0.0, self._clock() - self._breaker.since)

    @property
    def retry_in(self) -> float:
        """Seconds until an open breaker is half-open; 0 where calls go through, infinite if forced open."""
        with self._lock:
            return self._retry_in(self._clock())

    def command(self, act: Callable[[Breaker, float], None]) -> None:
        """Have the breaker do what somebody wants by hand, such as `Breaker.force_open`."""
        self._step(lambda now: act(self._breaker, now))

    def _retry_in(self, now: float) -> float:
        return max(0.0, self._breaker.retry_at - now) if self._breaker.state in _SHUT else 0.0

    def _step(self, act: Callable[[float], _T]) -> _T:
        change: tuple[int, str, Event] | None = None
        with self._lock:
            now = self._clock()
            result = act(now)
            if self._breaker.state is not self._seen:
                change = self._change(now)
        if change is not None:
            level, line, event = change
            with suppress(Exception):  # a handler that raises: the call was made, and must count
                logger.log(level, line)
            tell(self._listener, event)
            self.on_change()
        return result

    def _change(self, now: float) -> tuple[int, str, Event]:
        """What there is to say of a change of state."""
        self._seen = state = self._breaker.state
        if state in _SHUT:
            self._shut_since = min(self._shut_since, now)
            retry_in = self._retry_in(now)
            until = "until told otherwise" if retry_in == math.inf else f"for {retry_in:.3g} s"
            line = f"the breaker is open: the primary is not called {until}"
            return logging.WARNING, line, Opened(retry_in)
        if state is BreakerState.HALF_OPEN:
            return logging.INFO, "the breaker is half-open: a few calls try the primary", HalfOpened()
        open_for = max(0.0, now - self._shut_since)
        self._shut_since = math.inf
        how = "disabled" if state is BreakerState.DISABLED else "closed"
        line = f"the breaker is {how} after {open_for:.3g} s: the primary is called again"
        return logging.INFO, line, Closed(open_for)
