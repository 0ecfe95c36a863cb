"""What a fallback knows, decides by and counts, for every kind of caller; from any thread."""

from __future__ import annotations

import inspect
import math
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Annotated, TypeAlias, get_args

import attrs

from localdelay.breaker import OTHER, TAKEN, BreakerPolicy, BreakerState, Outcome, Ticket
from localdelay.errors import QueueClosed, Throttled
from localdelay.gate import Gate, Lines
from localdelay.limit import Limit
from localdelay.listening import Listener, Reason, check_listener, tell
from localdelay.message import Message
from localdelay.statistics import MessagesSoFar, Rate, TimesSoFar

from .events import Degraded, Full
from .gates import Gates, KeyStatistics
from .handles import Handles
from .routing import (
    CALL_IT,
    MODES,
    RAISE,
    Ambiguous,
    Decision,
    Failure,
    Mode,
    Route,
    decide,
    failure_of,
    outcome_of,
)

DegradeOn: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]
MayDegrade: TypeAlias = Callable[[Message], bool]

DEFAULT_DEGRADE_ON: DegradeOn = (Throttled,)
_forks = 0  # that this process has come from, since it was imported in the first


def _in_child() -> None:
    global _forks  # noqa: PLW0603 (what was made before it is the parent's)
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


@attrs.frozen
class Receipt:
    """What became of a publish."""

    route: Route
    message: Message
    reason: Exception | None = None
    """Why it was degraded: the exception of the primary, or a `BreakerOpen` or `RateLimited` where it was
    not called; None on the primary route."""
    at_risk: int = 0
    """Messages of the local queue that a crash now would lose."""
    handle: object = None
    """What the primary's publish has returned, where it took the message."""


@attrs.frozen(kw_only=True)
class FallbackStatistics:
    """What a fallback has done, and how its primary is. Times in seconds."""

    primary: MessagesSoFar
    """Published messages that the primary has taken."""
    local: MessagesSoFar
    """Published messages that are or were held in memory."""
    refused: MessagesSoFar
    """Published messages that neither took: the caller got an error."""
    degraded: Annotated[Mapping[Reason, int], "messages_total"]
    """How often each reason held a message in memory; in shadow mode, would have."""
    calls: TimesSoFar
    """Calls of the primary by publishes that have ended."""
    calls_saved: TimesSoFar
    """Calls that were not made because they would have failed; in shadow mode, would not have been."""
    handed_back: MessagesSoFar
    """Messages that the primary took back out of memory."""
    breaker: BreakerState
    """The breaker's state: whether the primary is called."""
    breaker_for: float
    """How long the breaker has been in its state."""
    retry_in: float | None
    """Until an open breaker lets a call through; 0 where calls go through, None where it was forced open."""
    limit_rate: Rate
    """Calls of the primary a second that the limit lets through; None while it lets all through."""
    mode: Mode
    """Whether it asks the primary, as it was made."""
    keys: Mapping[Hashable, KeyStatistics] = MappingProxyType({})
    """The same of each key that was used lately; with keys, the above is of the one that is worst off, and
    `limit_rate` is that of all that are limited."""


