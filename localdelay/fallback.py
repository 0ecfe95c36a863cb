"""The degrade path: the primary's own delayed publish first, the local queue where that refuses."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from enum import Enum
from types import MappingProxyType
from typing import TypeAlias

import attrs
import trio

from . import intake
from .errors import QueueFull, Throttled
from .groups import failure_in
from .message import NO_HEADERS, Message, numbers
from .queue import DelayQueue

PublishDelayed: TypeAlias = Callable[[Message, float], Awaitable[object]]
DegradeOn: TypeAlias = tuple[type[Exception], ...] | type[Exception] | Callable[[Exception], bool]


class Route(Enum):
    """Where a message went."""

    PRIMARY = "primary"
    """The real queue's own delayed publish has taken it."""
    LOCAL = "local"
    """It is held in memory, and sent when it is due."""


@attrs.frozen
class Receipt:
    """What became of a publish."""

    route: Route
    message: Message
    reason: Exception | None = None
    """Why it was degraded: the exception of the primary; None on the primary route."""


class Fallback:
    """Publishes through the primary, and through the local queue what the primary refuses."""

    def __init__(
        self,
        publish_delayed: PublishDelayed,
        queue: DelayQueue,
        *,
        degrade_on: DegradeOn = (Throttled,),
        room_timeout: float | None = 0.0,
    ) -> None:
        """Wrap `await publish_delayed(message, delay)`, the delay in seconds.

        `degrade_on` says which of its exceptions mean that it has refused the message and not taken it:
        exception types, or a function of the exception. `room_timeout` is how many seconds a publish may
        wait when the local queue is full too: by default not at all, since at the peak a caller must not
        hang; None waits for ever. Raises `TypeError` and `ValueError` for an argument that is wrong.
        """
        intake.check_async("publish_delayed", publish_delayed)
        if not isinstance(queue, DelayQueue):
            raise TypeError(f"queue must be a DelayQueue, not {type(queue).__name__}")
        self._publish_delayed = publish_delayed
        self._queue = queue
        self._numbers = numbers()
        self._degrades = _predicate(degrade_on)
        self._room_timeout = intake.check_seconds("room_timeout", room_timeout, zero=True)

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

        Where the primary refuses it, the same message, under the same id, goes to the local queue.
        Raises what the primary raised where `degrade_on` does not name it; `QueueFull`, caused by the
        primary's exception, where the local queue is full too; `QueueClosed`; and `TypeError` or
        `ValueError` for an argument that is wrong; a payload over `capacity_bytes` is one only where the
        local queue is needed.
        """
        wall = intake.wall_clock(at)
        now = trio.current_time()
        due = intake.execute_at(now, delay, at, wall=wall)
        if id is not None and self._queue.is_pending(id):
            raise ValueError(f"id {id!r} is the id of a message that is pending already")
        copy = None if headers is None else intake.check_headers(headers)
        shown = NO_HEADERS if copy is None else MappingProxyType(copy)
        number = next(self._numbers)
        message = Message(number if id is None else id, intake.check_payload(payload), due, shown)
        try:
            await self._publish_delayed(message, due - now if delay is None else delay)
        except Exception as raised:
            reason = failure_in(raised, timed_out=False) or raised
            if not self._degrades(reason):
                raise
            await self._hold(message, number if id is None else None, reason)
            try:
                return Receipt(Route.LOCAL, message, reason)
            finally:
                del reason  # or its traceback, this frame and the payload hold each other
        return Receipt(Route.PRIMARY, message)

    @trio.lowlevel.enable_ki_protection
    async def _hold(self, message: Message, number: int | None, reason: Exception) -> None:
        admission = self._queue.admission
        if number is None:
            stamped = admission.stamp_message(message)
        else:
            stamped = admission.stamp_numbered(number, message)
        if self._room_timeout == 0:
            try:
                admission.accept(stamped)
            except QueueFull as full:
                raise full from reason
            return
        with trio.move_on_after(self._room_timeout):
            await admission.accept_or_wait(stamped)
            return
        raise QueueFull(f"no room within {self._room_timeout} s") from reason


def _predicate(degrade_on: DegradeOn) -> Callable[[Exception], bool]:
    types = degrade_on if isinstance(degrade_on, tuple) else (degrade_on,)
    if all(isinstance(kind, type) and issubclass(kind, Exception) for kind in types):
        return lambda error: isinstance(error, types)  # type: ignore[arg-type]
    if isinstance(degrade_on, type | tuple) or not callable(degrade_on):
        raise TypeError("degrade_on must be exception types, or a function of an exception")
    if inspect.iscoroutinefunction(degrade_on):
        raise TypeError("degrade_on must be an ordinary function: an async one answers too late")
    return degrade_on
