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
from collections.abc import Awaitable, Callable, Hashable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, get_args

from localdelay import arguments
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.breaker import OTHER, TAKEN, Breaker, BreakerPolicy
from localdelay.errors import QueueFull, Throttled
from localdelay.gate import Gate
from localdelay.keys import Key, Limits, check_key
from localdelay.limit import Limit
from localdelay.listening import Degraded, Full, Lines, Listener, Reason, check_listener, tell
from localdelay.message import Message
from localdelay.nurseries import failure_in

from .gates import Gates
from .handles import Cancelled, Handles
from .returning import Returning
from .router import (
    DEFAULT_DEGRADE_ON,
    DegradeOn,
    FallbackStatistics,
    MayDegrade,
    Receipt,
    Router,
    World,
    predicate,
)
from .routing import CALL, HOLD, LOCAL, MODES, NO_ANSWER, PRIMARY, Ambiguous, Mode, decide


class Cancels(Protocol):
    """What any queue of a fallback's is."""

    def cancel(self, id: str) -> bool | Awaitable[bool]:
        """Take a message out again; whether it was here, and will never be sent."""


_P = TypeVar("_P", bound=Callable[..., object])
_Q = TypeVar("_Q", bound=Cancels)
_C = TypeVar("_C", bound=Callable[..., object])

_NO_ROOM = (QueueFull, Throttled, ConnectionError)
"""What a local queue raises that can't hold a message for now."""
_QUEUES = ("localdelay.DelayQueue", "localdelay.threads.DelayQueue", "localdelay.aio.DelayQueue")


