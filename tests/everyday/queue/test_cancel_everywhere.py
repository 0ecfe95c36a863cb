"""A cancellation at every step of whatever can be awaited: nothing lost, early, doubled or left running.

A scene is played again and again. It is cancelled before its first step, its second, and so on, until it is
through before its time has come: all of it, or one caller who waits in it for something.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import localdelay.journal.commits
import localdelay.queue.draining
from localdelay import (
    BatchPolicy,
    BreakerPolicy,
    DelayQueue,
    Fallback,
    Message,
    PartialSendError,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RateLimit,
    RetryPolicy,
    Route,
    Statistics,
    Throttled,
    open_delay_queue,
)
from localdelay.journal.commits import Commits
from localdelay.journal.record import Record
from tests.everyday.queue.test_cancellation import CancelAtStep
from tests.kit.journals import Disk

Conserved: TypeAlias = Callable[[DelayQueue], Statistics]
Scene: TypeAlias = Callable[["World"], Awaitable[None]]

LATEST = 200.0
"""No scene takes longer, in virtual seconds."""
_RETRY = RetryPolicy(attempts=3, wait_initial=0.5, wait_max=2.0, wait_jitter=0)


class Watch(CancelAtStep):
    """Counts the steps while the target runs, and knows which tasks there are."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.tasks: set[trio.lowlevel.Task] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.tasks.discard(task)


