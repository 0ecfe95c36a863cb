"""The circuit breaker: whether to call a primary that may well be down. Pure: time and jitter are given.

The words are resilience4j's. *Closed*: calls go through, and the outcomes of the last ones are remembered;
too many failed ones among them, or too many in a row, open it. *Open*: no call goes through until a wait
is over, which grows each time that a trial fails. *Half-open*: a few trial calls go through; if all of them
are answered it closes, and the first that fails opens it again. *Forced open* and *disabled* are set from
outside, and left by nothing else. A call that was let through before a change of state says nothing about
the time after it: its outcome is dropped.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import TypeAlias

import attrs

from . import arguments
from .backoff import grown


class BreakerState(Enum):
    """Whether calls go through."""

    CLOSED = "closed"
    """They do."""
    OPEN = "open"
    """They do not, until a wait is over."""
    HALF_OPEN = "half_open"
    """A few do, to see how the primary is."""
    FORCED_OPEN = "forced_open"
    """They do not, until somebody says so."""
    DISABLED = "disabled"
    """They do, whatever comes of them."""


CLOSED, OPEN, HALF_OPEN, FORCED_OPEN, DISABLED = BreakerState
# By themselves: on CPython 3.11 `BreakerState.OPEN` costs more than all that is done with it for a call.


class Outcome(Enum):
    """What a call came to, as far as the breaker is concerned."""

    TAKEN = "taken"
    THROTTLED = "throttled"
    """The primary refused it, for now."""
    DOWN = "down"
    """There was no answer, or no connection."""
    OTHER = "other"
    """Cut off, or failed for a reason that says nothing about the next call."""


TAKEN, THROTTLED, DOWN, OTHER = Outcome

Ticket: TypeAlias = tuple[int, float, float]
"""For one call: after how many changes of state it was let through, when, and what it takes of a limit."""


def _share(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0 < arguments.number(attribute.name, value) <= 1:
        raise ValueError(f"{attribute.name} must be over 0 and at most 1, not {value!r}")


@attrs.frozen(kw_only=True)
class BreakerPolicy:
    """When the breaker opens and closes. A wrong argument is a `TypeError` or `ValueError` that names it.

    A call has failed that came to a time-out or a `ConnectionError`, or took longer than `publish_timeout`;
    one that was refused was answered.
    """

    failure_rate: float = attrs.field(default=0.5, validator=_share)
    """It opens when this share of the window has failed."""
    window: int = attrs.field(default=100, validator=arguments.field_count)
    """How many calls are remembered."""
    minimum_calls: int = attrs.field(default=20, validator=arguments.field_count)
    """With fewer in the window, `failure_rate` says nothing."""
    consecutive: int | None = attrs.field(default=5, validator=arguments.field_count_or_none)
    """It opens when so many in a row have failed; None: it does not."""
    wait_initial: float = attrs.field(default=1.0, validator=arguments.field_at_least(0))
    """Seconds that it stays open at first."""
    wait_max: float = attrs.field(default=30.0, validator=arguments.field_at_least(0))
    """Seconds that the wait grows to, before the jitter."""
    wait_exp_base: float = attrs.field(default=2.0, validator=arguments.field_at_least(1))
    """The wait after each trial that failed is so many times the one before."""
    wait_jitter: float = attrs.field(default=0.2, validator=arguments.field_at_least(0))
    """Up to this share of the wait is added at random: instances must not come back together."""
    trial_calls: int = attrs.field(default=3, validator=arguments.field_count)
    """Calls let through while it is half-open; all of them must be answered."""

    def wait(self, openings: int, jitter: float) -> float:
        """Seconds to stay open for the n-th time in a row (n from 1); `jitter` is drawn from 0 to 1."""
        wait = grown(openings, first=self.wait_initial, most=self.wait_max, base=self.wait_exp_base)
        return wait * (1 + self.wait_jitter * jitter)


class Breaker:
    """One breaker. Every method takes the time in seconds; none of them waits or calls out.

    A trial that has not ended after `patience` seconds has failed: calls that never return would use up the
    trials for ever.
    """

    def __init__(self, policy: BreakerPolicy, now: float, patience: float = math.inf) -> None:
        self._policy = policy
        self._patience = patience
        self.state = CLOSED
        self.since = now
        """When the state began."""
        self.retry_at = math.inf
        """When it will be half-open, while it is open."""
        self._openings = 0  # in a row, without a closing in between
        self._changes = 0  # of state
        self._calls = 0  # since the state began, and were answered or failed
        self._failed: deque[int] = deque()  # which of these, as far as the window reaches back
        self._in_a_row = 0
        self._trials_left = 0
        self._trial_at = 0.0  # when the last one was let through

    def ask(self, now: float, price: float = 1.0, jitter: float = 0.0) -> Ticket | None:
        """Whether a call may be made now: a ticket to `record` its outcome with, or None.

        Every ticket must come back.
        """
        if self.state is OPEN and now >= self.retry_at:
            self._change(HALF_OPEN, now)
        if self.state is HALF_OPEN:
            if not self._trials_left:
                if now >= self._trial_at + self._patience:
                    self._open(now, jitter)
                return None
            self._trials_left -= 1
            self._trial_at = now
        elif self.state in (OPEN, FORCED_OPEN):
            return None
        return self._changes, now, price

    def record(self, now: float, ticket: Ticket, outcome: Outcome, jitter: float = 0.0) -> None:
        """Take note of what a call came to."""
        if ticket[0] != self._changes or outcome is OTHER or self.state is DISABLED:
            if ticket[0] == self._changes and self.state is HALF_OPEN:
                self._trials_left += 1
        elif outcome is not DOWN:
            self._calls += 1
            self._in_a_row = 0
            if self.state is HALF_OPEN and self._calls == self._policy.trial_calls:
                self._openings = 0
                self._change(CLOSED, now)
        elif self.state is HALF_OPEN or self._is_too_much():
            self._open(now, jitter)

    def force_open(self, now: float) -> None:
        """Let no call through until `force_closed`, `disable` or `reset`."""
        self._change(FORCED_OPEN, now)

    def force_closed(self, now: float) -> None:
        """Close it now, whatever it is; from then on it works as ever."""
        self._change(CLOSED, now)

    def disable(self, now: float) -> None:
        """Let every call through until `force_open`, `force_closed` or `reset`."""
        self._change(DISABLED, now)

    def reset(self, now: float) -> None:
        """As it was at the beginning: closed, and its waits short again."""
        self._openings = 0
        self._change(CLOSED, now)

    def _is_too_much(self) -> bool:
        """Whether a call that has failed now is one too many."""
        policy, failed = self._policy, self._failed
        self._calls += 1
        self._in_a_row += 1
        failed.append(self._calls)
        while failed[0] <= self._calls - policy.window:
            failed.popleft()
        if policy.consecutive is not None and self._in_a_row >= policy.consecutive:
            return True
        calls = min(self._calls, policy.window)
        # Within a window smaller than `minimum_calls` a full one is enough.
        return (
            calls >= min(policy.minimum_calls, policy.window) and len(failed) >= policy.failure_rate * calls
        )

    def _open(self, now: float, jitter: float) -> None:
        self._openings += 1
        self._change(OPEN, now)
        self.retry_at = now + self._policy.wait(self._openings, jitter)

    def _change(self, state: BreakerState, now: float) -> None:
        self.state = state
        self.since = now
        self.retry_at = math.inf
        self._changes += 1
        self._failed.clear()
        self._calls = self._in_a_row = 0
        self._trials_left = self._policy.trial_calls
