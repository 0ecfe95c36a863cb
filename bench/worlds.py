"""The event loops that the contenders live in, behind the few calls that the scenarios need."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Protocol, TypeAlias

import trio

GiveUp: TypeAlias = Callable[[], object]


class World(Protocol):
    """An event loop. Times are in seconds on its own clock."""

    @property
    def clock(self) -> Callable[[], float]:
        """What time it is; may be called from any thread."""

    async def sleep_until(self, when: float) -> None:
        """Wait until that time."""

    async def checkpoint(self) -> None:
        """Let the other tasks run."""

    def move_on_at(self, when: float) -> AbstractAsyncContextManager[GiveUp]:
        """Leave the block at that time, or when its function is called."""


class TrioWorld:
    """The Trio run that this is made in."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = trio.lowlevel.current_clock().current_time

    async def sleep_until(self, when: float) -> None:
        await trio.sleep_until(when)

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def move_on_at(self, when: float) -> AsyncIterator[GiveUp]:
        with trio.move_on_at(when) as scope:
            yield scope.cancel


class AsyncioWorld:
    """The asyncio loop that this is made in."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.clock: Callable[[], float] = self._loop.time

    async def sleep_until(self, when: float) -> None:
        await asyncio.sleep(max(0.0, when - self._loop.time()))

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    @asynccontextmanager
    async def move_on_at(self, when: float) -> AsyncIterator[GiveUp]:
        with suppress(TimeoutError):
            async with asyncio.timeout_at(None if when == math.inf else when) as timeout:
                yield lambda: timeout.reschedule(self._loop.time())