class Pace:
    """Lets virtual time pass only while the journal's thread has nothing to do."""

    def __init__(self) -> None:
        self.clock = MockClock(autojump_threshold=0)
        self._tasks = 0

    def hold(self) -> None:
        """The thread has something to do."""
        self._tasks += 1
        self.clock.autojump_threshold = math.inf

    def release(self) -> None:
        """It has done it, and what it told the loop has been heard."""
        self._tasks -= 1
        if not self._tasks:
            self.clock.autojump_threshold = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the threads of all journals keep it."""
        pace = self
        open_, run = Commits.open, Commits._run

        class News(SimpleQueue[None]):
            busy = True  # it opens the journal first

            def put(self, *args: Any) -> None:
                pace.hold()
                super().put(*args)

            def get(self, *args: Any, **options: Any) -> None:
                self.done()
                super().get(*args, **options)
                self.busy = True

            def done(self) -> None:
                if self.busy:
                    self.busy = False
                    with suppress(trio.RunFinishedError):
                        self.token.run_sync_soon(pace.release)

            token: trio.lowlevel.TrioToken

        async def open_with(commits: Commits, first_number: int) -> list[Record]:
            commits._news.token = trio.lowlevel.current_trio_token()  # type: ignore[attr-defined]
            pace.hold()
            return await open_(commits, first_number)

        def run_with(commits: Commits, *args: Any) -> None:
            run(commits, *args)
            commits._news.done()  # type: ignore[attr-defined]

        monkeypatch.setattr(localdelay.journal.commits, "SimpleQueue", News)
        monkeypatch.setattr(Commits, "open", open_with)
        monkeypatch.setattr(Commits, "_run", run_with)


class Broker:
    """The real queue. A message's payload says what it does with it, and when its answer comes.

    What has arrived stays there, also where the one who sent it is cut off before he hears of it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.arrived: Counter[bytes] = Counter()
        self.cut: Counter[bytes] = Counter()
        """Sends that ended without an answer."""
        self.confirmed: list[bytes] = []
        self.tries: Counter[bytes] = Counter()

    @contextmanager
    def _called_off(self, payloads: Sequence[bytes]) -> Iterator[None]:
        try:
            yield
        except trio.Cancelled:
            self.cut.update(payloads)
            raise

    async def send(self, message: Message) -> None:
        self.world.check_due(message)
        await self.take(message.payload)

    async def send_batch(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.world.check_due(message)
        failed: dict[str, Exception] = {}
        with self._called_off([message.payload for message in messages]):
            await trio.sleep(0.25)
            for message in messages:
                error = self._refusal(message.payload)
                if error is None:
                    self.arrived[message.payload] += 1
                else:
                    failed[message.id] = error
            await trio.sleep(0.25)
        self.confirmed += [message.payload for message in messages if message.id not in failed]
        if failed:
            raise PartialSendError(failed)

    async def take(self, payload: bytes) -> None:
        """One message, on its own."""
        with self._called_off([payload]):
            await trio.sleep(0.5 if payload.startswith(b"slow") else 0.125)
            error = self._refusal(payload)
            if error is not None:
                raise error
            if payload.startswith(b"hangs") and self.tries[payload] == 1:
                await trio.sleep_forever()
            self.arrived[payload] += 1
            await trio.sleep(0.125)
        self.confirmed.append(payload)

    def _refusal(self, payload: bytes) -> Exception | None:
        kind = payload.split()[0]
        self.tries[payload] += 1
        if kind == b"doomed":
            return PermanentSendError()
        if kind == b"fails" and self.tries[payload] == 1:
            return OSError("once")
        if kind == b"throttled" and self.tries[payload] == 1:
            return Throttled(retry_after=0.75)
        return None


class World:
    """A queue in a scene, and all that was done with it."""

    queue: DelayQueue

    def __init__(self, target: str, watch: Watch, conserved: Conserved, disk: Disk | None) -> None:
        self._target = target
        self.disk = disk
        self._watch = watch
        self._conserved = conserved
        self.broker = Broker(self)
        self.accepted: list[bytes] = []
        self.publishing: set[bytes] = set()
        self.refused: list[bytes] = []
        self.buried: list[bytes] = []
        self.handed_back: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.wrong: list[str] = []
        """What a send has seen: to raise it there would only be a failed send."""
        self.whole_was_cancelled = False

    @contextmanager
    def target(self, name: str) -> Iterator[trio.CancelScope]:
        """A block that is cancelled at the step, if it is the one that is to be."""
        with trio.CancelScope() as scope:
            if name == self._target:
                self._watch.begin(scope)
            try:
                yield scope
            finally:
                if name == self._target:
                    self._watch.scope = None

    def open(self, *, batches: bool = False, **options: Any) -> AbstractAsyncContextManager[DelayQueue]:
        send = {"send_batch": self.broker.send_batch} if batches else {"send": self.broker.send}
        own = {"capacity": 4, "workers": 2, "retry": _RETRY, "send_timeout": 2.0, "on_dead_letter": self.bury}
        own["journal"] = self.disk
        return open_delay_queue(**{**send, **own, **options})

    async def put(self, *payloads: bytes, delay: float = 1.0, **options: Any) -> None:
        for payload in payloads:
            try:
                await self.queue.put(payload, delay=delay, **options)
            except BaseException:
                self.refused.append(payload)
                raise
            self.accepted.append(payload)
            self._conserved(self.queue)

    def put_nowait(self, payload: bytes, delay: float = 1.0) -> Message:
        message = self.queue.put_nowait(payload, delay=delay)
        self.accepted.append(payload)
        return message

    def cancel(self, message: Message) -> None:
        if self.queue.cancel(message.id):
            self.cancelled.append(message.payload)

    async def bury(self, message: Message, error: Exception) -> None:
        await trio.sleep(0.25)
        if message.payload.endswith(b"nobody wants"):
            raise ValueError
        self.buried.append(message.payload)

    async def hand_back(self, message: Message, remaining: float) -> None:
        self._expect(remaining == max(0.0, message.execute_at - trio.current_time()), "what is left is wrong")
        await self.broker.take(message.payload)
        self.broker.confirmed.remove(message.payload)
        self.handed_back.append(message.payload)

    def check_due(self, message: Message) -> None:
        self._expect(trio.current_time() >= message.execute_at, "early")
        self._expect(message.payload not in self.refused, "it was never accepted")
        try:
            if hasattr(self, "queue"):  # it may be about to be opened
                self._conserved(self.queue)
        except AssertionError as error:
            self.wrong.append(str(error))

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    async def play(self, scene: Scene) -> None:
        before = set(self._watch.tasks)
        with trio.fail_after(LATEST), self.target("whole") as scope:
            await scene(self)
        self.whole_was_cancelled = scope.cancelled_caught
        assert self._watch.tasks == before, "a task was left behind"
        self.check()

    def check(self) -> None:
        assert not self.wrong, self.wrong
        rows = [] if self.disk is None else list(self.disk.rows.values())
        spooled = [row.payload for row in rows if row.dead is None]
        ends = [*self.broker.confirmed, *self.buried, *self.handed_back, *self.cancelled, *spooled]
        ends += [row.payload for row in rows if row.dead is not None]
        if hasattr(self, "queue"):
            ends += self._check_queue(len(spooled))
        assert sorted(ends) == sorted(self.accepted), "each message has one end, or is pending"
        twice = self.broker.arrived - Counter(set(self.broker.arrived))
        assert twice <= self.broker.cut, "it is there twice, and was not cut off"
        assert self.disk is None or self.disk.closed <= 1

    def _check_queue(self, spooled: int) -> list[bytes]:
        """Check the statistics; returns what is still there, or was given up and nobody has it."""
        s = self._conserved(self.queue)
        assert s.accepted == len(self.accepted)
        assert s.sent == len(self.broker.confirmed)
        assert s.handed_back == len(self.handed_back)
        assert s.cancelled == len(self.cancelled)
        assert s.spooled == spooled
        assert s.sending == s.puts_waiting == s.workers_busy == s.committing == 0
        assert s.at_risk == s.pending
        assert s.closed
        lost = [payload for payload in self.accepted if payload.endswith(b"nobody wants")]
        assert s.dead - len(self.buried) <= len(lost)
        unwanted = lost[: s.dead - len(self.buried)] if self.disk is None else []
        return [*unwanted, *(message.payload for message in self.queue.messages())]


def _play(
    scene: Scene, target: str, step: int, seed: int, conserved: Conserved, pace: Pace, disk: Disk | None
) -> World | None:
    """The world, if it was cancelled at this step; None where it was through before."""
    # The order of ready tasks comes from this generator: the n-th step is to be the same in every run.
    trio._core._run._r.seed(seed)
    random.seed(seed)
    watch = Watch(step)
    world = World(target, watch, conserved, disk)
    try:
        trio.run(world.play, scene, clock=pace.clock, instruments=[watch])
    except BaseException as error:
        error.add_note(f"{target!r} was cancelled before its step {step}, with seed {seed}")
        raise
    if not world.whole_was_cancelled and scene not in ENDS_EARLY:
        assert world.queue.statistics().pending == world.queue.statistics().spooled == 0, "it was not cut off"
    return world if watch.fired else None


# --- the scenes: each begins one queue, and ends it


async def waiting_for_room(world: World) -> None:
    """Puts wait, one of them for bytes, one with an id of its own; room comes by a send and by a resize."""

    async def impatient() -> None:
        with world.target("put"):
            await world.put(b"plain in the queue", delay=0.5, id="mine")
            await world.put(b"plain again", delay=0.0, id="mine, too", headers={"a": "b"})

    async with world.open(capacity=2, capacity_bytes=60) as world.queue, trio.open_nursery() as nursery:
        world.put_nowait(b"fails first", 0.5)
        nursery.start_soon(world.put, b"plain one", b"plain two")
        nursery.start_soon(world.put, b"large" + bytes(40))
        nursery.start_soon(impatient)
        await trio.sleep(1.0)
        world.queue.resize(capacity=3, capacity_bytes=None)
        await world.put(b"plain last", delay=0.0)


async def in_batches(world: World) -> None:
    """Batches wait for company, fail in part, are throttled, and are split by what is refused for good."""
    policy = BatchPolicy(max_messages=3, max_wait=0.25)
    async with world.open(batches=True, batch=policy, capacity=9) as world.queue:
        for payload in (b"plain 1", b"fails 2", b"doomed 3", b"throttled 4", b"plain 5"):
            world.put_nowait(payload)
        await world.put(b"plain 6", delay=1.125)
        await trio.sleep(0.5)
        with world.target("put"):
            await world.put(b"doomed that nobody wants", b"plain 7", delay=1.0)


async def retried_and_given_up(world: World) -> None:
    """Sends fail, hang and are paced; what can't be sent goes to a hook, which fails too."""
    limit = RateLimit(4.0, burst=1)
    async with world.open(limit=limit, capacity=9) as world.queue:
        for payload in (b"fails 1", b"throttled 2", b"hangs 3", b"doomed 4", b"doomed that nobody wants"):
            world.put_nowait(payload)
        await wait_all_tasks_blocked()
        with world.target("put"):
            await world.put(b"slow 5", b"hangs 6")


async def stopped_and_resized(world: World) -> None:
    """Pauses, other numbers of workers, and cancelled messages, while sends and puts are under way."""

    async def meddle() -> None:
        with world.target("meddler"):
            await trio.sleep(0.75)
            world.queue.pause()
            try:
                await trio.sleep(0.5)
                world.queue.resize(workers=3)
                world.cancel(soon)
                await trio.sleep(0.5)
            finally:
                world.queue.resume()
            world.queue.resize(workers=1, capacity=3)

    async with world.open() as world.queue, trio.open_nursery() as nursery:
        soon = world.put_nowait(b"plain 1", 1.0)
        world.put_nowait(b"slow 2", 0.5)
        nursery.start_soon(meddle)
        nursery.start_soon(world.put, b"slow 3", b"fails 4", b"plain 5")
        await world.put(b"plain 6", b"slow 7", delay=0.25)


async def drained(world: World) -> None:
    """Some is sent within the grace, some is handed back, and some can't be; a put waits for room."""

    async def refused() -> None:
        with pytest.raises(QueueClosed):
            await world.put(b"too late")

    async with world.open(capacity=8) as world.queue, trio.open_nursery() as nursery:
        for payload, delay in ((b"plain 1", 0.5), (b"slow 2", 0.75), (b"fails 3", 1.0)):
            world.put_nowait(payload, delay)
        for payload in (b"plain 4", b"fails 5", b"doomed 6", b"throttled 7", b"slow 8"):
            world.put_nowait(payload, 60.0)
        nursery.start_soon(refused)
        await wait_all_tasks_blocked()
        with world.target("drain"):
            report = await world.queue.drain(2.0, world.hand_back)
            assert report.remaining == world.queue.messages()
        with pytest.raises(QueueClosed):
            await world.queue.drain()


async def cut_short(world: World) -> None:
    """The grace ends while sends, hooks and hand-backs are under way."""
    async with world.open(capacity=9, workers=3) as world.queue:
        for payload, delay in ((b"slow 1", 0.25), (b"doomed 2", 0.375), (b"hangs 3", 0.0), (b"plain 4", 0.5)):
            world.put_nowait(payload, delay)
        for payload in (b"slow 5", b"hangs 6", b"fails 7"):
            world.put_nowait(payload, 60.0)
        with world.target("drain"):
            await world.queue.drain(0.5625, world.hand_back)


class Primary:
    """The real queue's own delayed publish: it has bad moments, and is well again after a while."""

    def __init__(self, world: World, *, well_from: float) -> None:
        self._world = world
        self._well_from = well_from
        self.taken: list[bytes] = []

    async def __call__(self, message: Message, delay: float) -> None:
        await trio.sleep(0.125)
        if trio.current_time() < self._well_from:
            if message.payload.startswith(b"ambiguous"):
                raise OSError("the line went dead")
            raise Throttled
        self.taken.append(message.payload)
        await trio.sleep(0.125)

    async def give(self, message: Message, delay: float) -> None:
        """The same, for a fallback that hands back by it too."""
        await self(message, delay)
        if message.payload not in self._world.publishing:
            self._world.handed_back.append(message.payload)


async def _publish(world: World, fallback: Fallback, *payloads: bytes, delay: float = 1.0) -> list[Route]:
    routes: list[Route] = []
    for payload in payloads:
        world.publishing.add(payload)
        try:
            receipt = await fallback.publish(payload, delay=delay)
        except BaseException as error:
            world.refused.append(payload)
            if not isinstance(error, OSError | QueueFull | Throttled):
                raise
            continue
        finally:
            world.publishing.remove(payload)
        if receipt.route is Route.LOCAL:
            world.accepted.append(payload)
        routes.append(receipt.route)
    return routes


_BREAKER = BreakerPolicy(consecutive=2, wait_initial=0.5, wait_max=1.0, wait_jitter=0, trial_calls=1)


async def degraded(world: World) -> None:
    """Publishes that the primary refuses wait for room in the queue; in the end it takes them again."""
    async with world.open(capacity=2) as world.queue:
        primary = Primary(world, well_from=2.0)
        fallback = Fallback(primary, world.queue, breaker=_BREAKER, room_timeout=0.75)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_publish, world, fallback, b"plain 1", b"slow 2", b"plain 3")
            nursery.start_soon(_publish, world, fallback, b"ambiguous 4", b"fails 5", b"plain 6")
            with world.target("publish"):
                await _publish(world, fallback, b"plain 7", b"ambiguous 8", b"slow 9", b"plain 10")
        await trio.sleep(10.0)
        routes = await _publish(world, fallback, b"plain 11", b"plain 12", b"plain 13")
        assert routes == [Route.PRIMARY] * 3, "a trial call was never given back"
        told = fallback.statistics()
        assert told.local == world.queue.statistics().accepted
        assert told.primary == len(primary.taken) - (
            not world.whole_was_cancelled and _cut_in(world, primary)
        )