class Publish:
    """One message on its way. Each of its `with` blocks is one step, in which the driver does the I/O."""

    # Of the class, where hardly any publish has others: to set them costs as much as to ask the gate.
    calls = True
    """Whether the primary is to be called, in a `with` block."""
    handle: object = None
    """What the primary has returned."""
    holds = False
    """Whether the message is then to be held, in a `with` block."""
    _reason: Reason | None = None
    _why: Exception | None = None

    def __init__(self, router: Router, message: Message, now: float) -> None:
        """Ask the gate. Raises `BreakerOpen` or `RateLimited` where it refuses what may not be held."""
        self.message = message
        self._router = router
        self._may_degrade = may_degrade = router.may_degrade is None or bool(router.may_degrade(message))
        self._gate = gate = router.gates.only or router.gates.of(message)
        # In forced mode nothing is called, so that there is nothing to ask the gate for.
        self._ticket, refusal = (None, None) if router.mode == "forced" else gate.ask(message, now)
        if self._ticket is not None:
            return
        decision = decide(router.mode, may_degrade, refusal)
        router.count("calls_saved", decision)
        self.calls, self.holds = decision.action is CALL, decision.action is HOLD
        if not self.calls:
            self._reason = reason = decision.reason
            assert reason is not None  # noqa: S101 (the primary is not spared for nothing)
            if not self.holds:
                raise gate.refusal(reason, now)
            self._why = gate.refusal(reason, now)

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
        router = self._router
        if raised is None:
            with router.lock:
                router.counts["primary"] += 1
            if self._ticket is not None:
                self._gate.record(self._ticket, TAKEN)
            if router.handles is not None:
                router.remember(self.message, self.handle)
        elif isinstance(raised, Exception):
            self._failed(failure_in(raised, timed_out=False) or raised)
        else:
            self._cut_off()  # and the caller has given it up
        return self.holds

    def receipt(self) -> Receipt:
        """What became of the message."""
        # Taken from here, or the error's traceback, the driver's frame and this would hold each other.
        why, self._why = self._why, None
        route = PRIMARY if why is None else LOCAL
        return Receipt(route, self.message, why, self._router.world.at_risk(), self.handle)

    def _failed(self, error: Exception) -> None:
        """The call has failed: it is decided whether the message is to be held, or the error raised."""
        router, ticket = self._router, self._ticket
        if isinstance(error, NO_ANSWER) and not isinstance(error, Throttled):
            router.remember(self.message, None)  # it may have taken it
        try:
            outcome, reason = router.judge(error)
        except BaseException:  # `degrade_on` is a stranger's; the ticket must come back
            self._cut_off()
            raise
        if ticket is not None:
            self._gate.record(ticket, outcome, error)
        decision = decide(router.mode, self._may_degrade, reason, has_failed=True)
        router.count("calls", decision, again=ticket is None)
        if decision.action is HOLD:
            self.holds, self._reason, self._why = True, reason, error

    def _cut_off(self) -> None:
        """The call was cancelled, or says nothing."""
        self._router.count("calls")
        if self._ticket is not None:
            self._gate.record(self._ticket, OTHER)

    def _held(self, raised: BaseException | None) -> None:
        router, reason, why = self._router, self._reason, self._why
        assert reason is not None  # noqa: S101 (what is held is held for a reason)
        assert why is not None  # noqa: S101
        if raised is None:
            with router.lock:
                router.counts["local"] += 1
                router.degraded[reason] += 1
            router.on_held()
            if router.listener is not None:
                tell(router.listener, Degraded(self.message, reason, why, router.world.at_risk()))
            return
        self._why = None  # as in `receipt`
        if isinstance(raised, Exception):
            raised.__cause__ = why
            router.count("refused")
            if isinstance(raised, _NO_ROOM):
                tell(router.listener, Full(self.message, reason, why))


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
        key: Key | None = None,
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
        breaker of its own, copied from these, for the 1,024 keys that were used last. By default it is the
        `key` that the queue has, if it has one, and then its limits are shared key by key, due sends first;
        with another `key` nothing is shared. `room_timeout` is how many seconds a publish may wait when the
        local queue is full too: by default not at all, since at the peak a caller must not hang; None waits
        for ever. `cancel_delayed(id, handle)` is for `cancel`: it gets what `publish_delayed` has returned
        for the message.

        With `hand_back`, whenever the primary can be called, messages of the queue that are more than
        `hand_back_after` seconds from due go back to it, with the delay that is left; that needs a queue
        with `cancellable=True`, in memory. `listener.on_event` is told what happens. Raises `TypeError` and
        `ValueError` for an argument that is wrong.
        """
        self._check("publish_delayed", publish_delayed)
        if cancel_delayed is not None:
            self._check("cancel_delayed", cancel_delayed)
        self._publish_delayed = publish_delayed
        self._cancel_delayed = cancel_delayed
        self._queue = queue
        self._publish_timeout = arguments.check_seconds("publish_timeout", publish_timeout, zero=False)
        world = self._world()
        self._room_timeout = arguments.check_seconds("room_timeout", room_timeout, zero=True)
        after = arguments.at_least("hand_back_after", hand_back_after, 0, "a number of seconds")
        arguments.check_kind("breaker", breaker, BreakerPolicy | None, "a BreakerPolicy or None")
        keys = None if world.memory is None else world.memory.core.keys
        check_key(key)
        if key is None and keys is not None:
            key = keys.key
        limit = world.limit if limit is NOT_GIVEN else limit
        arguments.check_kind("limit", limit, Limit | None, "a limit or None")
        if may_degrade is not None:
            arguments.check_callable("may_degrade", may_degrade)
        for name, value, allowed in (
            ("ambiguous", ambiguous, get_args(Ambiguous)),
            ("mode", mode, MODES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        check_listener(listener)
        lines = Lines()
        if keys is not None and key == keys.key and limit is world.limit:
            limits = keys.limits
        else:  # keys of another kind are of other things, though they may be called alike
            limits = Limits(None if key is None else limit)

        def gate(its_key: Hashable) -> Gate:
            of_key = limit if key is None else limits.of(its_key)
            return Gate(breaker, of_key, listener, world.clock, self._publish_timeout, lines)

        self._router = Router(
            world,
            predicate(degrade_on),
            ambiguous == "degrade",
            may_degrade,
            mode,
            Gates(gate, key),
            None if cancel_delayed is None else Handles(),
            listener,
        )
        if hand_back:
            memory = world.memory
            if memory is None or not memory.is_cancellable:
                raise ValueError("hand_back needs a queue in memory that was opened with cancellable=True")
            if mode == "active":
                returning = Returning(memory, self._router, after=after, timeout=self._publish_timeout)
                world.on_loop(returning.begin)

    def _check(self, name: str, given: object) -> None:
        """Raise a `TypeError` unless this world calls such a function."""
        arguments.check_async(name, given)

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

    async def cancel(self, receipt: Receipt | str) -> Cancelled:
        """Cancel a message wherever it is, by its receipt or its id; say where that was.

        Out of the local queue; or, with `cancel_delayed`, by asking the primary where it may have taken the
        message, which is not due yet. Raises what `cancel_delayed` raises, `RuntimeError` where the queue was
        opened with `cancellable=False` and the primary has it not, and `TypeError` for what is no id.
        """
        arguments.check_kind("receipt", receipt, Receipt | str, "a Receipt or an id")
        router = self._router
        router.check_process()
        name = receipt if isinstance(receipt, str) else receipt.message.id
        handles, memory = router.handles, router.world.memory
        taken: tuple[object] | None = None  # what the primary gave, where it may have something to cancel
        if handles is not None and isinstance(receipt, Receipt) and receipt.route is PRIMARY:
            taken = (receipt.handle,)
        elif handles is not None:
            taken = handles.get(name, router.world.clock())
        here = False
        if taken is None or memory is None or memory.is_cancellable:
            found = self._queue.cancel(name)
            here = found if isinstance(found, bool) else await found
        if taken is not None and handles is not None and self._cancel_delayed is not None:
            await self._call(self._cancel_delayed, name, *taken)
            handles.forget(name)
        return Cancelled.LOCAL if here else Cancelled.UNKNOWN if taken is None else Cancelled.ASKED

    @abstractmethod
    async def _call(self, function: Callable[..., Any], *args: object) -> object:
        """Call the primary. One that takes too long ends in a `TimeoutError`."""

    def statistics(self) -> FallbackStatistics:
        """What was published where and why, and how the breaker stands."""
        return self._router.statistics()


def not_this_ones(kind: str, queue: object) -> TypeError:
    """What to raise for a queue that is none of this kind; of another world's it names the fallback, too."""
    module = type(queue).__module__
    if module == "localdelay.queue.queue":
        module = "localdelay"
    name = f"{module}.{type(queue).__name__}"
    door = f": for that there is {module}.Fallback" if name in _QUEUES else ""
    return TypeError(f"queue must be a {kind}, not {name}{door}")
