"""Cancellation, and what is no `Exception`, at every step: nothing is lost, and nothing is swallowed."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import localdelay.queue.draining
from localdelay import (
    DelayQueue,
    Message,
    PermanentSendError,
    QueueClosed,
    RetryPolicy,
    Statistics,
    Throttled,
    open_delay_queue,
)

Conserved: TypeAlias = Callable[[DelayQueue], Statistics]
SCHEDULES = range(2)
"""Seeds for the order in which Trio runs the tasks that are ready at the same instant."""


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope before the n-th step of all tasks, counted from `begin`."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.scope: trio.CancelScope | None = None
        self.fired = False

    def begin(self, scope: trio.CancelScope) -> None:
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.scope is None or self.fired:
            return
        self.left -= 1
        if self.left == 0:
            self.fired = True
            self.scope.cancel()


class Scenario:
    """A queue that does everything it can do at once, in a few virtual seconds."""

    queue: DelayQueue

    def __init__(self, target: str, cancel: CancelAtStep, conserved: Conserved, *, drains: bool) -> None:
        self.target = target
        self.cancel = cancel
        self.conserved = conserved
        self.drains = drains
        self.whole, self.producer, self.drainer = (trio.CancelScope() for _ in range(3))
        self.puts = 0
        self.called: list[bytes] = []
        self.refused: set[bytes] = set()
        self.finished: list[bytes] = []
        self.sent: list[bytes] = []
        self.cancelled: list[bytes] = []
        self.hand_backs = 0
        self.from_block: BaseException | None = None
        self.raised: BaseException | None = None

    async def send(self, message: Message) -> None:
        self._check(message)
        kind = message.payload.split()[0]
        if kind == b"fails" and message.attempt == 1:
            await trio.sleep(0.25)
            raise ValueError
        if kind == b"throttled" and message.payload not in self.sent:
            self.sent.append(message.payload)
            raise Throttled(retry_after=0.5)
        if kind == b"hangs" and message.attempt == 1:
            await trio.sleep_forever()
        if kind == b"mixed" and message.attempt == 1:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError
        if kind == b"permanent":
            raise PermanentSendError
        if kind == b"slow":
            await trio.sleep(0.75)
        self.finished.append(message.payload)

    async def bury(self, message: Message, error: Exception) -> None:
        self._check(message)
        await trio.sleep(0.5)
        self.finished.append(message.payload)

    async def hand_back(self, message: Message, remaining: float) -> None:
        self._check(message)
        self.hand_backs += 1
        if self.hand_backs == 1:
            raise ValueError
        await trio.sleep(0.25)
        self.finished.append(message.payload)

    def _check(self, message: Message) -> None:
        assert trio.current_time() >= message.execute_at or self.queue.statistics().closed
        assert message.payload not in self.refused
        self.conserved(self.queue)

    async def produce(self, prefix: bytes, delays: list[tuple[bytes, float]]) -> None:
        with self.producer if prefix == b"a" else trio.CancelScope():
            for index, (kind, delay) in enumerate(delays):
                payload = b"%s %s%d" % (kind, prefix, index)
                self.called.append(payload)
                try:
                    await self.queue.put(payload, delay=delay, id=payload.decode())
                except BaseException:
                    self.refused.add(payload)
                    raise

    async def interfere(self) -> None:
        await trio.sleep(0.5)
        for message in self.queue.messages()[-2:]:
            if self.queue.cancel(message.id):
                self.cancelled.append(message.payload)
        self.queue.pause()
        await trio.sleep(0.5)
        self.queue.resize(workers=1, capacity=2)
        self.queue.resume()
        await trio.sleep(0.5)
        self.queue.resize(workers=4, capacity=7)

    async def drain(self) -> None:
        began = trio.current_time()
        with self.drainer:
            report = await self.queue.drain(3.0, self.hand_back)
            assert report.remaining == self.queue.messages()
        assert trio.current_time() <= began + 3.0
        with pytest.raises(QueueClosed):
            await self.queue.drain()

    async def block(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                self.produce, b"a", [(b"slow", 0.0), (b"fails", 0.25), (b"plain", 1.0), (b"hangs", 0.5)] * 2
            )
            nursery.start_soon(
                self.produce,
                b"b",
                [(b"permanent", 0.25), (b"throttled", 0.0), (b"mixed", 0.5), (b"plain", 2.0)],
            )
            nursery.start_soon(self.interfere)
        self.queue.resize(capacity=12)
        for delay in (1.0, 2.0, 20.0, 30.0, 40.0):
            self.called.append(b"last %d" % delay)
            self.queue.put_nowait(b"last %d" % delay, delay=delay, id=f"last {delay:.0f}")
        if self.drains:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.drain)

    async def run(self) -> None:
        self.cancel.begin(getattr(self, self.target))
        with self.whole:
            try:
                async with open_delay_queue(
                    self.send,
                    capacity=5,
                    workers=2,
                    retry=RetryPolicy(attempts=3, wait_initial=0.5, wait_jitter=0),
                    send_timeout=1.0,
                    on_dead_letter=self.bury,
                ) as self.queue:
                    try:
                        await self.block()
                    except BaseException as error:
                        self.from_block = error
                        raise
            except BaseException as error:
                self.raised = error
                raise

    def check(self) -> None:
        """Nothing is lost, whatever was cut off."""
        s = self.conserved(self.queue)
        pending = [message.payload for message in self.queue.messages()]
        accepted = [payload for payload in self.called if payload not in self.refused]
        assert sorted([*self.finished, *self.cancelled, *pending]) == sorted(accepted)
        assert s.accepted == len(accepted)
        assert s.sending == s.puts_waiting == s.workers_busy == 0
        assert s.closed
        if self.from_block is not None:
            assert self.raised is self.from_block
        elif self.raised is not None:
            assert type(self.raised) is trio.Cancelled
        assert self.whole.cancelled_caught == (self.raised is not None)


def _run(scenario: Scenario, seed: int) -> None:
    # The order of ready tasks comes from this generator: the n-th step is to be the same in every run.
    trio._core._run._r.seed(seed)
    random.seed(seed)
    trio.run(scenario.run, clock=MockClock(autojump_threshold=0), instruments=[scenario.cancel])
    scenario.check()


@pytest.mark.parametrize("seed", SCHEDULES)
@pytest.mark.parametrize(
    ("target", "drains"), [("whole", True), ("whole", False), ("producer", False), ("drainer", True)]
)
def test_nothing_is_lost_wherever_a_cancellation_strikes(
    target: str, drains: bool, seed: int, conserved: Conserved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenario is cancelled before its first step, its second, and so on until it gets through."""
    # A hundred tasks of which two have something to do would only add steps at which nothing happens.
    monkeypatch.setattr(localdelay.queue.draining, "HAND_BACKS_IN_FLIGHT", 2)
    step = 0
    while True:
        step += 1
        scenario = Scenario(target, CancelAtStep(step), conserved, drains=drains)
        try:
            _run(scenario, seed)
        except BaseException as error:
            error.add_note(f"cancelled before step {step} with seed {seed}")
            raise
        if not scenario.cancel.fired:
            break
    assert step > 50
    assert scenario.raised is None
    if not drains:
        assert scenario.queue.messages() == []