def _cut_in(world: World, primary: Primary) -> int:
    """What the primary has taken and whose publisher was cut off before he heard of it."""
    return sum(payload in world.refused for payload in primary.taken)


async def taken_back(world: World) -> None:
    """What was degraded goes back to the primary while the queue runs, and the queue then ends by a drain."""
    async with world.open(capacity=9) as world.queue:
        primary = Primary(world, well_from=1.0)
        fallback = Fallback(primary.give, world.queue, breaker=_BREAKER, hand_back=True, hand_back_after=5.0)
        payloads = [b"plain %d" % number for number in range(4)]
        await _publish(world, fallback, *payloads, delay=30.0)
        await _publish(world, fallback, b"plain near", delay=4.0)
        with world.target("meddler"):
            await trio.sleep(2.0)
            await _publish(world, fallback, b"plain late", delay=30.0)
        with world.target("drain"):
            await world.queue.drain(4.0, world.hand_back)


async def flushed(world: World) -> None:
    """What is at risk is written down, while other puts wait for commits of their own."""
    async with world.open(capacity=6) as world.queue, trio.open_nursery() as nursery:
        for number in range(3):
            world.put_nowait(b"slow %d" % number, 0.25 * number)
        nursery.start_soon(world.put, b"plain 4", b"doomed that nobody wants", b"plain 5")
        with world.target("flush"):
            await world.queue.flush()
            await world.put(b"fails 6", b"plain 7", delay=0.0)
            await world.queue.flush()
            assert world.queue.statistics().at_risk == 0


