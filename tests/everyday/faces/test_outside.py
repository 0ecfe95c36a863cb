"""Sends that run elsewhere than on the queue's loop: handed over in runs, and still each on its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import math
import threading
import time
from collections import Counter
from typing import Any

import pytest

from localdelay import Message, PartialSendError, PermanentSendError, RateLimit, RetryPolicy, aio, threads
from localdelay.portal import outside, pool, tasks
from tests.kit.waiting import on_asyncio, until

pytestmark = pytest.mark.filterwarnings("error")

AT_ONCE = RetryPolicy(wait_initial=0.0, wait_jitter=0.0)


class Gauge:
    """How many calls are under way, and how many were at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


class Gate:
    """A blocking send that returns at once while the gate is open."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.gauge = Gauge()
        self.sent: Counter[bytes] = Counter()

    def __call__(self, message: Message) -> None:
        with self.gauge:
            self.open.wait(20)
            self.sent[message.payload] += 1


def test_senders_that_all_hang_hold_only_what_they_have() -> None:
    """What was handed over ahead of them, while they were fast, waits again, and can be cancelled."""
    gate = Gate()
    with threads.open_delay_queue(gate, capacity=5000, workers=2, send_timeout=None) as queue:
        for number in range(2000):
            queue.put_nowait(b"%d" % number, delay=0.0)
        until(lambda: queue.statistics().sent == 2000)
        gate.open.clear()
        messages = [queue.put_nowait(b"later %d" % number, delay=0.0) for number in range(500)]
        until(lambda: (queue.statistics().sending, queue.statistics().waiting) == (2, 498))
        assert queue.statistics().workers_busy == 2
        assert queue.cancel(messages[-1].id)
        gate.open.set()
    assert (queue.statistics().sent, queue.statistics().cancelled) == (2499, 1)
    assert set(gate.sent.values()) == {1}
    assert gate.gauge.most == 2


def test_one_that_hangs_holds_nobody_of_its_run() -> None:
    """All others are sent while it hangs, until it is given up; then it is sent again."""
    hold = threading.Event()
    sent: Counter[bytes] = Counter()

    def send(message: Message) -> None:
        if message.payload == b"0" and message.attempt == 1:
            hold.wait(20)
        sent[message.payload] += 1

    with threads.open_delay_queue(send, capacity=5000, workers=2, send_timeout=0.3, retry=AT_ONCE) as queue:
        for number in range(1000):
            queue.put_nowait(b"%d" % number, delay=0.0)
        until(lambda: queue.statistics().sent == 1000)
        assert (queue.statistics().failures, sent[b"0"]) == (1, 1)
        hold.set()
        until(lambda: sent[b"0"] == 2)  # the call that was given up returns
    assert queue.statistics().sent == 1000


def test_an_error_that_says_which_messages_failed_counts_for_one_alone() -> None:
    """As in a queue on Trio: what it says of the message decides, or that it says nothing of it."""
    dead: dict[bytes, str] = {}
    calls: Counter[bytes] = Counter()

    def send(message: Message) -> None:
        calls[message.payload] += 1
        raise PartialSendError(
            {message.id: PermanentSendError("no")} if message.payload == b"refused" else {}
        )

    def on_dead_letter(message: Message, error: Exception) -> None:
        dead[message.payload] = str(error)

    with threads.open_delay_queue(
        send,
        capacity=9,
        workers=2,
        retry=RetryPolicy(attempts=2, wait_initial=0.0),
        on_dead_letter=on_dead_letter,
    ) as queue:
        queue.put_nowait(b"refused", delay=0.0)
        queue.put_nowait(b"sent", delay=0.0)
    assert (queue.statistics().sent, queue.statistics().dead, queue.statistics().failures) == (1, 1, 1)
    assert dead == {b"refused": "no"}
    assert set(calls.values()) == {1}


def test_a_pause_takes_back_what_has_not_begun() -> None:
    """Sends that have begun go on, and no other begins."""
    gate = Gate()
    with threads.open_delay_queue(gate, capacity=5000, workers=2) as queue:
        for number in range(500):
            queue.put_nowait(b"%d" % number, delay=0.0)
        until(lambda: queue.statistics().sent == 500)
        gate.open.clear()
        for number in range(100):
            queue.put_nowait(b"later %d" % number, delay=0.0)
        until(lambda: gate.gauge.now == 2)
        queue.pause()
        gate.open.set()
        until(lambda: queue.statistics().sending == 0)
        assert queue.statistics().waiting == 98
        queue.resume()
    assert queue.statistics().sent == 600


def test_what_waits_for_the_limit_is_not_sent_in_a_pause() -> None:
    """It goes back, and so does its token, and it is sent after the pause."""
    gate = Gate()
    limit = RateLimit(2.0, burst=1)
    with threads.open_delay_queue(gate, capacity=10, workers=2, limit=limit) as queue:
        for number in range(3):
            queue.put_nowait(b"%d" % number, delay=0.0)
        until(lambda: queue.statistics().sent == 1)
        queue.pause()
        until(lambda: queue.statistics().waiting == 2)
        until(lambda: queue.remote.ask(lambda: limit.available) == 1.0)
        assert queue.statistics().sent == 1
        queue.resume()
    assert set(gate.sent.values()) == {1}


def test_looks_that_find_nothing_leave_nothing() -> None:
    """While a limit holds all up it is asked again and again, and what was asked is looked at each time."""
    gate = Gate()
    limit = RateLimit(0.01, burst=1)
    with threads.open_delay_queue(gate, capacity=200, workers=2, limit=limit) as queue:
        taking = queue.remote.queue.core.workers._taking
        for number in range(50):
            queue.put_nowait(b"%d" % number, delay=0.0)
            queue.resume()  # they look again
        assert queue.remote.ask(lambda: taking._asked) == []
        assert len(queue.drain(0.0).remaining) >= 48


def one_run(queue: threads.DelayQueue | aio.DelayQueue) -> None:
    """One that holds its sender, in the midst of others; the first of them are sent and not told of yet."""
    for number in range(40):
        queue.put_nowait(b"before %d" % number, delay=0.0)
    queue.put_nowait(b"hold", delay=0.0)
    for number in range(40):
        queue.put_nowait(b"after %d" % number, delay=0.0)


def tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent while there is more to be sent is told of late, as it may be on a busy machine."""
    monkeypatch.setattr(outside, "_STALL", 20.0)
    for senders in (pool, tasks):
        monkeypatch.setattr(senders, "TELL_EVERY", math.inf)


