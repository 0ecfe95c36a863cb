"""What stands before the primary: the breaker and the limit, asked and told together, from any thread.

A lock makes a step of each call. Like all locks of a publish it can be taken twice: a handler of signals may
come in the midst of one, and publish. What the step changed is said when the lock is free again: one event
for each change of the breaker's state, and for the beginning and the end of a limit; and a line of the log,
once a minute at most for what comes and goes.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from .breaker import DOWN, OTHER, Breaker, BreakerPolicy, BreakerState, Outcome, Ticket
from .errors import BreakerOpen, RateLimited, asked_wait
from .limit import Limit
from .listening import (
    Closed,
    Event,
    HalfOpened,
    LimitBegan,
    LimitEnded,
    Lines,
    Listener,
    Opened,
    Reason,
    tell,
)
from .logs import log
from .message import Message

_T = TypeVar("_T")
_SPARE_WAIT = 0.01
"""Seconds at least until a call that can wait asks again."""
_SHUT = (BreakerState.OPEN, BreakerState.FORCED_OPEN)


class Gate:
    """Lets calls of the primary through, or not. `clock` gives the time in seconds, in whatever thread."""

    def __init__(
        self,
        policy: BreakerPolicy | None,
        limit: Limit | None,
        listener: Listener | None,
        clock: Callable[[], float],
        patience: float = math.inf,
        lines: Lines | None = None,
    ) -> None:
        """`patience` is how many seconds a call may take, as for `Breaker`.

        `lines` are those of the breaker, where several gates share them.
        """
        self._lock = threading.RLock()
        self._clock = clock
        self._breaker = Breaker(policy or BreakerPolicy(), clock(), patience)
        self._patience = patience
        if policy is None:
            self._breaker.disable(clock())
        self._limit = limit
        self._price = None if limit is None or limit.cost is None else limit.price
        if limit is not None:
            limit.use_clock(clock)
        self._listener = listener
        self._seen = self._breaker.state
        self._jitter = random.random()
        self._shut_since = math.inf
        self._adaptive = limit if limit is not None and limit.adapts else None
        self._limits = limit is not None and limit.limit_rate is not None  # as it was seen last
        self._limits_since = -math.inf
        self._breaker_lines = lines or Lines()
        self.on_change: Callable[[], None] = lambda: None
        """Called in the thread that has changed the state, or given back a trial that said nothing."""

    def ask(self, message: Message, now: float) -> tuple[Ticket | None, Reason | None]:
        """A ticket for a call with this, or why there is none. Every ticket goes to `record` or `release`."""
        price = 1.0 if self._price is None else self._price(message, True)
        ticket = self._step(self._breaker.ask, now, price, self._jitter)
        if ticket is None:
            return None, Reason.BREAKER_OPEN
        limit = self._limit
        if limit is not None and (limit.limits or self._limits) and not self._try(limit, price):
            self._return(ticket)
            return None, Reason.RATE_LIMITED
        return ticket, None

    def ask_for_spare(self) -> tuple[Ticket | None, float]:
        """A ticket for a call that can wait, and else after how many seconds to ask again.

        Infinite seconds: the breaker is open.
        """
        if self._limit is not None and not self._limit.try_acquire_spare():
            return None, max(_SPARE_WAIT, self._limit.wait)
        ticket = self._step(self._breaker.ask, self._clock(), 1.0, self._jitter)
        if ticket is None and self._limit is not None:
            self._limit.give_back()
        return ticket, math.inf

    def charge(self, ticket: Ticket, message: Message) -> Ticket:
        """The ticket with what its call takes, where that is known only now."""
        if self._price is None:
            return ticket
        assert self._limit is not None  # noqa: S101 (it has the price)
        changes, began, already = ticket
        price = self._price(message, True)
        self._limit.owe(price - already)
        return changes, began, price

    def release(self, ticket: Ticket) -> None:
        """Return a ticket for a call that was not made."""
        self._return(ticket)
        if self._limit is not None:
            self._limit.give_back(ticket[2])

    def record(self, ticket: Ticket, outcome: Outcome, error: Exception | None = None) -> None:
        """Take note of what came of a call."""
        now = self._clock()
        age = now - ticket[1]  # not the instant: the limit may go by another gate's clock
        limit = self._adaptive
        if limit is not None:
            its_now = now if limit.clock is self._clock else None
            if error is None:
                limit.record(outcome, age, None, 0.0, ticket[2], its_now)
            else:
                limit.record(outcome, age, asked_wait(error), random.random(), ticket[2], its_now)
            if limit.limits is not self._limits:
                self._look_at_limit(limit)
        if age > self._patience and outcome is not OTHER:
            outcome = DOWN  # whatever it came to in the end
        if outcome is OTHER:
            self._return(ticket)
        else:
            self._step(self._breaker.record, now, ticket, outcome, self._jitter)

    def refusal(self, reason: Reason, now: float) -> Exception:
        """What to raise, or to give as the reason, for a call that was asked for then and not made."""
        if reason is Reason.FORCED:
            return BreakerOpen('the primary is not called: the mode is "forced"')
        if reason is Reason.BREAKER_OPEN:
            with self._lock:
                retry_in = self._retry_in(now)
            return BreakerOpen("the breaker is open", retry_after=None if retry_in == math.inf else retry_in)
        return RateLimited("the limit is reached")

    @property
    def limit_rate(self) -> float | None:
        """Calls a second that the limit lets through; None: it does not limit, or there is none."""
        return None if self._limit is None else self._limit.limit_rate

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
        self._step(partial(act, self._breaker), self._clock())

    def _return(self, ticket: Ticket) -> None:
        """Take back a ticket whose call says nothing."""
        self._step(self._breaker.record, self._clock(), ticket, OTHER)
        if self._breaker.state is BreakerState.HALF_OPEN:
            self.on_change()  # no state has changed, and yet there is a trial for who waits for one

    def _try(self, limit: Limit, price: float = 1.0) -> bool:
        may_call = limit.try_acquire(price)
        if self._adaptive is not None:
            self._look_at_limit(self._adaptive)
        return may_call

    def _look_at_limit(self, limit: Limit) -> None:
        if (limit.limit_rate is not None) is self._limits:
            return
        with self._lock:
            rate = limit.limit_rate  # by now: of what was there before, another thread may have seen the end
            if (rate is not None) is self._limits:
                return  # another thread has seen it, too
            self._limits = rate is not None
            now, since = self._clock(), self._limits_since
            self._limits_since = now
        limited_for = max(0.0, now - since)
        if (said := limit.to_say(rate, limited_for)) is not None:
            log(*said)
        tell(self._listener, LimitEnded(limited_for) if rate is None else LimitBegan(rate))

    def _retry_in(self, now: float) -> float:
        return max(0.0, self._breaker.retry_at - now) if self._breaker.state in _SHUT else 0.0

    def _step(self, act: Callable[..., _T], now: float, *args: object) -> _T:
        """Have the breaker do this, at the time that it is."""
        with self._lock:
            result = act(now, *args)
            if self._breaker.state is self._seen:
                return result
            change = self._change(now)
        level, line, event = change
        log(level, line)
        tell(self._listener, event)
        self.on_change()
        return result

    def _change(self, now: float) -> tuple[int, str, Event]:
        """What there is to say of a change of state."""
        self._seen = state = self._breaker.state
        self._jitter = random.random()  # for the next opening
        if state in _SHUT:
            self._shut_since = min(self._shut_since, now)
            retry_in = self._retry_in(now)
            level, times = self._breaker_lines.begin(now)
            until = "until told otherwise" if retry_in == math.inf else f"for {retry_in:.3g} s"
            line = f"the breaker is open: the primary is not called {until}{times}"
            return level, line, Opened(retry_in)
        if state is BreakerState.HALF_OPEN:
            return logging.DEBUG, "the breaker is half-open: a few calls try the primary", HalfOpened()
        open_for = max(0.0, now - self._shut_since)
        self._shut_since = math.inf
        how = "disabled" if state is BreakerState.DISABLED else "closed"
        line = f"the breaker is {how} after {open_for:.3g} s: the primary is called again"
        return self._breaker_lines.end(), line, Closed(open_for)