async def recovered(world: World) -> None:
    """The journal holds messages, overdue and not; some of them are left there again."""
    assert world.disk is not None
    now = time.time()
    for key, (payload, delay) in enumerate([(b"plain 1", -9.0), (b"fails 2", -8.0), (b"slow 3", 1.0)], 1):
        world.disk.rows[key] = Record(key, now + delay, 2, f"id {key}", {"a": "b"}, payload)
        world.accepted.append(payload)
    world.disk.rows[5] = Record(5, now + 60.0, 1, "id 5", None, b"plain 5")
    world.accepted.append(b"plain 5")
    async with world.open(capacity=9, recover_rate=2.0) as world.queue:
        await world.put(b"plain 6", delay=0.0)
        world.put_nowait(b"plain 7", 30.0)
        with world.target("drain"):
            report = await world.queue.drain(4.0)
            assert (report.spooled, report.remaining) == (2, [])


ENDS_EARLY: set[Scene] = {drained, cut_short, taken_back, recovered}
"""After a drain something may remain."""

SCENES: list[tuple[Scene, list[str]]] = [
    (waiting_for_room, ["whole", "put"]),
    (in_batches, ["whole", "put"]),
    (retried_and_given_up, ["whole", "put"]),
    (stopped_and_resized, ["whole", "meddler"]),
    (drained, ["whole", "drain"]),
    (cut_short, ["whole", "drain"]),
    (degraded, ["whole", "publish"]),
    (taken_back, ["whole", "meddler", "drain"]),
    (flushed, ["whole", "flush"]),
    (recovered, ["whole", "drain"]),
]
_NEEDS_A_JOURNAL: set[Scene] = {flushed, recovered}


@pytest.mark.parametrize(
    ("scene", "target", "journal"),
    [
        pytest.param(scene, target, journal, id=f"{scene.__name__}-{target}{'-journal' * journal}")
        for scene, targets in SCENES
        for target in targets
        for journal in (False, True)
        if journal or scene not in _NEEDS_A_JOURNAL
    ],
)
def test_wherever_it_is_cancelled_the_promises_hold(
    scene: Scene, target: str, journal: bool, conserved: Conserved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conservation, nothing early, nothing twice that was not cut off, and no task left, at every step."""
    # A hundred tasks of which two have something to do would only add steps at which nothing happens.
    monkeypatch.setattr(localdelay.queue.draining, "HAND_BACKS_IN_FLIGHT", 2)
    original = [(Commits, name, getattr(Commits, name)) for name in ("open", "_run")]
    seed, step = 0, 0
    print("seed", seed)
    while True:
        for owner, name, value in original:
            monkeypatch.setattr(owner, name, value)
        step += 1
        pace = Pace()
        pace.install(monkeypatch)
        if not _play(scene, target, step, seed, conserved, pace, Disk() if journal else None):
            break
    assert step > 2
