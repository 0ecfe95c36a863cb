"""A clock for tests, which stands still until it is moved."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from localdelay import arguments
from localdelay.worlds import is_asyncio

_SMALL = 0.0201
"""Seconds: no more than this is a small step, and one small step after another waits for"""
_PART = 0.05
"""this part of `idle`."""


class MovableClock(trio.abc.Clock):
    """A clock for `open_delay_queue(clock=...)` of the faces, which stands still until a test moves it.

    While it is moved it stops at every instant for which something waits in the queue, until nothing has
    happened there for `idle` seconds of real time: a send that takes longer than that finds it moved. When
    the queue is drained, and at the end of its block, it goes on by itself: what waits is sent, at its time.
    It is for one queue at a time. With a queue of Trio's use `trio.testing.MockClock`.
    """

    def __init__(self, idle: float = 0.01) -> None:
        self._idle = arguments.at_least("idle", idle, 0, "a number of seconds")
        self._now = 0.0
        self._next = math.inf
        self._token: trio.lowlevel.TrioToken | None = None

    def advance(self, seconds: float) -> None:
        """Move it, from any thread; returns when all that comes due on the way has had its turn.

        Where the queue has ended, or has not begun, it moves all the same.
        """
        if is_asyncio():
            raise RuntimeError("advance would stop this asyncio loop: await advance_async(seconds)")
        until = self._now + arguments.at_least("seconds", seconds, 0, "a number of seconds")
        if self._token is not None:
            with suppress(trio.RunFinishedError, trio.Cancelled):
                trio.from_thread.run(self._move, until, trio_token=self._token)
        self._now = max(self._now, until)

    async def advance_async(self, seconds: float) -> None:
        """`advance`, on an asyncio loop."""
        import asyncio

        await asyncio.to_thread(self.advance, seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait on an asyncio loop until it has moved so far."""
        import asyncio

        assert self._token is not None  # noqa: S101 (whoever sleeps is a send of the queue's)
        until, token = self._now + seconds, self._token
        await asyncio.to_thread(lambda: trio.from_thread.run(trio.sleep_until, until, trio_token=token))

    async def run_on(self, until_end: Callable[[], Awaitable[None]]) -> None:
        """For the queue: nobody moves it any more, and it goes on by itself until the end of this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._move, math.inf)
            await until_end()
            nursery.cancel_scope.cancel()

    async def _move(self, until: float) -> None:
        import trio.testing

        blocked = trio.testing.wait_all_tasks_blocked
        follows_small_one = False
        while True:
            await blocked()
            following = self._next
            # A queue looks every 20 ms of its clock whether its sends hang: if they are not done at the first
            # such look they really take their time, and the others are to cost little.
            is_small = following <= self._now + _SMALL
            await blocked(self._idle * _PART if is_small and follows_small_one else self._idle)
            if self._next != following:
                continue  # something has come meanwhile
            if following > until:
                return
            if following < math.inf:
                follows_small_one = is_small
                self._now = max(self._now, following)

    # What follows is Trio's.

    def start_clock(self) -> None:
        """The loop of a queue begins."""
        self._token = trio.lowlevel.current_trio_token()

    def current_time(self) -> float:
        """Seconds that it has been moved by."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """For the loop: it is not to wait for time to pass."""
        self._next = deadline
        return 0 if deadline <= self._now else math.inf
