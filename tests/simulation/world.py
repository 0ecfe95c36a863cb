"""Plays one life of a scene: opens the queue, does what the scene says to it, and ends it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio

from localdelay import (
    BatchPolicy,
    BreakerPolicy,
    DelayQueue,
    DrainReport,
    Fallback,
    JournalError,
    Message,
    ProbePolicy,
    QueueClosed,
    RateLimit,
    RetryPolicy,
    Route,
    open_delay_queue,
)
from localdelay.journal.record import Record
from localdelay.limit import Limit

from .checks import check_came_back, check_instant, check_left, check_rest
from .clock import Pace, Watch
from .disk import Disk, File
from .limits import Finding
from .marks import hit
from .orders import Orders
from .promises import Promises
from .puts import Puts
from .realqueue import RealQueue, Stop
from .scene import LATEST, SEND_TIMEOUT, TICK, Part, Step
from .story import Story

_SHUT = ProbePolicy(wait_initial=TICK)
_SOON_SHUT = ProbePolicy(failures=2, wait_initial=TICK)
_BREAKER = BreakerPolicy(consecutive=2, wait_initial=2 * TICK, wait_max=1.0, wait_jitter=0, trial_calls=1)


class Boom(Exception):
    """What the block raises."""


def _leaves(raised: BaseException) -> list[BaseException]:
    """The exceptions of a group, without the groups."""
    if not isinstance(raised, BaseExceptionGroup):
        return [raised]
    return [leaf for inner in raised.exceptions for leaf in _leaves(inner)]


class World:
    """A queue, what it stands on, and all that was done with it."""

    queue: DelayQueue
    nursery: trio.Nursery

    def __init__(self, part: Part, pace: Pace, watch: Watch, held: Sequence[Record], offset: float) -> None:
        self.part = part
        self.pace = pace
        self.watch = watch
        self.held = held
        self.offset = offset  # wall clock minus Trio's
        self.promises = Promises()
        self.stories = {record.payload: Story.of_record(record, offset) for record in held}
        for story in self.stories.values():
            story.paced |= part.rate is not None and story.due <= 0
        self.real = RealQueue(self)
        for record in held:
            story = self.stories[record.payload]
            if record.sending and part.attempts is not None and story.attempt > part.attempts:
                self.real.doom(story, sure=False)
        self.puts = Puts(self)
        self.orders = Orders(self)
        self.probe = (
            _SOON_SHUT if part.keys or part.soon_shut else _SHUT
        )  # of each key there are few messages
        self.acts = {who: iter(steps) for who, steps in part.acts.items()}
        self.limit = Finding() if part.adaptive else RateLimit(*(part.limit or (1.0, 1.0)))
        self.broken: list[Exception] = []
        self.serial = max((int(record.payload[:5]) for record in held), default=0)
        self.calls: dict[int, tuple[Story, trio.CancelScope]] = {}  # puts that wait, in order
        self.last_admitted = -1
        self.fresh: list[Story] = []  # accepted without waiting for the journal
        self.pending = sum(record.dead is None for record in held)
        self.pending_bytes = sum(story.size for story in self.stories.values())
        self.most = max(part.capacity, self.pending)
        self.paused = False
        self.exact = True  # everything has come to rest
        self.deadline = math.inf
        self.is_over = False  # the drain or the block
        self.changed = 0.0  # when a message was finished last
        self.stopped: Stop | None = None

    @property
    def is_plain(self) -> bool:
        """What is taken is sent at once, and nothing but the queue takes anything."""
        part = self.part
        return not self.is_limited and part.fallback is None and (part.batch is None or not part.batch[1])

    @property
    def is_limited(self) -> bool:
        return self.part.adaptive or self.part.limit is not None

    def key_of(self, message: Message | Story) -> int | None:
        """The key of a message; None for all where there are no keys."""
        return None if self.part.keys is None else int(message.payload[:5]) % self.part.keys

    def limit_of(self, key: Hashable) -> Limit:
        """What paces the sends of this key."""
        keys = self.queue.core.keys
        limit = self.limit if keys is None else keys.limits.of(key)
        assert limit is not None
        return limit

    def wall(self) -> float:
        return self.offset + trio.current_time()

    def story(self, message: Message) -> Story:
        story = self.stories[message.payload]
        story.check_message(message)
        return story

    def waiting(self) -> list[Story]:
        return [self.stories[message.payload] for message in self.queue.messages()]

    @contextmanager
    def target(self, name: str) -> Iterator[None]:
        """A block that is cancelled at a step, if it is the one that is to be."""
        if self.part.cut is None or self.part.cut[0] != name or self.watch.is_used:
            yield
            return
        with trio.CancelScope() as scope:
            self.watch.begin(scope)
            try:
                yield
            finally:
                self.watch.end()
        if scope.cancelled_caught:
            hit(f"{'the' if name == 'whole' else 'a'} {name} was cancelled before a step")

    # --- what is done to it

    async def apply(self, step: Step, nursery: trio.Nursery) -> None:
        name, *given = step
        if name == "rush":
            self._do(given[0], nursery)
            self.exact = False
            check_instant(self)
            for _ in range(2):  # then what it has started has begun, in whatever order tasks run
                await trio.lowlevel.checkpoint()
            return
        self._do(step, nursery)
        for _ in range(given[0] if name == "pass" else 0):
            await trio.sleep(TICK)
            await self.rest()
        await self.rest()

    async def rest(self) -> None:
        fired = None
        while fired != (fired := self.watch.fired):  # before this very step, perhaps: then not all is at rest
            await self.pace.rest()
        self.exact = True
        check_rest(self)
        self.promises.rest()
        if self.promises.journal is not None:
            self.promises.journal.snap()

    def act(self, who: str) -> None:
        """What this one does besides, in the midst of what the queue does."""
        if not hasattr(self, "queue"):
            return
        for step in itertools.islice(self.acts.get(who, ()), 1):
            hit(f"a {who} did something to the queue")
            exact, self.exact = self.exact, False
            check_instant(self)
            self._do(step, self.nursery)
            check_instant(self)
            self.exact = exact

    def _do(self, step: Step, nursery: trio.Nursery) -> None:
        name, *given = step
        does: dict[str, Callable[..., None]] = {
            "put": partial(self.puts.begin, nursery, name),
            "put_nowait": partial(self.puts.begin, nursery, name),
            "publish": partial(self.puts.begin, nursery, name),
            "pass": lambda _: None,
            "cancel": self.orders.cancel,
            "reschedule": self.orders.reschedule,
            "give up": self._give_up,
            "pause": self._pause,
            "resume": self._resume,
            "capacity": self._capacity,
            "workers": lambda count: self.queue.resize(workers=count),
            "bytes": lambda size: self.queue.resize(capacity_bytes=size),
            "flush": lambda waits: nursery.start_soon(self._flush),
            "disk": self._break_disk,
            "set the clock": self._set_clock,
            "primary": partial(setattr, self.real, "state"),
            "broker": partial(setattr, self.real, "broker"),
            "look": partial(check_instant, self),
        }
        does[name](*given)

    def _capacity(self, count: int) -> None:
        self.most = max(self.most, count)
        self.queue.resize(capacity=count)

    def _break_disk(self, fault: str | None) -> None:
        journal = self.promises.journal
        assert journal is not None
        if not journal.closed:  # or it would seem to have been well at its end
            journal.fault = fault

    def _set_clock(self, by: float) -> None:
        hit("the wall clock was set")
        self.offset += by
        for story in self.stories.values():
            story.terms[-1].offsets.append(self.offset)

    def _give_up(self, pick: int) -> None:
        if self.calls:
            _, scope = list(self.calls.values())[pick % len(self.calls)]
            scope.cancel()

    def _pause(self) -> None:
        if self.queue.statistics().closed:
            with pytest.raises(QueueClosed):
                self.queue.pause()
        else:
            self.queue.pause()
            self.paused = True
            for story in self.stories.values():  # what a worker gives back now may be behind what another has
                story.late |= self.promises.journal is not None and story.due <= trio.current_time()

    def _resume(self) -> None:
        self.queue.resume()
        self.paused = False

    async def _flush(self) -> None:
        fresh, owed = list(self.fresh), self.promises.owed()
        try:
            await self.queue.flush()
        except JournalError:
            hit("a flush failed")
            return
        hit("a flush waited")
        for story in fresh:
            story.promised = min(story.promised, self.promises.event())
        self.promises.kept(owed)

    # --- how it ends

    async def drain(self, scope: trio.CancelScope) -> None:
        part = self.part
        began, before = trio.current_time(), self.queue.statistics()
        if part.grace is not None:
            self.deadline = began + part.grace
        self.paused = False
        report: DrainReport | None = None
        hand_back = None if part.hand_back is None else self.real.hand_back
        with scope, self.target("drain"):
            report = await self.queue.drain(part.grace, hand_back)
        if self.stopped is not None:
            return
        self.is_over = True
        ended = trio.current_time()
        assert ended <= self.deadline, "the grace is over"
        with pytest.raises(QueueClosed):
            await self.queue.drain()
        if report is None:
            hit("a drain was cut off")
            return
        after = self.queue.statistics()
        for term in ("sent", "dead", "cancelled", "handed_back", "spooled"):
            assert getattr(report, term) == getattr(after, term) - getattr(before, term)
        assert report.remaining == self.queue.messages()
        if report.remaining:
            hit("something was left by a drain")
        if part.grace is None:
            assert report.remaining == []
        if ended < self.deadline:  # nobody was cut off, so what remains was not for anyone
            nobody_yet = {None, "permanent", "fails twice", "throttled"}  # the next try would be too late
            # With keys nobody waits for a token that is there only when the grace is over.
            beyond = part.keys is not None and self.is_limited
            assert beyond or part.hand_back in nobody_yet or report.remaining == []
            if self.is_plain and self.promises.journal is None:
                assert ended == max(began, self.changed), "it has waited for nothing"

    async def end(self, nursery: trio.Nursery) -> None:
        """The last lines of the block."""
        self.real.broker = "well"
        ending = self.part.ending
        if ending in {"drain", "cancelled drain"}:
            scope = trio.CancelScope()
            nursery.start_soon(self.drain, scope)
            await self.pace.rest()
            for step in self.part.meanwhile:
                await self.apply(step, nursery)
            if ending == "cancelled drain":
                scope.cancel()
        elif ending == "exception":
            raise Boom
        elif ending == "cancelled":
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()
        elif self.part.fallback is not None:
            await self._until_well()

    async def _until_well(self) -> None:
        """Once the primary's faults stop it is called again, and takes all."""
        self.real.state = "well"
        self._resume()
        await trio.sleep(40 * TICK)
        calls, left = 0, 100 if self.part.adaptive else 3  # it has to find how much is taken by now
        while calls < 3:
            left -= 1
            story, options = self.puts.story(1.0, "delay", None, 0, ())
            calls += await self.puts.publish(story, options) is Route.PRIMARY
            assert calls + left >= 3, "a trial call was never given back"
            if self.part.adaptive:
                await trio.sleep(TICK)

    async def play(self, journal: Disk | File | None) -> None:
        """Do all that the scene says, and check everything after the block too."""
        self.promises.journal = journal
        tasks = set(self.watch.tasks)
        with trio.CancelScope(deadline=LATEST) as limit, self.target("whole"):
            await self._play(journal)
        if self.broken:
            raise self.broken[0]  # a send that is wrong fails, and is tried again for ever
        assert not limit.cancelled_caught, "the block was never left"
        assert self.watch.tasks == tasks, "a task was left behind"
        self.is_over = True
        if hasattr(self, "queue"):
            self._check_left()

    def _check_left(self) -> None:
        journal = self.promises.journal
        if self.queue.statistics().pending:
            hit("a queue was left with messages")
        if journal is not None:
            if journal.failed[False]:
                hit("the journal failed and went on")
            if journal.fault is None:  # with its end all of it is written
                self.promises.kept(self.promises.owed())
                for story in self.fresh:
                    story.promised = min(story.promised, self.promises.event())
                journal.snap()
        check_left(self)

    async def _play(self, journal: Disk | File | None) -> None:
        from_block: BaseException | None = None
        raised: BaseException | None = None
        left: float | None = None
        async with trio.open_nursery() as self.nursery:
            nursery = self.nursery
            try:
                async with self._open(journal) as self.queue:
                    try:
                        await self._begin()
                        for step in self.part.steps:
                            await self.apply(step, nursery)
                        await self.end(nursery)
                        if self.part.ending == "leave":
                            self.paused = False
                            nursery.start_soon(self._while_leaving, nursery)
                            left = trio.current_time()
                    except BaseException as error:
                        from_block = error
                        raise
            except (Boom, Stop) as error:
                raised = error
            except BaseException as error:
                raised = error
                if not self._are_several(from_block, raised):
                    raise
                assert isinstance(raised, BaseExceptionGroup)
                if (cancelled := raised.split(trio.Cancelled)[0]) is not None:
                    raise cancelled from None
            finally:
                self._check_raised(from_block, raised)
            if left is not None and raised is None:
                assert self.queue.messages() == []
                if self.is_plain and journal is None:
                    assert trio.current_time() == max(left, self.changed), "it has waited for nothing"

    def _are_several(self, from_block: BaseException | None, raised: BaseException) -> bool:
        """Whether these came at one time: two of the block's, a send's and a cancellation from outside."""
        if not isinstance(raised, BaseExceptionGroup):
            return False
        errors = [error for error in _leaves(raised) if not isinstance(error, trio.Cancelled)]
        own = [error for error in (from_block, self.stopped) if isinstance(error, Boom | Stop)]
        return bool(errors) and len(errors) == len({*errors}) and {*errors} <= {*own}

    def _check_raised(self, from_block: BaseException | None, raised: BaseException | None) -> None:
        if raised is not None and self._are_several(from_block, raised):
            return  # neither hides the other
        if self.stopped is not None and not isinstance(raised, trio.Cancelled):
            assert raised is self.stopped, "what is no Exception comes out bare"
        elif from_block is not None and raised is not None:
            assert raised is from_block, "an exception leaves the block as it is"
        elif raised is not None:
            assert type(raised) is trio.Cancelled, f"{raised!r} came out of a block that raised nothing"

    async def _begin(self) -> None:
        if self.held:
            hit("messages came back")
            if any(story.due < 0 for story in self.stories.values()):
                hit("a message came back overdue")
            check_came_back(self)
        if self.part.fallback is not None:
            returns = self.part.fallback == "returns"
            self.fallback = Fallback(
                self.real.publish_delayed,
                self.queue,
                ambiguous="raise" if returns else "degrade",
                breaker=_BREAKER,
                limit=self.limit if self.part.adaptive else None,
                listener=self.real,
                room_timeout=self.part.room_timeout,
                hand_back=returns,
                hand_back_after=2.0,
            )

    async def _while_leaving(self, nursery: trio.Nursery) -> None:
        await self.pace.rest()
        for step in self.part.meanwhile:
            await self.apply(step, nursery)

    def _open(self, journal: Disk | File | None) -> Any:
        part, real = self.part, self.real
        sends: dict[str, Callable[..., Awaitable[None]] | BatchPolicy] = {"send": real.send}
        if part.batch is not None:
            policy = BatchPolicy(max_messages=part.batch[0], max_wait=part.batch[1])
            sends = {"send_batch": real.send_batch, "batch": policy}
        return open_delay_queue(
            **sends,  # type: ignore[arg-type]  # which of them it is, is the scene's
            capacity=part.capacity,
            capacity_bytes=part.capacity_bytes,
            workers=part.workers,
            cancellable=part.cancellable,
            retry=RetryPolicy(part.attempts, wait_initial=TICK, wait_max=1.0, wait_jitter=0),
            send_timeout=SEND_TIMEOUT,
            on_dead_letter=None if part.hook is None else real.bury,
            limit=self.limit if self.is_limited else None,
            listener=real,
            journal=journal,
            catch_up_rate=part.rate,
            key=None if part.keys is None else self.key_of,
            probe=self.probe,
        )