LEFT = {b"hold"} | {b"after %d" % number for number in range(40)}


def test_a_drain_that_is_cut_off_brings_back_nothing_that_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is being sent right then; also where it was not told of yet that the others are sent."""
    begun, hold = threading.Event(), threading.Event()

    def send(message: Message) -> None:
        if message.payload == b"hold":
            begun.set()
            hold.wait(20)

    with threads.open_delay_queue(send, capacity=5000, workers=1) as queue:
        for _ in range(2000):
            queue.put_nowait(b"", delay=0.0)
        until(lambda: queue.statistics().sent == 2000)
        queue.pause()
        tell_nothing(monkeypatch)
        one_run(queue)
        queue.resume()
        assert begun.wait(20)
        report = queue.drain(grace=0.0)
        hold.set()
    assert {message.payload for message in report.remaining} == LEFT
    assert queue.statistics().sent == 2040


def test_lateness_and_time_limit_count_from_the_begin_of_each_send() -> None:
    """Not from when a run was handed over: slow sends are late, and none of them takes too long."""

    def send(message: Message) -> None:
        threading.Event().wait(0.03)

    with threads.open_delay_queue(send, capacity=100, workers=1, send_timeout=0.2) as queue:
        for _ in range(12):
            queue.put_nowait(b"", delay=0.0)
    statistics = queue.statistics()
    assert (statistics.sent, statistics.failures) == (12, 0)
    assert statistics.lateness.max > 11 * 0.03
    assert statistics.lateness.p50 < statistics.lateness.max


def test_more_and_fewer_threads() -> None:
    """`resize` says how many calls may be under way, for new ones."""
    gate = Gate()
    with threads.open_delay_queue(gate, capacity=5000, workers=1) as queue:
        gate.open.clear()
        for number in range(100):
            queue.put_nowait(b"%d" % number, delay=0.0)
        until(lambda: gate.gauge.now == 1)
        queue.resize(workers=5)
        until(lambda: gate.gauge.now == 5)
        queue.resize(workers=2)
        gate.open.set()
        until(lambda: queue.statistics().sent == 100)
        gate.open.clear()
        gate.gauge.most = 0
        for number in range(100):
            queue.put_nowait(b"later %d" % number, delay=0.0)
        until(lambda: gate.gauge.now == 2)
        gate.open.set()
    assert gate.gauge.most == 2


def test_no_thread_stays_behind() -> None:
    """They end with the queue; one that hangs, when it returns."""

    def ours() -> int:
        return sum(thread.name.startswith("localdelay") for thread in threading.enumerate())

    until(lambda: ours() == 0)
    gate = Gate()
    with threads.open_delay_queue(gate, capacity=10, workers=5) as queue:
        gate.open.clear()
        queue.put_nowait(b"", delay=0.0)
        until(lambda: gate.gauge.now == 1)
        queue.drain(grace=0.0)
    until(lambda: ours() == 1)
    gate.open.set()
    until(lambda: ours() == 0)


@on_asyncio
async def test_a_coroutine_that_does_not_wait_needs_no_task_of_its_own() -> None:
    """Thousands are sent by a handful of tasks, and what else runs on the loop has its turns."""
    made = beats = 0

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal made
        made += 1
        return asyncio.Task(coro, loop=loop, **options)

    async def send(message: Message) -> None:
        end = time.perf_counter() + 20e-6
        while time.perf_counter() < end:
            pass

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    asyncio.get_running_loop().set_task_factory(factory)
    async with aio.open_delay_queue(send, capacity=5000, workers=20) as queue:
        beating = asyncio.create_task(beat())
        for _ in range(5000):
            queue.put_nowait(b"", delay=0.0)
        await queue.drain()
        beating.cancel()
    assert (await queue.statistics()).sent == 5000
    assert made < 500
    assert beats > 20


@on_asyncio
async def test_a_drain_on_asyncio_that_is_cut_off_brings_back_nothing_that_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for what is being sent right then."""
    begun = asyncio.Event()

    async def send(message: Message) -> None:
        if message.payload == b"hold":
            begun.set()
            await asyncio.sleep(20)

    async with aio.open_delay_queue(send, capacity=5000, workers=1) as queue:
        for _ in range(2000):
            queue.put_nowait(b"", delay=0.0)
        while (await queue.statistics()).sent < 2000:  # noqa: ASYNC110 (time passes elsewhere)
            await asyncio.sleep(0.002)
        await queue.pause()
        tell_nothing(monkeypatch)
        one_run(queue)
        await queue.resume()
        await begun.wait()
        report = await queue.drain(grace=0.0)
    assert {message.payload for message in report.remaining} == LEFT
    assert (await queue.statistics()).sent == 2040


