"""The degrade path: the primary's own delayed publish first, the local queue where that refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

import trio

from localdelay import arguments
from localdelay.breaker import BreakerPolicy
from localdelay.errors import QueueFull, Throttled
from localdelay.limit import RateLimit
from localdelay.listening import Listener
from localdelay.message import NO_HEADERS, Message, numbers
from localdelay.nurseries import failure_in
from localdelay.queue.queue import DelayQueue
from localdelay.timer import clock_parts

from .returning import Returning
from .router import DEFAULT_DEGRADE_ON, Controls, DegradeOn, MayDegrade, Receipt, Router
from .routing import Action, Decision, Mode, Route

PublishDelayed: TypeAlias = Callable[[Message, float], Awaitable[object]]


@runtime_checkable
class Holder(Protocol):
    """What a fallback needs of a queue that is not in memory, such as `redis_plan.RedisDelayQueue`."""

    @property
    def at_risk(self) -> int:
        """Messages that a crash of this process would lose."""

    def is_known(self, id: str) -> bool:
        """Whether a message with this id is pending, as far as can be told without waiting.

        Raises `TypeError` or `ValueError` for what can be no id.
        """

    async def hold(self, message: Message) -> None:
        """Take in this message, with its id, to be sent at its execute-at.

        Raises `QueueFull`, `Throttled` or `ConnectionError` where it can't be held.
        """


class Fallback(Controls):
    """Publishes through the primary, and through the local queue what the primary refuses."""

    def __init__(
        self,
        publish_delayed: PublishDelayed,
        queue: DelayQueue | Holder,
        *,
        degrade_on: DegradeOn = DEFAULT_DEGRADE_ON,
        ambiguous: str = "raise",
        may_degrade: MayDegrade | None = None,
        mode: Mode = "active",
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 (it is frozen)
        limit: RateLimit | None = None,
        room_timeout: float | None = 0.0,
        hand_back: bool = False,
        hand_back_after: float = 10.0,
        listener: Listener | None = None,
    ) -> None:
        """Wrap `await publish_delayed(message, delay)`, the delay in seconds.

        `degrade_on` says which of its exceptions mean that it has refused the message and not taken it:
        exception types, or a function of the exception. After a time-out or a lost connection nobody can
        tell: with `ambiguous="degrade"` such a message is held too, and may arrive twice under one id; with
        "raise" the caller decides. `may_degrade(message)` says whether a message may be held at all; for
        one that may not, the caller gets the error.

        `mode` "shadow" decides and counts, but always calls the primary and holds nothing; "forced" never
        calls it. `breaker` says when the primary is not called for a while (None: it always is), and
        `limit` how many calls it is known to bear: what is over it degrades before it is refused.
        `room_timeout` is how many seconds a publish may wait when the local queue is full too: by default
        not at all, since at the peak a caller must not hang; None waits for ever.

        With `hand_back`, whenever the primary can be called, messages of the queue that are more than
        `hand_back_after` seconds from due go back to it, with the delay that is left; that needs a queue
        with `cancellable=True`, in memory. `listener.on_event` is told what happens. Raises `TypeError` and
        `ValueError` for an argument that is wrong. To be made on the loop that runs the queue.
        """
        arguments.check_async("publish_delayed", publish_delayed)
        if not isinstance(queue, DelayQueue | Holder):
            raise TypeError(f"queue must be a DelayQueue, not {type(queue).__name__}")
        if hand_back and not (isinstance(queue, DelayQueue) and queue.is_cancellable):
            raise ValueError("hand_back needs a queue in memory that was opened with cancellable=True")
        self._publish_delayed = publish_delayed
        self._queue = queue
        self._numbers = numbers()
        self._room_timeout = arguments.check_seconds("room_timeout", room_timeout, zero=True)
        after = arguments.at_least("hand_back_after", hand_back_after, 0, "a number of seconds")
        read_clock, offset = clock_parts()  # for `statistics` in other threads
        self._router = Router(
            lambda: read_clock() + offset,
            degrade_on=degrade_on,
            ambiguous=ambiguous,
            may_degrade=may_degrade,
            mode=mode,
            breaker=breaker,
            limit=limit,
            listener=listener,
        )
        self._returning: Returning | None = None
        if hand_back and mode == "active" and isinstance(queue, DelayQueue):
            self._returning = Returning(
                queue.hand_backs, self._router, publish_delayed, after=after, listener=listener
            )
            queue.run_until_closed(self._returning.run, self._returning.stop)

    async def publish(
        self,
        payload: bytes,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Publish a message that is due after `delay` seconds, or `at` an aware datetime.

        Where the primary refuses it, or is not to be called, the same message, under the same id, goes to
        the local queue. Raises what the primary raised where the message does not degrade, `BreakerOpen`
        or `RateLimited` where it was not called and the message may not; `QueueFull`, caused by the
        reason, where the local queue is full too; `QueueClosed`; and `TypeError` or `ValueError` for an
        argument that is wrong; a payload over `capacity_bytes` is one only where the local queue is needed.
        """
        wall = arguments.wall_clock(at)
        now = trio.current_time()
        due = arguments.execute_at(now, delay, at, wall=wall)
        if id is not None and self._is_known(id):
            raise ValueError(f"id {id!r} is the id of a message that is pending already")
        copy = None if headers is None else arguments.check_headers(headers)
        shown = NO_HEADERS if copy is None else MappingProxyType(copy)
        number = next(self._numbers)
        message = Message(number if id is None else id, arguments.check_payload(payload), due, shown)
        asked = self._router.ask(message)
        if asked.why is not None:
            if asked.decision.action is Action.RAISE:
                raise asked.why
            return await self._hold(message, asked.decision, asked.why)
        try:
            await self._publish_delayed(message, due - now if delay is None else delay)
        except Exception as raised:
            error = failure_in(raised, timed_out=False) or raised
            decision = self._router.failed(asked, error)
            if decision.action is Action.RAISE:
                raise
            try:
                return await self._hold(message, decision, error)
            finally:
                del error  # or its traceback, this frame and the payload hold each other
        except BaseException:
            self._router.cut_off(asked)
            raise
        self._router.taken(asked)
        return Receipt(Route.PRIMARY, message, None, self._queue.at_risk)

    def _is_known(self, id: str) -> bool:
        return self._queue.is_known(id)

    @trio.lowlevel.enable_ki_protection
    async def _hold(self, message: Message, decision: Decision, why: Exception) -> Receipt:
        assert decision.reason is not None  # noqa: S101 (what is held is held for a reason)
        try:
            if isinstance(self._queue, DelayQueue):
                await self._queue.hold(message, self._room_timeout)
            else:
                await self._queue.hold(message)
        except (QueueFull, Throttled, ConnectionError) as full:
            self._router.full(message, decision.reason, why)
            raise full from why
        if self._returning is not None:
            self._returning.wake()
        return self._router.held(message, decision.reason, why, self._queue.at_risk)
