"""A life of a queue with a journal: what is put, what happens, and what is promised of it."""

from __future__ import annotations

import math
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.lowlevel
from trio.testing import wait_all_tasks_blocked

import localdelay.journal.commits
import localdelay.journal.sqlite
import localdelay.queue.admission
from localdelay import (
    BatchPolicy,
    JournalError,
    Message,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RetryPolicy,
    Throttled,
    open_delay_queue,
)
from localdelay.journal.record import Record
from tests.everyday.queue.test_cancel_everywhere import Pace
from tests.kit.journal_copies import (
    SEND_TIMEOUT,
    TICK,
    Conserved,
    Reader,
    Seen,
    Step,
    Watched,
)


@attrs.define(eq=False)
class Story:
    """A message: what it is, and the events from which on something is certain, or possible."""

    payload: bytes
    headers: dict[str, str] | None
    put: float
    """Before it, the journal can't have it."""
    plan: list[str]
    offsets: list[float]
    """Of the wall clock, since it was put."""
    id: str = ""
    due: float = math.nan
    promised: float = math.inf
    finishing: float = math.inf
    """From here on the journal need not have it,"""
    gone: float = math.inf
    """and from here on it must not."""
    refused: bool = False
    doomed: float = math.inf
    marked: float = math.inf
    """The same for the mark of a dead letter."""
    written: list[tuple[float, int]] = attrs.Factory(lambda: [(0, 1)])
    """(event, attempt): at least that one, and"""
    possible: list[tuple[float, int]] = attrs.Factory(lambda: [(0, 1)])
    """at most this one."""

    def check(self, record: Record | None, seen: Seen) -> None:
        if record is None:
            assert self.promised > seen.before or self.finishing <= seen.after, f"{self} is lost"
            return
        assert not self.refused, f"{self} was refused"
        assert self.put <= seen.after
        assert self.gone > seen.before, f"{self} has come back"
        assert (record.id, record.headers) == (self.id or record.id, self.headers)
        if not math.isnan(self.due):
            assert record.due in [self.due + offset for offset in self.offsets]
        least = max(attempt for event, attempt in self.written if event <= seen.before)
        most = max(attempt for event, attempt in self.possible if event <= seen.after)
        assert least <= record.attempt <= most, f"{self}: {least} <= {record.attempt} <= {most}"
        assert self.doomed <= seen.after if record.dead else self.marked > seen.before, (
            f"{self}: {record.dead}"
        )


@attrs.frozen
class Part:
    """One life of the process."""

    capacity: int
    workers: int
    batches: bool
    attempts: int | None
    hook: str | None
    durability: str
    gap: float
    """By how much the wall clock has moved since the last one."""
    rate: float | None
    steps: list[Step]
    ending: str
    grace: float
    hand_back: str | None
    moment: float
    """Which of its copies the next one begins with: 0 is the first, and 1 the last."""


class Bang(Exception):
    """What ends a block."""


