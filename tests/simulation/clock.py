"""Virtual time beside a journal's real thread, the wall clock that follows it, and cancelling at a step.

This is the only module of the simulation that looks behind the library's public interface.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import localdelay.arguments
import localdelay.journal.commits
import localdelay.journal.reserve
import localdelay.queue.draining
from localdelay.journal.commits import Commits

EPOCH = 2.0**30
"""Of the wall clock. Like all other times a multiple of a tick, so that no sum is rounded."""
HAND_BACKS_IN_FLIGHT = 3


class Pace:
    """Lets virtual time pass only while the journals' threads have nothing to do."""

    def __init__(self) -> None:
        self.clock = MockClock(autojump_threshold=0)
        self._tasks = 0
        self._idle = trio.Event()

    @property
    def is_idle(self) -> bool:
        return self._tasks == 0

    def hold(self) -> None:
        """The thread has something to do."""
        if not self._tasks:
            self._idle = trio.Event()
        self._tasks += 1
        self.clock.autojump_threshold = math.inf

    def release(self) -> None:
        """It has done it, and what it told the loop has been heard."""
        self._tasks -= 1
        if not self._tasks:
            self._idle.set()
            self.clock.autojump_threshold = 0

    async def rest(self) -> None:
        """Wait until no task and no thread has anything left to do at this instant."""
        await wait_all_tasks_blocked()
        while not self.is_idle:
            await self._idle.wait()
            await wait_all_tasks_blocked()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the threads of all journals keep it."""
        pace = self
        open_, run = Commits.open, Commits._run

        class News(SimpleQueue[None]):
            busy = True  # it opens the journal first
            ended = False
            token: trio.lowlevel.TrioToken

            def put(self, *args: Any) -> None:
                if not self.ended:
                    pace.hold()
                super().put(*args)

            def get(self, *args: Any, **options: Any) -> None:
                self.done()
                super().get(*args, **options)
                self.busy = True

            def done(self) -> None:
                if self.busy:
                    self.busy = False
                    self.tell(pace.release)

            def end(self) -> None:
                self.ended = True
                while not self.empty():  # what nobody takes any more
                    super().get()
                    pace.release()

            def tell(self, what: Callable[[], None]) -> None:
                with suppress(trio.RunFinishedError):
                    self.token.run_sync_soon(what)

        async def open_with(commits: Any, first_number: int) -> Any:
            commits._news.token = trio.lowlevel.current_trio_token()
            pace.hold()
            return await open_(commits, first_number)

        def run_with(commits: Any, *args: Any) -> None:
            run(commits, *args)
            commits._news.done()
            commits._news.tell(commits._news.end)

        monkeypatch.setattr(localdelay.journal.commits, "SimpleQueue", News)
        monkeypatch.setattr(Commits, "open", open_with)
        monkeypatch.setattr(Commits, "_run", run_with)


class Wall(datetime):
    """The datetimes that the library reads and is given: now is what the scene says."""

    read: Callable[[], float]

    @classmethod
    def now(cls, tz: Any = UTC) -> Wall:
        return cls.fromtimestamp(cls.read(), tz)


class Watch(trio.abc.Instrument):
    """Cancels a scope before the n-th step of all tasks from `begin` on; knows which tasks there are."""

    def __init__(self, step: int | None) -> None:
        self._left = step
        self._scope: trio.CancelScope | None = None
        self.fired = False
        self.is_used = False
        """Whether it counts, or has struck already."""
        self.tasks: set[trio.lowlevel.Task] = set()

    def begin(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self.is_used = True

    def end(self) -> None:
        """What is to be cancelled is over."""
        self._scope = None
        self.is_used = self.fired

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._scope is None or self._left is None or self.fired:
            return
        self._left -= 1
        if self._left == 0:
            self.fired = True
            self._scope.cancel()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


def _read(wall: Callable[[], float], real: Callable[[], float]) -> float:
    return wall() if trio.lowlevel.in_trio_run() else real()


@contextmanager
def installed(pace: Pace, wall: Callable[[], float]) -> Iterator[None]:
    """The library's modules on this pace and this wall clock."""
    with pytest.MonkeyPatch.context() as patch:
        pace.install(patch)
        Wall.read = wall
        patch.setattr(localdelay.arguments, "datetime", Wall)
        patch.setattr(time, "time", partial(_read, wall, time.time))
        patch.setattr(localdelay.journal.commits, "RETRY_EVERY", 1e6)  # in real time
        patch.setattr(localdelay.journal.reserve, "_RESERVE", 1 << 12)
        # A hundred tasks of which two have something to do would only add steps at which nothing happens.
        patch.setattr(localdelay.queue.draining, "HAND_BACKS_IN_FLIGHT", HAND_BACKS_IN_FLIGHT)
        yield


def play(
    main: Callable[..., Any], *args: Any, seed: int, pace: Pace, watch: Watch, wall: Callable[[], float]
) -> None:
    """Run it; with one seed ready tasks run in one order."""
    trio._core._run._r.seed(seed)
    random.seed(seed)
    with installed(pace, wall), pytest.MonkeyPatch.context() as patch:
        for name in ("localdelay", "localdelay.drain"):
            patch.setattr(logging.getLogger(name), "disabled", True)
        trio.run(main, *args, clock=pace.clock, instruments=[watch])


def run(main: Callable[[], Any], wall: Callable[[], float]) -> None:
    """In virtual time, which the wall clock follows, with a journal's thread beside it."""
    pace = Pace()
    with installed(pace, wall):
        trio.run(main, clock=pace.clock)
