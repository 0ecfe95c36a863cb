"""One publish, written once and without I/O, and what the fallbacks of all worlds have in common.

A world drives a publish by its steps, and does the I/O of each in a `with` block of its own kind:

    steps = Publish(router, message, now)  # raises where nothing is to be called and nothing to be held
    if steps.calls:
        with steps:  # lets nothing out for which the message is to be held
            steps.handle = await publish_delayed(message, delay)
    if steps.holds:
        with steps:
            await queue.hold(message, room_timeout)
    return steps.receipt()
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
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

from .handles import Cancelled
from .returning import Returning
from .router import DEFAULT_DEGRADE_ON, DegradeOn, FallbackStatistics, MayDegrade, Receipt, Router
from .routing import CALL, CALL_IT, HOLD, LOCAL, NO_ANSWER, PRIMARY, Ambiguous, Mode

_P = TypeVar("_P", bound=Callable[..., object])
_Q = TypeVar("_Q")
_C = TypeVar("_C", bound=Callable[..., object])

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

    __slots__ = (
        "_gate",
        "_may_degrade",
        "_reason",
        "_router",
        "_ticket",
        "_why",
        "calls",
        "handle",
        "holds",
        "message",
    )

    def __init__(self, router: Router, message: Message, now: float) -> None:
        """Ask the gate. Raises `BreakerOpen` or `RateLimited` where it refuses what may not be held."""
        self.message = message
        self._router = router
        self._may_degrade = may_degrade = router.may_degrade is None or bool(router.may_degrade(message))
        self._gate = gate = router.gates.only or router.gates.of(message)
        self._ticket, decision = router.ask(gate, message, may_degrade, now)
        self._reason = reason = decision.reason
        self._why: Exception | None = None
        self.handle: object = None
        """What the primary has returned."""
        if decision is CALL_IT:
            self.calls, self.holds = True, False
            return
        self.calls = decision.action is CALL
        """Whether the primary is to be called, in a `with` block."""
        self.holds = decision.action is HOLD
        """Whether the message is then to be held, in a `with` block."""
        if not self.calls:
            assert reason is not None  # noqa: S101 (the primary is not spared for nothing)
            if not self.holds:
                raise gate.refusal(reason)
            self._why = gate.refusal(reason)

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
            self._router.taken(self._gate, self._ticket)
            if self._router.keeps_handles:
                self._router.keep(self.message, self.handle)
        elif isinstance(raised, Exception):
            error = failure_in(raised, timed_out=False) or raised
            if self._router.keeps_handles and isinstance(error, NO_ANSWER):
                self._router.keep(self.message, None)  # it may have taken it
            decision = self._router.failed(self._gate, self._ticket, error, self._may_degrade)
            if decision.action is HOLD:
                self.holds, self._reason, self._why = True, decision.reason, error
        else:  # the call was cut off, and the caller has given it up
            self._router.cut_off(self._gate, self._ticket)
        return self.holds

    def receipt(self) -> Receipt:
        """What became of the message."""
        # Taken from here, or the error's traceback, the driver's frame and this would hold each other.
        why, self._why = self._why, None
        route = PRIMARY if why is None else LOCAL
        return Receipt(route, self.message, why, self._router.at_risk(), self.handle)

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


class BaseFallback(ABC, Generic[_P, _Q, _C]):
    """What every fallback is, beside its own `publish`: one constructor, and the controls."""

    def __init__(
        self,
        publish_delayed: _P,
        queue: _Q,
        *,
        degrade_on: DegradeOn = DEFAULT_DEGRADE_ON,
        ambiguous: Ambiguous = "raise",
        may_degrade: MayDegrade | None = None,
        mode: Mode = "active",
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 (it is frozen)
        limit: Limit | NotGiven | None = NOT_GIVEN,
        publish_timeout: float | None = 30.0,
        key: Callable[[Message], Hashable] | None = None,
        cancel_delayed: _C | None = None,
        room_timeout: float | None = 0.0,
        hand_back: bool = False,
        hand_back_after: float = 10.0,
        listener: Listener | None = None,
    ) -> None:
        """Wrap `publish_delayed(message, delay)`, the primary's own publish, the delay in seconds.

        `degrade_on` is exception types, or a function of the exception, that mean that the primary has not
        taken the message. After a time-out or a lost connection nobody can tell: with "degrade" such a
        message is held too, and may arrive twice under one id; with "raise" the caller decides.
        `may_degrade(message)` says whether a message may be held at all; for one that may not, the caller
        gets the error. `mode` "shadow" decides and counts, but always calls the primary and holds nothing;
        "forced" never calls it.

        `limit` is by default the queue's own, which due sends share and come first in; else an
        `AdaptiveLimit`, a `RateLimit` that is known, or None. `breaker=None` always calls the primary. A
        call that takes more than `publish_timeout` seconds (None: no limit) has timed out, and so has one
        that is answered later. With `key(message)`, a topic or a tenant, say, each key has a limit and a
        breaker of its own, copied from these, for the 1,024 keys that were used last. `room_timeout` is how
        many seconds a publish may wait when the local queue is full too: by default not at all, since at
        the peak a caller must not hang; None waits for ever. `cancel_delayed(id, handle)` is for `cancel`:
        it gets what `publish_delayed` has returned for the message.

        With `hand_back`, whenever the primary can be called, messages of the queue that are more than
        `hand_back_after` seconds from due go back to it, with the delay that is left; that needs a queue
        with `cancellable=True`, in memory. `listener.on_event` is told what happens. Raises `TypeError` and
        `ValueError` for an argument that is wrong.
        """
        arguments.check_async("publish_delayed", publish_delayed)
        if cancel_delayed is not None:
            arguments.check_async("cancel_delayed", cancel_delayed)
        self._publish_delayed = publish_delayed
        self._cancel_delayed = cancel_delayed
        self._queue = queue
        self._publish_timeout = arguments.check_seconds("publish_timeout", publish_timeout, zero=False)
        world = self._world()
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
            key=key,
            publish_timeout=self._publish_timeout,
            listener=listener,
        )
        self._router.keeps_handles = cancel_delayed is not None
        if hand_back:
            memory = world.memory
            if memory is None or not memory.is_cancellable:
                raise ValueError("hand_back needs a queue in memory that was opened with cancellable=True")
            if mode == "active":
                returning = Returning(
                    memory,
                    self._router,
                    world.hand_back,
                    world.on_loop,
                    after=after,
                    timeout=self._publish_timeout,
                    listener=listener,
                )
                world.on_loop(returning.begin)

    @abstractmethod
    def _world(self) -> World:
        """Check what was given, as far as worlds differ in it, and say where this fallback lives."""

    def force_open(self) -> None:
        """Do not call the primary until `force_closed`, `disable` or `reset`."""
        self._router.gates.command(Breaker.force_open)

    def force_closed(self) -> None:
        """Close the breaker now; from then on it works as ever."""
        self._router.gates.command(Breaker.force_closed)

    def disable(self) -> None:
        """Call the primary whatever comes of it, until `force_open`, `force_closed` or `reset`."""
        self._router.gates.command(Breaker.disable)

    def reset(self) -> None:
        """Set the breaker back to how it was at the beginning."""
        self._router.gates.command(Breaker.reset)

    def _whom(self, receipt: Receipt | str) -> tuple[str, tuple[object] | None]:
        """The id of a message, and what the primary gave for it: None where it has nothing to cancel."""
        if not isinstance(receipt, Receipt | str):
            raise TypeError(f"receipt must be a Receipt or an id, not {type(receipt).__name__}")
        name = receipt if isinstance(receipt, str) else receipt.message.id
        if isinstance(receipt, Receipt) and receipt.route is PRIMARY and self._cancel_delayed is not None:
            return name, (receipt.handle,)
        return name, self._router.handles.get(name, self._router.clock())

    def _cancelled(self, id: str, *, here: bool, asked: bool) -> Cancelled:
        if asked:
            self._router.handles.forget(id)
        return Cancelled.LOCAL if here else Cancelled.ASKED if asked else Cancelled.UNKNOWN

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        return self._router.statistics()