class Life:
    """A queue on a journal, and what is promised of its messages."""

    def __init__(
        self, part: Part, path: Path, seed: int, held: list[Record], offset: float, conserved: Conserved
    ):
        self.part = part
        self.offset = offset  # wall clock minus Trio's
        self.tick = 0
        self.journal = Watched(path, part.durability, seed, lambda: self.tick)
        self.conserved = conserved
        self.stories = {record.payload: self._known(record) for record in held}
        self.held = held
        self.broken: list[AssertionError] = []
        self.calls: list[trio.CancelScope] = []
        self.fresh: list[Story] = []
        self.owed: dict[Any, list[tuple[Callable[[int], None], bool, int]]] = {}
        self.paused = self.ending = False
        self.serial = max((int(record.payload.split(b";")[0]) for record in held), default=0)

    def _known(self, record: Record) -> Story:
        story = Story(
            record.payload, record.headers, 0, [], [self.offset], record.id, record.due - self.offset
        )
        story.promised = 0
        story.written = story.possible = [(0, record.attempt)]
        story.possible = [(0, record.attempt)]
        if record.dead:
            story.doomed = story.marked = 0
        return story

    def event(self) -> int:
        self.tick += 1
        return self.tick

    def _owe(self, what: Callable[[int], None], *, removal: bool) -> None:
        """Something that this task does not go on before it is written."""
        task = trio.lowlevel.current_task()
        self.owed.setdefault(task, []).append((what, removal, self.journal.failed[removal]))

    def _promise(self, owed: list[tuple[Callable[[int], None], bool, int]], *, surely: bool = False) -> None:
        event = self.event()
        for what, removal, failed in owed:
            if surely or self.journal.failed[removal] == failed:
                what(event)

    def _goes_on(self) -> None:
        self._promise(self.owed.pop(trio.lowlevel.current_task(), []))

    def _finish(self, story: Story) -> None:
        story.finishing = min(story.finishing, self.event())
        self._owe(partial(setattr, story, "gone"), removal=True)

    # What the queue calls.

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:  # the queue takes it for a failed send
            self.broken.append(error)
            raise

    def _begin(self, message: Message) -> Story:
        with self._noticed():
            self._goes_on()
            story = self.stories[message.payload]
            story.id, story.due = (
                story.id or message.id,
                message.execute_at if math.isnan(story.due) else story.due,
            )
            assert (message.id, message.execute_at) == (story.id, story.due)
            assert dict(message.headers) == (story.headers or {})
            assert trio.current_time() >= story.due, "early"
            assert not self.paused
            assert not story.refused
            assert story.finishing == math.inf, f"{story} is sent again"
            assert story.doomed == math.inf or self.part.hook in ("takes", "slow"), f"{story} was given up"
            most = max(attempt for _, attempt in story.possible)
            assert most - 1 <= message.attempt <= most
            return story

    async def send(self, message: Message) -> None:
        story = self._begin(message)
        error = await self._one(story, message, story.plan.pop(0) if story.plan else "fine")
        if error is not None:
            raise error

    async def send_batch(self, messages: Sequence[Message]) -> None:
        failed: dict[str, Exception] = {}
        stories = [self._begin(message) for message in messages]
        plans = [story.plan.pop(0) if story.plan else "fine" for story in stories]
        if "slow" in plans:
            await trio.sleep(2 * TICK)
        for story, message, outcome in zip(stories, messages, plans, strict=True):
            error = await self._one(story, message, "fail" if outcome == "hang" else outcome, wait=False)
            if error is not None:
                failed[message.id] = error
        if failed:
            raise PartialSendError(failed)

    async def _one(
        self, story: Story, message: Message, outcome: str, *, wait: bool = True
    ) -> Exception | None:
        try:
            if wait:
                await trio.sleep({"slow": 2 * TICK, "hang": math.inf}.get(outcome, 0))
        except trio.Cancelled:
            if outcome == "hang":
                story.possible.append((self.event(), message.attempt + 1))
                if not self.ending:
                    self._count(story, message.attempt)
                elif self.part.attempts == message.attempt and self.part.hook is None:
                    story.doomed = self.event()  # if it was not cut off in that instant
            raise
        if outcome in ("fine", "slow"):
            self._finish(story)
            return None
        if outcome == "throttled":
            return Throttled()
        if outcome == "permanent":
            self._doom(story)
            return PermanentSendError()
        self._count(story, message.attempt)
        return OSError(outcome)

    def _count(self, story: Story, attempt: int) -> None:
        if self.part.attempts is not None and attempt >= self.part.attempts:
            self._doom(story)
        else:
            story.possible.append((self.event(), attempt + 1))
            self._owe(lambda event: story.written.append((event, attempt + 1)), removal=False)

    def _doom(self, story: Story) -> None:
        if self.part.hook is None:
            story.doomed = self.event()
            self._owe(partial(setattr, story, "marked"), removal=False)

    async def bury(self, message: Message, _: Exception) -> None:
        story = self.stories[message.payload]
        if self.part.hook == "slow":
            await trio.sleep(2 * TICK)
        if self.part.hook == "raises":
            story.doomed = self.event()
            self._owe(partial(setattr, story, "marked"), removal=False)
            raise ValueError
        self._finish(story)

    async def hand_back(self, message: Message, remaining: float, outcome: str | None = None) -> None:
        outcome = outcome or self.part.hand_back
        with self._noticed():
            self._goes_on()
            story = self.stories[message.payload]
            assert story.finishing == math.inf
            assert (message.id, remaining) == (
                story.id or message.id,
                max(0, message.execute_at - trio.current_time()),
            )
        await trio.sleep(TICK if outcome == "slow" else 0)
        if outcome == "fails":
            raise PermanentSendError if self.serial % 3 == 0 else OSError
        self._finish(story)

    # What is done.

    async def play(self) -> None:
        """Live."""
        retry = RetryPolicy(attempts=self.part.attempts, wait_initial=TICK, wait_max=1.0, wait_jitter=0)
        sends: dict[str, Any] = {"send": self.send}
        if self.part.batches:
            sends = {"send_batch": self.send_batch, "batch": BatchPolicy(max_messages=3)}
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                with suppress(Bang), trio.CancelScope() as scope:
                    async with open_delay_queue(
                        **sends,
                        capacity=self.part.capacity,
                        workers=self.part.workers,
                        retry=retry,
                        send_timeout=SEND_TIMEOUT,
                        on_dead_letter=None if self.part.hook is None else self.bury,
                        journal=self.journal,
                        recover_rate=self.part.rate,
                    ) as self.queue:
                        self._check_recovered()
                        for step in self.part.steps:
                            await self._apply(nursery, *step)
                            self.check()
                        self.paused, self.ending = False, True
                        await self._end(scope)
            self.check()
        if self.journal.fault is None:  # with its end all of it is written
            self._promise([*chain.from_iterable(self.owed.values())], surely=True)
            for story in self.fresh:
                story.promised = min(story.promised, self.event())
            self.journal.snap()
            spooled = [record for record in Reader()(self.journal.seen[-1].files) if record.dead is None]
            assert self.queue.statistics().spooled == len(spooled)
            assert self.queue.statistics().pending == 0

    async def _end(self, scope: trio.CancelScope) -> None:
        if self.part.ending == "drain":
            await self.queue.drain(self.part.grace, self.hand_back if self.part.hand_back else None)
        elif self.part.ending == "exception":
            raise Bang
        elif self.part.ending == "cancelled":
            scope.cancel()
            await trio.lowlevel.checkpoint()

    def check(self) -> None:
        if self.broken:
            raise self.broken[0]
        self.conserved(self.queue)
        self.journal.snap()

    def _check_recovered(self) -> None:
        pending = [record for record in self.held if record.dead is None]
        expected = sorted((record.due - self.offset, record.id) for record in pending)
        found = self.conserved(self.queue)
        assert (found.recovered, found.accepted) == (len(pending), len(pending))
        if trio.current_time() == 0 and not found.sent and not found.dead:
            assert sorted((message.execute_at, message.id) for message in self.queue.messages()) == expected

    async def _apply(self, nursery: trio.Nursery, name: str, *given: Any) -> None:
        await getattr(self, f"_{name}")(nursery, *given)

    def _story(self, size: int, plan: tuple[str, ...], chosen: bool) -> tuple[Story, dict[str, Any]]:
        self.serial += 1
        payload = b"%d;" % self.serial + bytes(size)
        headers = {"größe": str(size)} if size % 3 else None
        story = Story(payload, headers, self.event(), list(plan), [self.offset])
        self.stories[payload] = story
        return story, {"headers": headers, "id": f"own {self.serial}" if chosen else None}

    def _accepted(self, story: Story, message: Message, due: float) -> None:
        assert message.execute_at == due
        assert story.id in ("", message.id)
        story.id, story.due = message.id, due

    async def _put(self, nursery: trio.Nursery, count: int, *given: Any) -> None:
        for _ in range(count):
            nursery.start_soon(self._put_one, *given)

    async def _put_one(self, delay: float, *given: Any) -> None:
        story, options = self._story(*given)
        due = trio.current_time() + delay
        failures = self.journal.failed[False]
        with trio.CancelScope() as scope:
            self.calls.append(scope)
            try:
                message = await self.queue.put(story.payload, delay=delay, **options)
            except JournalError:
                assert self.journal.failed[False] > failures
                story.refused = True
            except QueueClosed:
                story.refused = True
            except trio.Cancelled:
                story.refused = True
                raise
            else:
                self._accepted(story, message, due)
                story.promised = self.event()

    async def _put_nowait(self, _: trio.Nursery, __: int, delay: float, *given: Any) -> None:
        story, options = self._story(*given)
        try:
            message = self.queue.put_nowait(story.payload, delay=delay, **options)
        except QueueFull:
            story.refused = True
            return
        self._accepted(story, message, trio.current_time() + delay)
        self.fresh.append(story)

    async def _flush(self, nursery: trio.Nursery, waits: bool) -> None:
        async def flush() -> None:
            fresh, owed = list(self.fresh), [*chain.from_iterable(self.owed.values())]
            try:
                await self.queue.flush()
            except JournalError:
                return
            for story in fresh:
                story.promised = min(story.promised, self.event())
            self._promise(owed, surely=True)

        if waits:
            await flush()
        else:
            nursery.start_soon(flush)

    async def _cancel(self, _: trio.Nursery, pick: int) -> None:
        stories = [story for story in self.stories.values() if story.id]
        if stories:
            story = stories[pick % len(stories)]
            finishing, story.finishing = story.finishing, min(story.finishing, self.event())
            if self.queue.cancel(story.id):
                self._owe(partial(setattr, story, "gone"), removal=True)
                self.owed.setdefault(None, []).extend(self.owed.pop(trio.lowlevel.current_task()))
            else:
                story.finishing = finishing

    async def _give_up(self, _: trio.Nursery, pick: int) -> None:
        if self.calls:
            self.calls[pick % len(self.calls)].cancel()

    async def _give(self, _: trio.Nursery, pick: int, outcome: str) -> None:
        async def give() -> None:
            slots = self.queue.hand_backs.far(trio.current_time() + TICK)
            entry = self.queue.hand_backs.take_out(slots[pick % len(slots)]) if slots else None
            if entry is not None:
                await self.queue.hand_backs.give(entry, partial(self.hand_back, outcome=outcome))
                self._goes_on()

        self.queue.run_until_closed(give, lambda: None)

    async def _disk(self, _: trio.Nursery, fault: str | None) -> None:
        self.journal.fault = fault

    async def _step(self, _: trio.Nursery, by: float) -> None:
        self.offset += by
        for story in self.stories.values():
            story.offsets.append(self.offset)

    async def _pause(self, _: trio.Nursery, paused: bool) -> None:
        self.paused = paused
        if paused:
            self.queue.pause()
        else:
            self.queue.resume()

    async def _rest(self, _: trio.Nursery) -> None:
        await wait_all_tasks_blocked()

    async def _breathe(self, _: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()

    async def _pass(self, _: trio.Nursery, ticks: int) -> None:
        await trio.sleep(ticks * TICK)


def run(main: Callable[[], Any], wall: Callable[[], float]) -> None:
    """In virtual time, which the wall clock follows."""
    with pytest.MonkeyPatch.context() as patch:
        pace = Pace()
        pace.install(patch)
        clock = types.SimpleNamespace(time=wall, perf_counter=time.perf_counter)
        patch.setattr(localdelay.journal.commits, "time", clock)
        patch.setattr(localdelay.queue.admission, "time", clock)
        patch.setattr(localdelay.journal.commits, "RETRY_EVERY", 1e6)  # in real time
        patch.setattr(localdelay.journal.sqlite, "_RESERVE", 1 << 12)
        trio.run(main, clock=pace.clock)
