"""The degrade decision with all that it needs to know, for every kind of caller; from any thread.

Who publishes asks before it calls the primary, says what came of the call, and is told what to do. It calls
the primary and holds messages itself, in the way of its own world.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

from localdelay.breaker import BreakerPolicy, BreakerState, Outcome
from localdelay.errors import Throttled
from localdelay.gate import Gate
from localdelay.limit import RateLimit
from localdelay.listening import Listener, Reason, check_listener, tell
from localdelay.message import Message

from .events import Degraded, Full
from .routing import MODES, Action, Decision, Failure, Mode, Route, Situation, decide, failure_of

DegradeOn: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]
MayDegrade: TypeAlias = Callable[[Message], bool]

_CALL = Decision(Action.CALL)


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


@attrs.frozen(kw_only=True)
class FallbackStatistics:
    """What a fallback has done, and how its primary is. Times in seconds."""

    primary: int
    """Published messages that the primary has taken."""
    local: int
    """Published messages that are or were held in memory."""
    refused: int
    """Published messages that neither took: the caller got an error."""
    degraded: Mapping[Reason, int]
    """How often each reason held a message in memory; in shadow mode, would have."""
    calls: int
    """Calls of the primary by publishes."""
    calls_saved: int
    """Calls that were not made because they would have failed; in shadow mode, would not have been."""
    handed_back: int
    """Messages that the primary took back out of memory."""
    breaker: BreakerState
    """Whether the primary is called."""
    breaker_for: float
    """How long it has been in this state."""
    retry_in: float | None
    """Until an open breaker lets a call through; 0 where calls go through, None where it was forced open."""
    mode: Mode
    """As it was made."""


@attrs.frozen
class Asked:
    """The answer to `Router.ask`, which goes back to the router with what came of it."""

    decision: Decision
    why: Exception | None
    """The reason as an exception, where the primary is not to be called."""
    ticket: int | None
    may_degrade: bool


@attrs.define
class _Counts:
    primary: int = 0
    local: int = 0
    refused: int = 0
    calls: int = 0
    saved: int = 0
    handed_back: int = 0
    reasons: dict[Reason, int] = attrs.field(factory=lambda: dict.fromkeys(Reason, 0))


class Router:
    """Decides where messages go, and counts where they went."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        degrade_on: DegradeOn,
        ambiguous: str,
        may_degrade: MayDegrade | None,
        mode: Mode,
        breaker: BreakerPolicy | None,
        limit: RateLimit | None,
        listener: Listener | None,
    ) -> None:
        if breaker is not None and not isinstance(breaker, BreakerPolicy):
            raise TypeError(f"breaker must be a BreakerPolicy or None, not {type(breaker).__name__}")
        if limit is not None and not isinstance(limit, RateLimit):
            raise TypeError(f"limit must be a RateLimit or None, not {type(limit).__name__}")
        if may_degrade is not None and not callable(may_degrade):
            raise TypeError(f"may_degrade must be a function, not {type(may_degrade).__name__}")
        _check_one_of("ambiguous", ambiguous, ("raise", "degrade"))
        _check_one_of("mode", mode, MODES)
        check_listener(listener)
        self._degrades = _predicate(degrade_on)
        self._degrade_ambiguous = ambiguous == "degrade"
        self._may_degrade = may_degrade
        self._mode = mode
        self._listener = listener
        self._lock = threading.Lock()  # for the counts
        self._counts = _Counts()
        self.gate = Gate(breaker, limit, listener, clock)

    def ask(self, message: Message) -> Asked:
        """Say whether to call the primary; where not, whether to hold the message or to raise `why`."""
        may_degrade = self._may_degrade is None or bool(self._may_degrade(message))
        if self._mode == "forced":
            return self._spared(Reason.FORCED, may_degrade)
        ticket, refusal = self.gate.ask()
        if refusal is not None:
            return self._spared(refusal, may_degrade)
        with self._lock:
            self._counts.calls += 1
        return Asked(_CALL, None, ticket, may_degrade)

    def taken(self, asked: Asked) -> None:
        """The primary has taken the message."""
        with self._lock:
            self._counts.primary += 1
        self._record(asked, Outcome.TAKEN)

    def cut_off(self, asked: Asked) -> None:
        """The call was cancelled."""
        self._record(asked, Outcome.OTHER)

    def failed(self, asked: Asked, error: Exception) -> Decision:
        """The call has failed: say whether to hold the message or to raise the error."""
        try:
            failure = self._failure_of(error)
        except BaseException:
            self.cut_off(asked)
            raise
        self._record(asked, self._outcome(failure), error)
        decision = decide(
            Situation(
                self._mode,
                asked.may_degrade,
                degrade_ambiguous=self._degrade_ambiguous,
                failure=failure,
            )
        )
        with self._lock:
            if self._mode == "shadow" and decision.action is Action.HOLD and decision.reason is not None:
                self._counts.reasons[decision.reason] += asked.ticket is not None  # else counted already
                decision = Decision(Action.RAISE, decision.reason)
            self._counts.refused += decision.action is Action.RAISE
        return decision

    def held(self, message: Message, reason: Reason, why: Exception, at_risk: int) -> Receipt:
        """The message is held in memory."""
        with self._lock:
            self._counts.local += 1
            self._counts.reasons[reason] += 1
        tell(self._listener, Degraded(message, reason, why, at_risk))
        return Receipt(Route.LOCAL, message, why, at_risk)

    def full(self, message: Message, reason: Reason, why: Exception) -> None:
        """There was no room to hold the message."""
        with self._lock:
            self._counts.refused += 1
        tell(self._listener, Full(message, reason, why))

    def handed_back(self) -> None:
        """The primary has taken a message back."""
        with self._lock:
            self._counts.handed_back += 1

    def outcome_of(self, error: Exception | None) -> Outcome:
        """What a hand-back that ended in this says about a limit. It never raises."""
        if error is None:
            return Outcome.TAKEN
        try:
            return self._outcome(self._failure_of(error))
        except Exception:  # noqa: BLE001 (of `degrade_on`, a stranger's: the queue must not end by it)
            return Outcome.OTHER

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        retry_in = self.gate.retry_in
        with self._lock:
            counts = attrs.evolve(self._counts, reasons=dict(self._counts.reasons))
        return FallbackStatistics(
            primary=counts.primary,
            local=counts.local,
            refused=counts.refused,
            degraded=MappingProxyType(counts.reasons),
            calls=counts.calls,
            calls_saved=counts.saved,
            handed_back=counts.handed_back,
            breaker=self.gate.state,
            breaker_for=self.gate.state_for,
            retry_in=None if retry_in == math.inf else retry_in,
            mode=self._mode,
        )

    def _spared(self, reason: Reason, may_degrade: bool) -> Asked:
        decision = decide(
            Situation(
                self._mode,
                may_degrade,
                breaker_permits=reason is not Reason.BREAKER_OPEN,
                within_limit=reason is not Reason.RATE_LIMITED,
            )
        )
        shadow = self._mode == "shadow"
        with self._lock:
            self._counts.saved += 1
            self._counts.calls += shadow
            self._counts.reasons[reason] += shadow and decision.action is Action.HOLD
            self._counts.refused += not shadow and decision.action is Action.RAISE
        if shadow:
            return Asked(_CALL, None, None, may_degrade)
        return Asked(decision, self.gate.refusal(reason), None, may_degrade)

    def _record(self, asked: Asked, outcome: Outcome, error: Exception | None = None) -> None:
        if asked.ticket is not None:
            self.gate.record(asked.ticket, outcome, error)

    def _failure_of(self, error: Exception) -> Failure:
        return failure_of(error, refused=bool(self._degrades(error)))

    def _outcome(self, failure: Failure) -> Outcome:
        # Also where nobody can tell: a primary that does not answer is not to be called either.
        if failure is Failure.REFUSED or (failure is Failure.AMBIGUOUS and self._degrade_ambiguous):
            return Outcome.THROTTLED
        return Outcome.OTHER


class Controls:
    """What every fallback offers beside `publish`."""

    _router: Router

    def force_open(self) -> None:
        """Do not call the primary until `force_closed`, `disable` or `reset`."""
        self._router.gate.force_open()

    def force_closed(self) -> None:
        """Close the breaker now; from then on it works as ever."""
        self._router.gate.force_closed()

    def disable(self) -> None:
        """Call the primary whatever comes of it, until `force_open`, `force_closed` or `reset`."""
        self._router.gate.disable()

    def reset(self) -> None:
        """Set the breaker back to how it was at the beginning."""
        self._router.gate.reset()

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        return self._router.statistics()


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


DEFAULT_DEGRADE_ON: DegradeOn = (Throttled,)
