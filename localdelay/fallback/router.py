"""What a fallback goes by and counts, for every kind of caller; from any thread."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Annotated, TypeAlias

import attrs

from localdelay import forks
from localdelay.breaker import OTHER, TAKEN, BreakerState, Outcome
from localdelay.errors import Throttled
from localdelay.limit import Limit
from localdelay.listening import Listener, Reason
from localdelay.message import Message
from localdelay.queue.queue import DelayQueue
from localdelay.queue.sending import HandBack
from localdelay.statistics import MessagesSoFar, Rate, TimesSoFar

from .gates import Gates, KeyStatistics
from .handles import Handles
from .routing import RAISE, Decision, Mode, Route, outcome_of, reason_of

DegradeOn: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]
MayDegrade: TypeAlias = Callable[[Message], bool]

DEFAULT_DEGRADE_ON: DegradeOn = (Throttled,)
_COUNTS = ("primary", "local", "refused", "calls", "calls_saved", "handed_back")


@attrs.frozen(slots=False)  # with slots, to make a frozen one takes twice as long
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
    keys: Mapping[Hashable, KeyStatistics] = attrs.field(factory=dict)
    """The same of each key that was used lately; with keys, the above is of the one that is worst off, and
    `limit_rate` is that of all that are limited."""


@attrs.frozen
class World:
    """Where a fallback lives, and how its hand-backs get onto the loop of its queue."""

    clock: Callable[[], float]
    """The time on the queue's clock, in seconds; in any thread."""
    at_risk: Callable[[], int]
    """How many messages of the queue a crash now would lose; in any thread."""
    limit: Limit | None
    """What paces the queue's own sends."""
    memory: DelayQueue | None
    """The queue whose messages can go back to the primary, if there is one."""
    hand_back: HandBack
    """Calls the primary, awaited on that queue's loop."""
    on_loop: Callable[[Callable[[], object]], object]
    """Has something done on that loop, soon or at once, and behind all that was held before."""


@attrs.define(eq=False)
class Router:
    """What the publishes of a fallback go by, and what they have come to. In any thread."""

    world: World
    degrades: Callable[[Exception], bool]
    """Whether an error means that the primary has not taken the message."""
    degrade_ambiguous: bool
    may_degrade: MayDegrade | None
    """Whether a message may be held at all, as the caller says; None: each may."""
    mode: Mode
    gates: Gates
    """What says whether the primary is called."""
    handles: Handles | None
    """What it gave for what it took; None where nothing is cancelled there."""
    listener: Listener | None
    on_held: Callable[[], None] = lambda: None
    """Called when a message is held, in the thread that publishes it."""
    _forks: int = attrs.field(factory=lambda: forks.count)
    lock: threading.RLock = attrs.field(factory=threading.RLock)
    """For the counts; as a gate's."""
    counts: dict[str, int] = attrs.field(factory=lambda: dict.fromkeys(_COUNTS, 0))
    degraded: dict[Reason, int] = attrs.field(factory=lambda: dict.fromkeys(Reason, 0))

    def check_process(self) -> None:
        """Raise `QueueClosed` in a forked child. Before any lock: the thread that holds it may be missing."""
        if self._forks != forks.count:
            raise forks.not_ours()

    def count(self, what: str, decision: Decision | None = None, *, again: bool = False) -> None:
        """Count it once more, and what was decided: in shadow mode also what would be held, once."""
        with self.lock:
            self.counts[what] += 1
            if decision is not None:
                self.counts["refused"] += decision.action is RAISE
                if self.mode == "shadow" and decision.degrades and decision.reason and not again:
                    self.degraded[decision.reason] += 1

    def remember(self, message: Message, handle: object) -> None:
        """The primary has this message, or may have it: it can be cancelled there until it is due."""
        if self.handles is not None:
            self.handles.remember(message.id, message.execute_at, handle, self.world.clock())

    def judge(self, error: Exception) -> tuple[Outcome, Reason | None]:
        """What a failed call of the primary says, and is a reason for. Raises what `degrade_on` raises."""
        refused = bool(self.degrades(error))
        reason = reason_of(error, refused=refused, degrade_ambiguous=self.degrade_ambiguous)
        return outcome_of(error, refused=refused), reason

    def outcome_of(self, error: Exception | None) -> Outcome:
        """What a hand-back that ended in this says to the breaker. It never raises."""
        if error is None:
            return TAKEN
        try:
            return self.judge(error)[0]
        except Exception:  # noqa: BLE001 (of `degrade_on`, a stranger's: the queue must not end by it)
            return OTHER

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        gates, worst = self.gates, self.gates.worst
        retry_in = 0.0 if worst is None else worst.retry_in
        with self.lock:
            counts, degraded = self.counts.copy(), self.degraded.copy()
        counts["calls"] += counts["primary"]  # these are not counted twice: it is the hot path
        return FallbackStatistics(
            **counts,
            degraded=MappingProxyType(degraded),
            breaker=BreakerState.CLOSED if worst is None else worst.state,
            breaker_for=0.0 if worst is None else worst.state_for,
            retry_in=None if retry_in == math.inf else retry_in,
            limit_rate=gates.limit_rate,
            mode=self.mode,
            keys=dict(gates.statistics()),
        )


def predicate(degrade_on: DegradeOn) -> Callable[[Exception], bool]:
    """`degrade_on` as a function. Raises `TypeError` for what it can't be."""
    types = degrade_on if isinstance(degrade_on, tuple) else (degrade_on,)
    if all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
        return lambda error: isinstance(error, types)  # type: ignore[arg-type]
    if isinstance(degrade_on, type | tuple) or not callable(degrade_on):
        raise TypeError("degrade_on must be exception types, or a function of an exception")
    if inspect.iscoroutinefunction(degrade_on):
        raise TypeError("degrade_on must be an ordinary function: an async one answers too late")
    return degrade_on
