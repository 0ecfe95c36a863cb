"""The degrade path: the primary's own delayed publish first, the local queue where that refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime
from types import CoroutineType, MappingProxyType
from typing import Any, Protocol, TypeAlias, runtime_checkable

import trio

from localdelay import arguments
from localdelay.arguments import LATEST, Delay
from localdelay.limit import Limit
from localdelay.message import NO_HEADERS, Message, add_terms, numbers
from localdelay.queue.admission import already_pending
from localdelay.queue.queue import DelayQueue
from localdelay.queue.sending import awaitable
from localdelay.timer import clock_parts

from .publishing import BaseFallback, Cancels, Publish, not_this_ones
from .router import Receipt, World

PublishDelayed: TypeAlias = Callable[[Message, float], Awaitable[object]]
CancelDelayed: TypeAlias = Callable[[str, Any], Awaitable[object]]

_QUICK = 100
"""So many calls in a row that have not waited: the next one needs no time limit, which costs more than it."""


@runtime_checkable
class Holder(Cancels, Protocol):
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


class Fallback(BaseFallback[PublishDelayed, Holder, CancelDelayed]):
    """Publishes through the primary, and through the local queue what the primary does not take.

    What limits: from refusals (`Throttled`, and what `degrade_on` names) the limit finds the rate that the
    primary takes. What breaks: a primary that is down (time-outs, `ConnectionError`) is spared by the breaker
    until a trial is answered. What is held: what was refused, what is over the limit, and what finds the
    breaker open; and with `ambiguous="degrade"` what nobody can tell of. All else is the caller's error, and
    counts for neither.

    `publish_delayed` is an async function. To be made on the loop that runs the queue, and used there.
    """

    _quick = 0  # calls in a row that have not waited

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
            and 0 <= delay < LATEST
        ):  # the common call, in a third of the time
            now = self._read_clock() + self._clock_offset
            message = Message(next(self._numbers), payload, now + delay)
        else:
            wall = arguments.wall_clock(at)
            now = trio.current_time()
            due = arguments.execute_at(now, delay, at, wall=wall)
            chosen = None if id is None else arguments.check_id(id)
            if chosen is not None and self._queue.is_known(chosen):
                raise already_pending(chosen)
            copy = None if headers is None else arguments.check_headers(headers)
            shown = NO_HEADERS if copy is None else MappingProxyType(copy)
            name = next(self._numbers) if chosen is None else chosen
            message = Message(name, arguments.check_payload(payload), due, shown)
            if terms := arguments.terms(expires, at):
                add_terms(message, terms)
        steps = Publish(self._router, message, now)
        if steps.calls:
            with steps:
                left = delay if isinstance(delay, float) else message.execute_at - now
                steps.handle = await self._call(self._publish_delayed, message, left)
        if steps.holds:
            await self._hold(steps)
        return steps.receipt()

    async def _call(self, function: Callable[..., Awaitable[object]], *args: object) -> object:
        """Call the primary.

        A time limit costs more than a call that does not wait, so that a primary which never waits gets none.
        The first call with which such a one begins to wait has no limit but its own.
        """
        called = function(*args)
        if type(called) is not CoroutineType:
            with trio.move_on_after(self._publish_timeout):
                return await awaitable("publish_delayed", called)
        elif self._quick >= _QUICK:
            try:
                trap = called.send(None)
            except StopIteration as ended:
                return ended.value
            self._quick = 0
            return await _Rest(called, trap)
        else:
            with trio.move_on_after(self._publish_timeout):
                try:
                    trap = called.send(None)
                except StopIteration as ended:
                    self._quick += 1
                    return ended.value
                self._quick = 0
                return await _Rest(called, trap)
        raise TimeoutError(f"the primary took longer than {self._publish_timeout:g} s")

    async def _hand_back(self, message: Message, delay: float) -> None:
        handle = await awaitable("publish_delayed", self._publish_delayed(message, delay))
        self._router.remember(message, handle)

    @trio.lowlevel.enable_ki_protection
    async def _hold(self, steps: Publish) -> None:
        # A Ctrl-C between the two must not leave a message that is held and not counted.
        with steps:
            await self._queue.hold(steps.message, self._room_timeout)

    def _world(self) -> World:
        queue = self._queue
        if not isinstance(queue, Holder):
            raise not_this_ones("localdelay.DelayQueue", queue)
        self._numbers = numbers()
        self._read_clock, self._clock_offset = read_clock, offset = clock_parts()
        memory = queue if isinstance(queue, DelayQueue) else None
        return World(
            lambda: read_clock() + offset,
            lambda: queue.at_risk,
            queue.limit,
            memory,
            self._hand_back,
            lambda act: act(),
        )


class _Rest:
    """What is left of a coroutine that has begun to wait, to be awaited."""

    def __init__(self, called: CoroutineType[Any, Any, object], trap: object) -> None:
        self._called = called
        self._trap = trap

    def __await__(self) -> Generator[Any, Any, object]:
        trap = self._trap
        try:
            while True:
                try:
                    answer = yield trap
                except BaseException as raised:  # noqa: BLE001 (it is the coroutine's)
                    trap = self._called.throw(raised)
                else:
                    trap = self._called.send(answer)
        except StopIteration as ended:
            return ended.value
