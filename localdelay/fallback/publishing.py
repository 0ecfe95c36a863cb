"""One publish, written once and without I/O, and what the fallbacks of all worlds have in common.

A world drives a publish by its steps, and does the I/O of each in a `with` block of its own kind:

    steps = Publish(router, message, now)  # raises where nothing is to be called and nothing to be held
    if steps.calls:
        with steps:  # lets nothing out for which the message is to be held
            await publish_delayed(message, delay)
    if steps.holds:
        with steps:
            await queue.hold(message, room_timeout)
    return steps.receipt()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

import attrs

from localdelay import arguments
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.breaker import Breaker, BreakerPolicy
from localdelay.errors import QueueFull, Throttled
from localdelay.limit import Limit
from localdelay.listening import Listener
from localdelay.message import Message
from localdelay.nurseries import failure_in
from localdelay.queue.queue import DelayQueue
from localdelay.queue.sending import HandBack

from .returning import Returning
from .router import DEFAULT_DEGRADE_ON, DegradeOn, FallbackStatistics, MayDegrade, Receipt, Router
from .routing import CALL, HOLD, LOCAL, PRIMARY, Mode

_P = TypeVar("_P", bound=Callable[..., object])
_Q = TypeVar("_Q")

_NO_ROOM = (QueueFull, Throttled, ConnectionError)
"""What a local queue raises that can't hold a message for now."""


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
    on_loop: Callable[[Callable[[], None]], object]
    """Has something done on that loop, soon or at once, and behind all that was held before."""


class Publish:
    """One message on its way. Each of its `with` blocks is one step, in which the driver does the I/O."""

    __slots__ = ("_may_degrade", "_reason", "_router", "_ticket", "_why", "calls", "holds", "message")

    def __init__(self, router: Router, message: Message, now: float) -> None:
        """Ask the gate. Raises `BreakerOpen` or `RateLimited` where it refuses what may not be held."""
        self.message = message
        self._router = router
        self._may_degrade = may_degrade = router.may_degrade is None or bool(router.may_degrade(message))
        self._ticket, decision = router.ask(message, may_degrade, now)
        self._reason = reason = decision.reason
        self._why: Exception | None = None
        self.calls = decision.action is CALL
        """Whether the primary is to be called, in a `with` block."""
        self.holds = decision.action is HOLD
        """Whether the message is then to be held, in a `with` block."""
        if not self.calls:
            assert reason is not None  # noqa: S101 (the primary is not spared for nothing)
            if not self.holds:
                raise router.gate.refusal(reason)
            self._why = router.gate.refusal(reason)

    def __enter__(self) -> None:
        """Begin the step."""

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self.holds:
            self.holds = False
            self._held(raised)
            return False
        self.calls = False
        if raised is None:
            self._router.taken(self._ticket)
        elif isinstance(raised, Exception):
            error = failure_in(raised, timed_out=False) or raised
            decision = self._router.failed(self._ticket, error, self._may_degrade)
            if decision.action is HOLD:
                self.holds, self._reason, self._why = True, decision.reason, error
        else:  # the call was cut off, and the caller has given it up
            self._router.cut_off(self._ticket)
        return self.holds

    def receipt(self) -> Receipt:
        """What became of the message."""
        # Taken from here, or the error's traceback, the driver's frame and this would hold each other.
        why, self._why = self._why, None
        return Receipt(PRIMARY if why is None else LOCAL, self.message, why, self._router.at_risk())

    def _held(self, raised: BaseException | None) -> None:
        reason, why = self._reason, self._why
        assert reason is not None  # noqa: S101 (what is held is held for a reason)
        assert why is not None  # noqa: S101
        if raised is None:
            self._router.held(self.message, reason, why)
            return
        self._why = None  # as in `receipt`
        if isinstance(raised, Exception):
            raised.__cause__ = why
            self._router.not_held(self.message, reason, why, full=isinstance(raised, _NO_ROOM))


