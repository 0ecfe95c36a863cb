"""Stopping: send what comes due within the grace, hand back the rest, and account for all of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from localdelay.limit import RateLimit
from localdelay.nurseries import bare

from .schedule import Schedule
from .sending import Delivery, HandBack
from .workers import Workers

HAND_BACKS_IN_FLIGHT = 100


class Grace:
    """The time that a stop may take; it can be cut short."""

    def __init__(self, seconds: float) -> None:
        self.deadline = trio.current_time() + seconds
        self._scopes: set[trio.CancelScope] = set()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """A block that is cancelled at the end of the grace."""
        with trio.CancelScope(deadline=self.deadline) as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)

    def end(self) -> None:
        """It ends now."""
        self.deadline = min(self.deadline, trio.current_time())
        for scope in self._scopes:
            scope.deadline = self.deadline


async def empty(
    schedule: Schedule,
    delivery: Delivery,
    workers: Workers,
    *,
    grace: Grace,
    hand_back: HandBack | None,
    limit: RateLimit | None,
) -> None:
    """Let the workers send what comes due within the grace, and end them.

    What the schedule has put aside, beyond its horizon, is handed back at once, many in flight, as far as the
    limit allows: sends of due messages, which may owe it tokens, come first. Returns as soon as nothing more
    can be done, and at the end of the grace at the latest: whatever is still running then is cancelled and
    pending again. The same goes for a caller that is cancelled meanwhile.
    """
    workers.close()
    next_in_line = trio.Lock()  # or all of them would wake for each token

    @trio.lowlevel.enable_ki_protection
    async def give_away(hand_back: HandBack) -> None:
        while True:
            if limit is not None:
                async with next_in_line:
                    while (  # noqa: ASYNC110 (nobody can tell when others take the next token)
                        schedule.has_later(trio.current_time()) and not limit.try_acquire()
                    ):
                        await trio.sleep(limit.wait)
                    entry = schedule.take_later(trio.current_time())
            else:
                entry = schedule.take_later(trio.current_time())
            if entry is not None:
                await delivery.hand_back_or_put_off(entry, hand_back)
                await trio.lowlevel.checkpoint()  # for it may not have waited, and then nobody else would run
                continue
            next_later = schedule.next_later()
            if workers.finished.is_set() and next_later == math.inf:
                return
            with trio.CancelScope(deadline=next_later):
                await schedule.later_arrived.park()

    failure: BaseException | None = None
    try:
        with grace.bound():
            async with trio.open_nursery() as nursery:
                if hand_back is not None:
                    for _ in range(HAND_BACKS_IN_FLIGHT):
                        nursery.start_soon(give_away, hand_back)
                await workers.finished.wait()
                schedule.later_arrived.unpark_all()
    except BaseExceptionGroup as group:
        failure = bare(group)  # a cancellation, or a KeyboardInterrupt in a hand-back
    finally:
        workers.stop()
        with trio.CancelScope(shield=True):
            await workers.finished.wait()
    if failure is not None:
        raise failure