@on_asyncio
async def test_a_send_has_one_task_from_its_begin_to_its_end() -> None:
    """Which no other send has meanwhile, so that time limits and task groups work in it."""
    tasks: dict[asyncio.Task[Any] | None, int] = {}
    gauge = Gauge()

    async def send(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert task not in tasks
        tasks[task] = 1
        with gauge:
            try:
                async with asyncio.timeout(0.5 if message.payload else 20):
                    await asyncio.sleep(20 if message.payload == b"too long" else 0.001)
            finally:
                assert asyncio.current_task() is task
                del tasks[task]

    async with aio.open_delay_queue(send, capacity=500, workers=7, retry=RetryPolicy(attempts=1)) as queue:
        for number in range(200):
            queue.put_nowait(b"too long" if number % 50 == 0 else b"", delay=0.0)
    statistics = await queue.statistics()
    assert (statistics.sent, statistics.dead) == (196, 4)
    assert gauge.most == 7


@on_asyncio
async def test_what_a_send_sets_in_its_context_ends_with_it() -> None:
    """It begins with the context that the queue was opened in."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: Counter[str] = Counter()

    async def send(message: Message) -> None:
        seen[variable.get()] += 1
        variable.set("mine")
        if message.payload:
            await asyncio.sleep(0)
        assert variable.get() == "mine"

    variable.set("opener's")
    async with aio.open_delay_queue(send, capacity=500, workers=3) as queue:
        for number in range(100):
            queue.put_nowait(b"x" * (number % 2), delay=0.0)
    assert seen == {"opener's": 100}


class Array:
    """Something that can't be compared, as an array of several values can't."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value is ambiguous")


@on_asyncio
async def test_a_context_that_cannot_be_compared_has_changed() -> None:
    """No task of the queue's fails by it, and the next send has a context of its own."""
    variable: contextvars.ContextVar[Array] = contextvars.ContextVar("variable")
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    openers = Array()
    seen: list[bool] = []

    async def send(message: Message) -> None:
        seen.append(variable.get() is openers)
        variable.set(Array())

    variable.set(openers)
    async with aio.open_delay_queue(send, capacity=500, workers=3) as queue:
        for _ in range(100):
            queue.put_nowait(b"", delay=0.0)
    assert seen == [True] * 100
    gc.collect()  # a task that has failed says so at its end
    await asyncio.sleep(0)
    assert said == []


@on_asyncio
async def test_a_send_that_will_not_be_cancelled_keeps_its_place() -> None:
    """It has failed when its time is over, and the others go on beside it."""
    go_on = asyncio.Event()
    attempts: Counter[int] = Counter()

    async def send(message: Message) -> None:
        attempts[message.attempt] += 1
        if message.payload == b"stubborn" and message.attempt == 1:
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go_on.wait()

    async with aio.open_delay_queue(send, capacity=500, workers=2, send_timeout=0.05, retry=AT_ONCE) as queue:
        queue.put_nowait(b"stubborn", delay=0.0)
        for _ in range(100):
            queue.put_nowait(b"", delay=0.0)
        while (await queue.statistics()).sent < 101:  # noqa: ASYNC110 (time passes elsewhere)
            await asyncio.sleep(0.002)
        assert (await queue.statistics()).failures == 1
        go_on.set()
    assert attempts == {1: 101, 2: 1}


@on_asyncio
async def test_a_send_that_somebody_cancels_harms_its_message_only() -> None:
    """It has failed, and is tried again; the queue goes on."""
    attempts: list[int] = []

    async def send(message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(20)

    async with aio.open_delay_queue(send, capacity=500, workers=2, retry=AT_ONCE, probe=None) as queue:
        for _ in range(10):
            queue.put_nowait(b"", delay=0.0)
    assert (await queue.statistics()).failures == 10
    assert Counter(attempts) == {1: 10, 2: 10}