class BaseFallback(ABC, Generic[_P, _Q]):
    """What every fallback is, beside its own `publish`: one constructor, and the controls."""

    def __init__(
        self,
        publish_delayed: _P,
        queue: _Q,
        *,
        degrade_on: DegradeOn = DEFAULT_DEGRADE_ON,
        ambiguous: str = "raise",
        may_degrade: MayDegrade | None = None,
        mode: Mode = "active",
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 (it is frozen)
        limit: Limit | NotGiven | None = NOT_GIVEN,
        publish_timeout: float | None = 30.0,
        room_timeout: float | None = 0.0,
        hand_back: bool = False,
        hand_back_after: float = 10.0,
        listener: Listener | None = None,
    ) -> None:
        """Wrap `publish_delayed(message, delay)`, the primary's own publish, the delay in seconds.

        `degrade_on` says which of its exceptions mean that it has refused the message and not taken it:
        exception types, or a function of the exception. After a time-out or a lost connection nobody can
        tell: with `ambiguous="degrade"` such a message is held too, and may arrive twice under one id; with
        "raise" the caller decides. `may_degrade(message)` says whether a message may be held at all; for
        one that may not, the caller gets the error.

        `mode` "shadow" decides and counts, but always calls the primary and holds nothing; "forced" never
        calls it. `breaker` says when the primary is not called for a while (None: it always is), and
        `limit` how many calls it bears, a `RateLimit` that is known or an `AdaptiveLimit` that finds it: what
        is over it degrades before it is refused. Beside an `AdaptiveLimit`, what the primary refuses opens no
        breaker: that is then for a primary that is down.
        `room_timeout` is how many seconds a publish may wait when the local queue is full too: by default
        not at all, since at the peak a caller must not hang; None waits for ever.

        With `hand_back`, whenever the primary can be called, messages of the queue that are more than
        `hand_back_after` seconds from due go back to it, with the delay that is left; that needs a queue
        with `cancellable=True`, in memory. `listener.on_event` is told what happens. Raises `TypeError` and
        `ValueError` for an argument that is wrong.
        """
        arguments.check_async("publish_delayed", publish_delayed)
        self._publish_delayed = publish_delayed
        self._queue = queue
        world = self._world()
        self._publish_timeout = arguments.check_seconds("publish_timeout", publish_timeout, zero=False)
        self._room_timeout = arguments.check_seconds("room_timeout", room_timeout, zero=True)
        after = arguments.at_least("hand_back_after", hand_back_after, 0, "a number of seconds")
        self._router = Router(
            world.clock,
            world.at_risk,
            degrade_on=degrade_on,
            ambiguous=ambiguous,
            may_degrade=may_degrade,
            mode=mode,
            breaker=breaker,
            limit=world.limit if limit is NOT_GIVEN else limit,
            publish_timeout=self._publish_timeout,
            listener=listener,
        )
        if hand_back:
            memory = world.memory
            if memory is None or not memory.is_cancellable:
                raise ValueError("hand_back needs a queue in memory that was opened with cancellable=True")
            if mode == "active":
                returning = Returning(
                    memory, self._router, world.hand_back, world.on_loop, after=after, listener=listener
                )
                world.on_loop(returning.begin)

    @abstractmethod
    def _world(self) -> World:
        """Check what was given, as far as worlds differ in it, and say where this fallback lives."""

    def force_open(self) -> None:
        """Do not call the primary until `force_closed`, `disable` or `reset`."""
        self._router.gate.command(Breaker.force_open)

    def force_closed(self) -> None:
        """Close the breaker now; from then on it works as ever."""
        self._router.gate.command(Breaker.force_closed)

    def disable(self) -> None:
        """Call the primary whatever comes of it, until `force_open`, `force_closed` or `reset`."""
        self._router.gate.command(Breaker.disable)

    def reset(self) -> None:
        """Set the breaker back to how it was at the beginning."""
        self._router.gate.command(Breaker.reset)

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        return self._router.statistics()
