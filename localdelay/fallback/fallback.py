"""The degrade path: the primary's own delayed publish first, the local queue where that refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Protocol, TypeAlias, runtime_checkable

import trio

from localdelay import arguments
from localdelay.arguments import Delay
from localdelay.limit import Limit
from localdelay.message import NO_HEADERS, Message, add_terms, numbers
from localdelay.queue.admission import already_pending
from localdelay.queue.queue import DelayQueue
from localdelay.timer import clock_parts

from .publishing import BaseFallback, Publish, World
from .router import Receipt

PublishDelayed: TypeAlias = Callable[[Message, float], Awaitable[object]]


@runtime_checkable
class Holder(Protocol):
    """What a fallback needs of a queue: a `DelayQueue`, or one that is not in memory."""

    @property
    def at_risk(self) -> int:
        """Messages that a crash of this process would lose."""

    @property
    def limit(self) -> Limit | None:
        """What paces its sends, for the fallback to share."""

    def is_known(self, id: str) -> bool:
        """Whether a message with this id is pending, as far as can be told without waiting.

        Raises `TypeError` or `ValueError` for what can be no id.
        """

    async def hold(self, message: Message, timeout: float = 0.0) -> None:  # noqa: ASYNC109 (for room alone)
        """Take in this message, with its id, to be sent at its execute-at.

        Where there is no room it may wait for some, for so many seconds at most. Raises `QueueFull`,
        `Throttled` or `ConnectionError` where the message can't be held.
        """


class Fallback(BaseFallback[PublishDelayed, Holder]):
    """Publishes through the primary, and through the local queue what the primary refuses.

    `publish_delayed` is an async function. To be made on the loop that runs the queue, and used there.
    """

    async def publish(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
    ) -> Receipt:
        """Publish a message that is due after `delay` seconds, or `at` an aware datetime.

        Where the primary refuses it, or is not to be called, the same message, under the same id, goes to
        the local queue. `expires` is as for `put`, and binds what is held here, not what the primary took; a
        primary may read it off the message. Raises what the primary raised where the message does not
        degrade, `BreakerOpen` or `RateLimited` where it was not called and the message may not; `QueueFull`,
        caused by the reason, where the local queue is full too; `QueueClosed`; and `TypeError` or
        `ValueError` for an argument that is wrong; a payload over `capacity_bytes` is one only where the
        local queue is needed.
        """
        # Before the clock: where another loop ran in a thread, a fork takes the child's own along with it.
        self._router.check_process()
        now: float
        if (
            at is None
            and id is None
            and headers is None
            and expires is None
            and type(payload) is bytes
            and (type(delay) is float or type(delay) is int)
            and 0 <= delay < arguments.LATEST
        ):  # the common call, in a third of the time
            now = self._read_clock() + self._clock_offset
            message = Message(next(self._numbers), payload, now + delay)
        else:
            wall = arguments.wall_clock(at)
            now = trio.current_time()
            due = arguments.execute_at(now, delay, at, wall=wall)
            if id is not None and self._queue.is_known(id):
                raise already_pending(id)
            copy = None if headers is None else arguments.check_headers(headers)
            shown = NO_HEADERS if copy is None else MappingProxyType(copy)
            name = next(self._numbers) if id is None else id
            message = Message(name, arguments.check_payload(payload), due, shown)
            if terms := arguments.terms(expires, at):
                add_terms(message, terms)
        steps = Publish(self._router, message, now)
        if steps.calls:
            with steps:
                left = delay if isinstance(delay, float) else message.execute_at - now
                await self._publish_delayed(message, left)
        if steps.holds:
            await self._hold(steps)
        return steps.receipt()

    @trio.lowlevel.enable_ki_protection
    async def _hold(self, steps: Publish) -> None:
        # A Ctrl-C between the two must not leave a message that is held and not counted.
        with steps:
            await self._queue.hold(steps.message, self._room_timeout)

    def _world(self) -> World:
        queue = self._queue
        if not isinstance(queue, Holder):
            raise TypeError(f"queue must be a DelayQueue, not {type(queue).__name__}")
        self._numbers = numbers()
        self._read_clock, self._clock_offset = read_clock, offset = clock_parts()
        memory = queue if isinstance(queue, DelayQueue) else None
        return World(
            lambda: read_clock() + offset,
            lambda: queue.at_risk,
            queue.limit,
            memory,
            self._publish_delayed,
            lambda act: act(),
        )