class Stop(BaseException):
    """No `Exception`: what a KeyboardInterrupt is to a send."""


async def _sleeps_and_raises(error: BaseException) -> None:
    await trio.sleep(0.5)
    raise error


async def _raises_in_a_nursery(error: BaseException) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sleeps_and_raises, error)
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the send's own")


@pytest.mark.parametrize("leaving", [False, True])
@pytest.mark.parametrize("how", [_sleeps_and_raises, _raises_in_a_nursery])
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_comes_out_bare_and_loses_nothing(
    kind: type[BaseException],
    how: Callable[[BaseException], Awaitable[None]],
    leaving: bool,
    conserved: Conserved,
) -> None:
    """It ends the queue, not the bookkeeping: every message is pending, the other sends' ones too."""
    error = kind()
    queue: Any = None
    called: list[bytes] = []

    async def send(message: Message) -> None:
        conserved(queue)
        called.append(message.payload)
        if message.payload == b"stop":
            await how(error)
        await trio.sleep_forever()

    async def main() -> None:
        nonlocal queue
        async with open_delay_queue(send, capacity=10, workers=6) as queue:
            for payload, delay in [(b"a", 0.75), (b"stop", 1.0), (b"b", 1.0), (b"c", 1.0), (b"d", 9.0)]:
                queue.put_nowait(payload, delay=delay)
            if not leaving:
                await trio.sleep_forever()

    with pytest.raises(kind) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert caught.value is error
    assert sorted(called) == [b"a", b"b", b"c", b"stop"], "an idle worker has sent one of them again"
    assert conserved(queue).waiting == 5
    assert [message.attempt for message in queue.messages()] == [1] * 5


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handling of SIGINT, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["block", "leaving", "drain", "hand back"])
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_comes_out_bare(where: str, conserved: Conserved) -> None:
    """A KeyboardInterrupt in the main task is one when it leaves the block, and nothing is lost."""
    queue: Any = None

    async def send(message: Message) -> None:
        await trio.sleep_forever()

    async def hand_back(message: Message, remaining: float) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        nonlocal queue
        async with open_delay_queue(send, capacity=10, workers=3) as queue:
            queue.put_nowait(b"a", delay=0.5)
            queue.put_nowait(b"b", delay=5.0)
            trio.lowlevel.spawn_system_task(interrupt)
            if where == "block":
                await trio.sleep_forever()
            elif where == "drain":
                await queue.drain()
            elif where == "hand back":
                await queue.drain(3.0, hand_back)

    async def interrupt() -> None:
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert conserved(queue).waiting == 2


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
async def test_what_a_hand_back_raises_that_is_no_exception_leaves_drain_bare(
    kind: type[BaseException], conserved: Conserved, autojump_clock: MockClock
) -> None:
    """It ends the drain at once, is raised once and bare, and its message is pending."""
    error = kind()
    calls = 0

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()

    async def hand_back(message: Message, remaining: float) -> None:
        nonlocal calls
        calls += 1
        raise error

    async with open_delay_queue(send, capacity=10, workers=3) as queue:
        queue.put_nowait(b"a", delay=9.0)
        with pytest.raises(kind) as caught:
            await queue.drain(3.0, hand_back)
    assert caught.value is error
    assert calls == 1
    assert conserved(queue).waiting == 1


async def send_back(message: Message, remaining: float) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("where", ["leaving", "drain"])
async def test_a_cancelled_comes_out_of_leaving_and_of_drain_bare(
    where: str, conserved: Conserved, autojump_clock: MockClock
) -> None:
    """Code that catches `trio.Cancelled` to clean up sees it, and not a group."""

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()

    with trio.move_on_after(1.0) as scope:
        with pytest.raises(trio.Cancelled):
            async with open_delay_queue(send, capacity=10, workers=3) as queue:
                queue.put_nowait(b"a", delay=9.0)
                if where == "drain":
                    with pytest.raises(trio.Cancelled):
                        await queue.drain(20.0, send_back)
                    await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert conserved(queue).waiting == 1
