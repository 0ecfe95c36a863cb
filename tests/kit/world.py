"""Plays a generated scene on a queue, and checks every promise after every step."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from localdelay import (
    DelayQueue,
    DrainReport,
    Message,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RetryPolicy,
    Statistics,
    Throttled,
    open_delay_queue,
)
from tests.kit.scenes import LATEST, SEND_TIMEOUT, TICK, Conserved, Operation, Scene


class Boom(Exception):
    """What the block raises."""


class World:
    """The queue, the real queue that it sends to, and what must be true of both."""

    queue: DelayQueue

    def __init__(self, scene: Scene, conserved: Conserved, errors: list[logging.LogRecord]) -> None:
        self.scene = scene
        self.conserved = conserved
        self.errors = errors
        self.broken: list[AssertionError] = []
        self.serial = 0
        self.plans: dict[bytes, list[str]] = {}  # payload to the outcomes of its sends; later ones are fine
        self.accepted: dict[str, Message] = {}
        self.refused: set[bytes] = set()
        self.calls: dict[int, tuple[bytes, int, trio.CancelScope]] = {}  # puts that wait, in order
        self.last_admitted = -1
        self.tried: set[str] = set()
        self.failures: dict[str, int] = {}  # sends that used up an attempt
        self.refusals: set[str] = set()  # permanently refused by the real queue
        self.busy: set[str] = set()  # in a send, a hook or a hand-back
        self.sending = 0
        self.sent: list[str] = []
        self.buried: list[str] = []  # taken by the dead-letter hook
        self.cancelled: list[str] = []
        self.handed_back: list[str] = []
        self.hand_back_failures: dict[str, int] = {}
        self.paused = False
        self.deadline = math.inf
        self.drained_at: float | None = None
        self.changed = 0.0  # when a message was finished last
        self.pending = 0
        self.pending_bytes = 0

    # --- what the queue calls

    @contextmanager
    def _occupied(self, message: Message) -> Iterator[None]:
        assert message.id not in self.busy, "two things at once are done with one message"
        assert message.id not in {*self.sent, *self.buried, *self.cancelled, *self.handed_back}, "finished"
        assert message.payload not in self.refused, "it was never accepted"
        self.busy.add(message.id)
        self.check_instant()
        try:
            yield
            self.check_instant()
        finally:
            self.busy.remove(message.id)
            self.changed = trio.current_time()

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        # The queue takes an AssertionError for a failed send like any other, so it is kept here.
        try:
            yield
        except AssertionError as error:
            self.broken.append(error)
            raise

    async def send(self, message: Message) -> None:
        with self._noticed():
            await self._send(message)

    async def bury(self, message: Message, error: Exception) -> None:
        with self._noticed():
            await self._bury(message, error)

    async def hand_back(self, message: Message, remaining: float) -> None:
        with self._noticed():
            await self._hand_back(message, remaining)

    async def _send(self, message: Message) -> None:
        assert trio.current_time() >= message.execute_at, "early"
        assert not self.paused, "a send has begun in a queue that is paused"
        assert trio.current_time() <= self.deadline, "a send after the grace"
        assert message.attempt == 1 + self.failures.get(message.id, 0)
        self.tried.add(message.id)
        self.sending += 1
        try:
            assert self.sending <= self.queue.statistics().workers, "more sends than workers"
            with self._occupied(message):
                plan = self.plans[message.payload]
                outcome = plan.pop(0) if plan else "fine"
                if outcome in {"fail", "fail slowly", "hang", "group", "mixed"}:
                    self.failures[message.id] = message.attempt
                elif outcome == "permanent":
                    self.refusals.add(message.id)
                await self._outcome(outcome)
            self.sent.append(message.id)
        finally:
            self.sending -= 1

    async def _outcome(self, outcome: str) -> None:
        if outcome == "slow":
            await trio.sleep(2 * TICK)
        elif outcome == "fail":
            raise ValueError(outcome)
        elif outcome == "fail slowly":
            await trio.sleep(TICK)
            raise OSError(outcome)
        elif outcome == "throttled":
            raise Throttled
        elif outcome == "throttled for long":
            raise Throttled(retry_after=1.5)
        elif outcome == "permanent":
            raise PermanentSendError
        elif outcome == "hang":
            await trio.sleep_forever()
        elif outcome == "group":
            async with trio.open_nursery():
                raise ValueError(outcome)
        elif outcome == "mixed":  # the cancellation by send_timeout meets an error of the send's own
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError(outcome)

    async def _bury(self, message: Message, error: Exception) -> None:
        with self._occupied(message):
            assert isinstance(error, Exception)
            if self.scene.hook == "slow":
                await trio.sleep(3 * TICK)
            elif self.scene.hook == "raises":
                raise KeyError(message.id)
            elif self.scene.hook == "hangs":
                await trio.sleep_forever()
        self.buried.append(message.id)

    async def _hand_back(self, message: Message, remaining: float) -> None:
        now = trio.current_time()
        assert remaining == max(0.0, message.execute_at - now)
        assert now <= self.deadline
        if message.id not in self.tried:
            assert message.execute_at >= self.deadline, "it would have come due within the grace"
        with self._occupied(message):
            failures = self.hand_back_failures.get(message.id, 0)
            self.hand_back_failures[message.id] = failures + 1
            if self.scene.hand_back == "slow":
                await trio.sleep(2 * TICK)
            elif self.scene.hand_back == "fails twice" and failures < 2:
                raise ValueError
            elif self.scene.hand_back == "throttled" and failures < 1:
                raise Throttled(retry_after=TICK)
            elif self.scene.hand_back == "permanent":
                raise PermanentSendError
            elif self.scene.hand_back == "hangs":
                await trio.sleep_forever()
        self.handed_back.append(message.id)

    # --- what must be true

    def check_instant(self) -> Statistics:
        """What holds at every instant, also in the middle of a send."""
        s = self.conserved(self.queue)
        assert s.pending <= max(s.capacity, self.pending)
        if s.capacity_bytes is not None:
            assert s.pending_bytes <= max(s.capacity_bytes, self.pending_bytes)
        self.pending, self.pending_bytes = s.pending, s.pending_bytes
        assert s.sent + s.dead + s.cancelled + s.handed_back <= s.accepted
        return s

    def check(self) -> None:
        """What holds when every task has come to rest."""
        if self.broken:
            raise self.broken[0]
        s = self.check_instant()
        messages = self.queue.messages()
        pending = [message.id for message in messages]
        ends = [*self.sent, *self._dead(), *self.cancelled, *self.handed_back, *pending]
        assert sorted(ends) == sorted(self.accepted), "each message has one end, or is pending"
        assert s.sent == len(self.sent)
        assert s.dead == len(self._dead())
        for id in set(self._dead()) - self.refusals:
            assert self.scene.attempts is not None, "given up on, and nobody asked for it"
            assert self.failures[id] == self.scene.attempts
        assert s.cancelled == len(self.cancelled)
        assert s.handed_back == len(self.handed_back)
        between_tries = self.scene.hand_back in {"fails twice", "throttled"}
        assert s.sending >= len(self.busy) if between_tries else s.sending == len(self.busy)
        assert self.busy <= set(pending)
        for message in messages:
            accepted = self.accepted[message.id]
            assert attrs.evolve(message, attempt=1) == accepted, "it has changed while it waited"
        untried = [message.execute_at for message in messages if message.id not in self.tried]
        assert untried == sorted(untried)
        assert s.puts_waiting == len(self.calls)
        assert s.lateness.count == len(self.tried)
        self._check_wake_ups(s, untried)
        self._check_room(s)
        if not s.closed:  # those that are surplus stay until their sends have ended, and no longer
            assert len(self.queue._workers._workers) == max(s.workers, s.workers_busy)
        elif self.deadline < math.inf and self.drained_at is None and self.scene.hand_back == "takes":
            assert self.queue._schedule._later.first() is None, "it waits to be handed back"

    def _dead(self) -> list[str]:
        logged = [str(record.args[0]) for record in self.errors if isinstance(record.args, tuple)]
        return [*self.buried, *logged]

    def _check_wake_ups(self, s: Statistics, untried: list[float]) -> None:
        if self.paused or self.drained_at is not None or s.workers_busy >= s.workers:
            return
        now = trio.current_time()
        assert s.next_due_in is None or s.next_due_in > 0, "idle workers leave a due message waiting"
        assert all(due > now for due in untried if due < self.deadline)

    def _check_room(self, s: Statistics) -> None:
        if self.calls:
            serial, (_, size, _) = next(iter(self.calls.items()))
            assert serial > self.last_admitted, "a later call was given room first"
            full = s.capacity_bytes is not None and s.pending_bytes + size > s.capacity_bytes
            assert s.pending >= s.capacity or full, "there is room, and a put waits"

    # --- what is done to it

    async def apply(self, step: Operation, nursery: trio.Nursery) -> None:
        name, *rest = step
        if name in {"put", "put_nowait"}:
            self._put(nursery, name, *rest)
        elif name == "pass":
            for _ in range(rest[0]):
                await trio.sleep(TICK)
                await wait_all_tasks_blocked()
                self.check()
        elif name == "cancel":
            self._cancel(rest[0])
        elif name == "give up":
            if self.calls:
                _, _, scope = list(self.calls.values())[rest[0] % len(self.calls)]
                scope.cancel()
        elif name == "pause":
            self._pause()
        elif name == "resume":
            self.queue.resume()
            self.paused = False
        elif name == "capacity":
            self.queue.resize(capacity=rest[0])
        elif name == "workers":
            self.queue.resize(workers=rest[0])
        else:
            self.queue.resize(capacity_bytes=rest[0])
        await wait_all_tasks_blocked()
        self.check()

    def _pause(self) -> None:
        if self.queue.statistics().closed:
            with pytest.raises(QueueClosed):
                self.queue.pause()
        else:
            self.queue.pause()
            self.paused = True

    def _cancel(self, pick: int) -> None:
        known = [*self.accepted, "unknown"]
        id = known[pick % len(known)]
        if not self.scene.cancellable:
            with pytest.raises(RuntimeError):
                self.queue.cancel(id)
            return
        waits = id in {message.id for message in self.queue.messages()} - self.busy
        cancelled = self.queue.cancel(id)
        # Between two tries of a hand-back a message may count as being handed back, or as waiting.
        assert cancelled is waits or (waits and id in self.hand_back_failures)
        if cancelled:
            self.cancelled.append(id)
            self.changed = trio.current_time()

    def _put(
        self,
        nursery: trio.Nursery,
        name: str,
        delay: float,
        id: str | None,
        extra: int,
        plan: tuple[str, ...],
    ) -> None:
        self.serial += 1
        payload = b"%04d" % self.serial
        headers = {"h": "x" * (extra - 1)} if extra else None
        pending = [message.id for message in self.queue.messages()]
        if id is not None:
            id = f"own-{self.serial}" if id == "own" or not pending else pending[-1]
        self.plans[payload] = list(plan)
        s = self.queue.statistics()
        size = len(payload) + extra
        wrong = id in pending or (s.capacity_bytes is not None and size > s.capacity_bytes)
        fits = s.pending < s.capacity and (
            s.capacity_bytes is None or s.pending_bytes + size <= s.capacity_bytes
        )
        expected: type[Exception] | None = None
        if wrong:
            expected = ValueError
        elif s.closed:
            expected = QueueClosed
        elif s.puts_waiting or not fits:
            expected = QueueFull
        due = trio.current_time() + delay
        if name == "put_nowait":
            try:
                message = self.queue.put_nowait(payload, delay=delay, id=id, headers=headers)
            except (ValueError, QueueClosed, QueueFull) as error:
                assert type(error) is expected
                self.refused.add(payload)
            else:
                assert expected is None
                self._admit(message, due, id)
            return
        scope = trio.CancelScope()
        self.calls[self.serial] = (payload, size, scope)
        nursery.start_soon(self._call, self.serial, delay, id, headers, due)

    async def _call(
        self, serial: int, delay: float, id: str | None, headers: dict[str, str] | None, due: float
    ) -> None:
        payload, _, scope = self.calls[serial]
        try:
            with scope:
                try:
                    message = await self.queue.put(payload, delay=delay, id=id, headers=headers)
                except BaseException:
                    self.refused.add(payload)
                    raise
                self.last_admitted = max(self.last_admitted, serial)
                self._admit(message, due, id)
        except (ValueError, QueueClosed):
            pass
        finally:
            del self.calls[serial]

    def _admit(self, message: Message, due: float, id: str | None) -> None:
        assert message.execute_at == due, "stamped at the call"
        assert id is None or message.id == id
        assert message.id not in self.accepted, "two messages have one id"
        self.accepted[message.id] = message

    # --- how it ends

    async def drain(self, scope: trio.CancelScope) -> None:
        began = trio.current_time()
        before = self.queue.statistics()
        if self.scene.grace is not None:
            self.deadline = began + self.scene.grace
        self.paused = False
        report: DrainReport | None = None
        with scope:
            hand_back = None if self.scene.hand_back is None else self.hand_back
            report = await self.queue.drain(self.scene.grace, hand_back)
        self.drained_at = trio.current_time()
        assert self.drained_at <= self.deadline, "the grace is over"
        with pytest.raises(QueueClosed):
            await self.queue.drain()
        if report is None:
            return
        after = self.check_instant()
        for term in ("sent", "dead", "cancelled", "handed_back", "spooled"):
            assert getattr(report, term) == getattr(after, term) - getattr(before, term)
        assert report.remaining == self.queue.messages()
        if self.scene.grace is None:
            assert report.remaining == []
        if self.drained_at < self.deadline:  # nobody was cut off, so what remains was not for anyone
            nobody_yet = {None, "permanent", "fails twice", "throttled"}  # the next try would be too late
            assert self.scene.hand_back in nobody_yet or report.remaining == []
            assert self.drained_at == max(began, self.changed), "it has waited for nothing"

    async def end(self, nursery: trio.Nursery) -> None:
        """The last lines of the block."""
        ending = self.scene.ending
        if ending in {"drain", "cancelled drain"}:
            scope = trio.CancelScope()
            nursery.start_soon(self.drain, scope)
            await wait_all_tasks_blocked()
            if self.scene.hand_back == "takes":
                untried = [message for message in self.queue.messages() if message.id not in self.tried]
                assert all(message.execute_at < self.deadline for message in untried)
            for step in self.scene.meanwhile:
                await self.apply(step, nursery)
            if ending == "cancelled drain":
                scope.cancel()
        elif ending == "exception":
            raise Boom
        elif ending == "cancelled":
            nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()


async def play(world: World) -> None:
    """Do all that the scene says, and check everything after the block too."""
    scene = world.scene

    async def while_leaving() -> None:
        await wait_all_tasks_blocked()
        for step in scene.meanwhile:
            await world.apply(step, nursery)

    raised: BaseException | None = None
    from_block: BaseException | None = None
    with trio.CancelScope(deadline=LATEST) as limit:
        async with trio.open_nursery() as nursery:
            try:
                async with open_delay_queue(
                    world.send,
                    capacity=scene.capacity,
                    capacity_bytes=scene.capacity_bytes,
                    workers=scene.workers,
                    cancellable=scene.cancellable,
                    retry=RetryPolicy(scene.attempts, wait_initial=TICK, wait_max=1.0, wait_jitter=0),
                    send_timeout=SEND_TIMEOUT,
                    on_dead_letter=None if scene.hook is None else world.bury,
                ) as world.queue:
                    try:
                        for step in scene.steps:
                            await world.apply(step, nursery)
                        await world.end(nursery)
                    except BaseException as error:
                        from_block = error
                        raise
                    if scene.ending == "leave":
                        world.paused = False
                        nursery.start_soon(while_leaving)
                        left = trio.current_time()
            except Boom as error:
                raised = error
            except BaseException as error:
                raised = error
                raise
            finally:
                ended = trio.current_time()
            if scene.ending == "leave":
                assert world.queue.messages() == []
                assert ended == max(left, world.changed), "it has waited for nothing"
    assert not limit.cancelled_caught, "the block was never left"
    assert raised is from_block, "an exception leaves the block as it is"
    assert (scene.ending == "exception") == isinstance(raised, Boom)
    assert not world.busy
    world.drained_at = ended
    world.check()


class Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