class Router:
    """Decides where messages go, and counts where they went. `clock` and `at_risk` are read in any thread."""

    def __init__(
        self,
        clock: Callable[[], float],
        at_risk: Callable[[], int],
        *,
        degrade_on: DegradeOn,
        ambiguous: Ambiguous,
        may_degrade: MayDegrade | None,
        mode: Mode,
        breaker: BreakerPolicy | None,
        limit: Limit | None,
        key: Callable[[Message], Hashable] | None,
        publish_timeout: float,
        listener: Listener | None,
    ) -> None:
        if breaker is not None and not isinstance(breaker, BreakerPolicy):
            raise TypeError(f"breaker must be a BreakerPolicy or None, not {type(breaker).__name__}")
        if limit is not None and not isinstance(limit, Limit):
            raise TypeError(f"limit must be a limit or None, not {type(limit).__name__}")
        if may_degrade is not None and not callable(may_degrade):
            raise TypeError(f"may_degrade must be a function, not {type(may_degrade).__name__}")
        if key is not None and not callable(key):
            raise TypeError(f"key must be a function, not {type(key).__name__}")
        _check_one_of("ambiguous", ambiguous, get_args(Ambiguous))
        _check_one_of("mode", mode, MODES)
        check_listener(listener)
        self._degrades = _predicate(degrade_on)
        self._degrade_ambiguous = ambiguous == "degrade"
        self.may_degrade = may_degrade
        """Whether a message may be held at all, as the caller says; None: each may."""
        self._mode = mode
        self._listener = listener
        self._forks = _forks
        self._lock = threading.Lock()  # for the counts
        self._counts = dict.fromkeys(
            ("primary", "local", "refused", "calls", "calls_saved", "handed_back"), 0
        )
        self._degraded = dict.fromkeys(Reason, 0)
        self.at_risk = at_risk
        """How many messages of the local queue a crash now would lose."""
        self.clock = clock
        lines = Lines(), Lines()

        def make() -> Gate:
            its_limit = limit if limit is None or key is None else limit.copy()
            return Gate(breaker, its_limit, listener, clock, publish_timeout, lines)

        self.gates = Gates(make, key)
        """What says whether the primary is called."""
        self.handles = Handles()
        self.keeps_handles = False
        self.on_held: Callable[[], None] = lambda: None
        """Called when a message is held, in the thread that publishes it."""

    def check_process(self) -> None:
        """Raise `QueueClosed` in a forked child. Before any lock: the thread that holds it may be missing."""
        if self._forks != _forks:
            raise QueueClosed("this is a forked child: the queue is with its parent")

    def ask(
        self, gate: Gate, message: Message, may_degrade: bool, now: float
    ) -> tuple[Ticket | None, Decision]:
        """Say what to do with this message; where the primary is to be called, perhaps with a ticket."""
        # In forced mode nothing is called, so that there is nothing to ask the gate for.
        ticket, refusal = (None, None) if self._mode == "forced" else gate.ask(message, now)
        if ticket is not None:
            return ticket, CALL_IT
        decision = decide(self._mode, may_degrade, refusal)
        with self._lock:
            self._counts["calls_saved"] += 1
            self._count(decision)
        return None, decision

    def taken(self, gate: Gate, ticket: Ticket | None) -> None:
        """The primary has taken the message."""
        with self._lock:
            self._counts["primary"] += 1
        if ticket is not None:
            gate.record(ticket, TAKEN)

    def cut_off(self, gate: Gate, ticket: Ticket | None) -> None:
        """The call was cancelled, or says nothing."""
        with self._lock:
            self._counts["calls"] += 1
        if ticket is not None:
            gate.record(ticket, OTHER)

    def failed(self, gate: Gate, ticket: Ticket | None, error: Exception, may_degrade: bool) -> Decision:
        """The call has failed: say whether to hold the message or to raise the error."""
        try:
            failure = self._failure_of(error)
        except BaseException:  # `degrade_on` is a stranger's; the ticket must come back
            self.cut_off(gate, ticket)
            raise
        if ticket is not None:
            gate.record(ticket, outcome_of(error, failure), error)
        decision = decide(self._mode, may_degrade, failure=failure, degrade_ambiguous=self._degrade_ambiguous)
        with self._lock:
            self._counts["calls"] += 1
            self._count(decision, again=ticket is None)
        return decision

    def keep(self, message: Message, handle: object) -> None:
        """The primary has this message, or may have it: it can be cancelled there until it is due."""
        if self.keeps_handles:
            self.handles.keep(message.id, message.execute_at, handle, self.clock())

    def held(self, message: Message, reason: Reason, why: Exception) -> None:
        """The message is held."""
        with self._lock:
            self._counts["local"] += 1
            self._degraded[reason] += 1
        self.on_held()
        if self._listener is not None:
            tell(self._listener, Degraded(message, reason, why, self.at_risk()))

    def not_held(self, message: Message, reason: Reason, why: Exception, *, full: bool) -> None:
        """The local queue has not taken the message, be it for want of room or not."""
        with self._lock:
            self._counts["refused"] += 1
        if full:
            tell(self._listener, Full(message, reason, why))

    def handed_back(self) -> None:
        """The primary has taken a message back."""
        with self._lock:
            self._counts["handed_back"] += 1

    def outcome_of(self, error: Exception | None) -> Outcome:
        """What a hand-back that ended in this says to the breaker. It never raises."""
        if error is None:
            return TAKEN
        try:
            return outcome_of(error, self._failure_of(error))
        except Exception:  # noqa: BLE001 (of `degrade_on`, a stranger's: the queue must not end by it)
            return OTHER

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        gates, worst = self.gates, self.gates.worst
        retry_in = 0.0 if worst is None else worst.retry_in
        with self._lock:
            counts, degraded = self._counts.copy(), self._degraded.copy()
        counts["calls"] += counts["primary"]  # these are not counted twice: it is the hot path
        return FallbackStatistics(
            **counts,
            degraded=MappingProxyType(degraded),
            breaker=BreakerState.CLOSED if worst is None else worst.state,
            breaker_for=0.0 if worst is None else worst.state_for,
            retry_in=None if retry_in == math.inf else retry_in,
            limit_rate=gates.limit_rate,
            mode=self._mode,
            keys=MappingProxyType(dict(gates.statistics())),
        )

    def _count(self, decision: Decision, *, again: bool = False) -> None:
        """Count a refusal; and in shadow mode what would have been held, once for each publish."""
        self._counts["refused"] += decision.action is RAISE
        if self._mode == "shadow" and decision.degrades and decision.reason is not None and not again:
            self._degraded[decision.reason] += 1

    def _failure_of(self, error: Exception) -> Failure:
        return failure_of(error, refused=bool(self._degrades(error)))


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _predicate(degrade_on: DegradeOn) -> Callable[[Exception], bool]:
    types = degrade_on if isinstance(degrade_on, tuple) else (degrade_on,)
    if all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
        return lambda error: isinstance(error, types)  # type: ignore[arg-type]
    if isinstance(degrade_on, type | tuple) or not callable(degrade_on):
        raise TypeError("degrade_on must be exception types, or a function of an exception")
    if inspect.iscoroutinefunction(degrade_on):
        raise TypeError("degrade_on must be an ordinary function: an async one answers too late")
    return degrade_on
