"""What both faces have alike, of a queue in a thread of its own and of the fallback before it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from localdelay.arguments import Delay
from localdelay.errors import QueueFull
from localdelay.fallback.publishing import BaseFallback, Publish
from localdelay.fallback.router import Receipt
from localdelay.message import Message, number_of
from localdelay.queue.admission import Stamped, already_pending

from .portal import Remote


class Face(ABC):
    """What the queues of both faces have alike."""

    _asks = math.inf
    """Seconds that a put which must not wait may wait for what only the loop knows of its id."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        """For `Fallback`: the queue on its loop."""

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.DelayQueue: {self.remote.queue.core.pending.ledger}>"

    def put_nowait(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
    ) -> Message:
        """Accept a message, or raise `QueueFull` if there is no room or others wait for room.

        On asyncio it raises that, too, where the `id` is one that this process has made and the queue's
        thread is too busy to say at once whether it is pending: `put` waits for the answer.
        """
        remote = self.remote
        stamped = remote.stamp(payload, delay, at, id, headers, expires, asks=self._asks)
        if not remote.intake.try_accept(stamped):
            raise QueueFull(remote.intake.ledger.describe())
        return stamped[0]

    @abstractmethod
    def cancel(self, id: str) -> Any:
        """Take a message out again; whether it was here, and will never be sent."""

    @abstractmethod
    def is_pending(self, id: str) -> Any:
        """Whether a message with this id is accepted and not finished."""


_P = TypeVar("_P", bound=Callable[..., object])
_Q = TypeVar("_Q", bound=Face)
_C = TypeVar("_C", bound=Callable[..., object])


class RemoteFallback(BaseFallback[_P, _Q, _C]):
    """The publish of both: where a caller blocks instead of awaiting, nothing here suspends it."""

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
        self._router.check_process()
        remote = self._queue.remote
        stamped = remote.stamp(payload, delay, at, id, headers, expires, asks=None)
        if id is not None and number_of(id) is not None:  # of this process's own only the loop knows
            found = self._queue.is_pending(id)
            if found if isinstance(found, bool) else await found:
                raise already_pending(id)
        message, now = stamped[0], remote.clock()
        steps = Publish(self._router, message, now)
        if steps.calls:
            with steps:
                left = delay if isinstance(delay, float) else max(0.0, message.execute_at - now)
                steps.handle = await self._call(self._publish_delayed, message, left)
        if steps.holds:
            with steps:
                await self._put(stamped, self._room_timeout)
        return steps.receipt()

    @abstractmethod
    async def _put(self, stamped: Stamped, patience: float) -> Any:
        """Have it accepted by the queue, waiting for room for so many seconds at most."""
