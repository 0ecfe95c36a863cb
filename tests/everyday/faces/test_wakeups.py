"""What it costs to put from another thread: no turn of the loop and no switch of threads a message."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from localdelay import Message, threads
from localdelay.hops import Hop
from localdelay.portal import tasks
from localdelay.queue.sending import Outcome
from tests.kit.waiting import on_asyncio, until


class Calls:
    """How often the loop is called by other threads, in place of what calls it."""

    def __init__(self, post: Callable[..., object]) -> None:
        self._post = post
        self.count = 0

    def __call__(self, *call: Any) -> object:
        self.count += 1
        return self._post(*call)


def is_asleep(queue: threads.DelayQueue) -> bool:
    """Whether the loop sleeps until a message is due."""
    return math.isfinite(queue.remote.queue.core.pending.schedule.alarm.until)


def test_only_what_is_due_before_the_loop_wakes_calls_it() -> None:
    """All else comes in when it wakes, or when somebody asks."""
    sent: list[bytes] = []

    def send(message: Message) -> None:
        sent.append(message.payload)

    with threads.open_delay_queue(send, capacity=1000, workers=1) as queue:
        first = queue.put_nowait(b"first", delay=60.0)
        until(lambda: is_asleep(queue))
        queue.remote.intake._post = calls = Calls(queue.remote.intake._post)
        later = [queue.put_nowait(b"later", delay=61.0) for _ in range(100)]
        assert calls.count == 0
        queue.put_nowait(b"earlier", delay=0.0)
        assert calls.count == 1
        until(lambda: sent == [b"earlier"])
        until(lambda: is_asleep(queue))
        last = queue.put_nowait(b"last", delay=62.0)
        assert queue.messages() == [first, *later, last]
        assert queue.statistics().pending == 102
        for message in queue.messages():
            queue.cancel(message.id)


def test_much_comes_in_although_it_is_due_later() -> None:
    """What waits outside has a bound; it takes more memory there than inside."""
    with threads.open_delay_queue(print, capacity=2000, workers=1) as queue:
        queue.put_nowait(b"", delay=60.0)
        until(lambda: is_asleep(queue))
        for _ in range(1000):
            queue.put_nowait(b"", delay=61.0)
        until(lambda: queue.remote.queue.core.pending.ledger.pending > 500)
        queue.drain(grace=0.0)


def test_a_busy_queue_is_not_called_for_each_message() -> None:
    """Neither by who puts nor by who has sent: it looks when the next message is due."""
    count = 2000
    with threads.open_delay_queue(lambda message: None, capacity=count, workers=20) as queue:
        intake, workers = queue.remote.intake, queue.remote.queue.core.workers
        until(lambda: hasattr(workers, "_done"))  # the workers have begun
        done = workers._done  # type: ignore[attr-defined]
        intake._post = puts = Calls(intake._post)
        done._post = sends = Calls(done._post)
        start = time.perf_counter()
        for number in range(count):
            while time.perf_counter() < start + number * 1e-4:
                time.sleep(0)
            queue.put_nowait(b"", delay=0.05)
        until(lambda: queue.statistics().sent == count)
    assert puts.count < count / 10
    assert sends.count < count / 4


@pytest.mark.skipif(sys.gettrace() is not None, reason="who traces makes threads stop anywhere")
def test_no_thread_has_to_stop_with_the_lock_in_its_hands() -> None:
    """Or all others would line up for it, and from then on each put would wake a thread."""
    held = 0
    with threads.open_delay_queue(print, capacity=100_000, workers=1) as queue:
        lock = queue.remote.intake.lock

        def produce() -> None:
            nonlocal held
            for _ in range(15_000):
                held += "unlocked" not in repr(lock)  # to take it would be a call that holds it
                queue.put_nowait(b"", delay=3600.0)

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        try:
            producers = [threading.Thread(target=produce) for _ in range(4)]
            for producer in producers:
                producer.start()
            for producer in producers:
                producer.join()
        finally:
            sys.setswitchinterval(before)
        queue.drain(grace=0.0)
    print(f"found held {held} times")
    assert held < 5


def senders_on_asyncio(sent: list[bytes], done: Hop[Outcome]) -> tasks.Tasks:
    async def send(message: Message) -> None:
        sent.append(message.payload)

    senders = tasks.Tasks(send, 1)
    senders.begin(time.perf_counter, 0.0, done)
    return senders


@on_asyncio
async def test_asyncios_loop_is_called_once_for_all_that_is_given_before_it_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And again for what is given after its look."""
    loop = asyncio.get_running_loop()
    calls = Calls(loop.call_soon_threadsafe)
    monkeypatch.setattr(loop, "call_soon_threadsafe", calls)
    sent: list[bytes] = []
    senders = senders_on_asyncio(sent, Hop(lambda come: None, print))
    for rounds in (1, 2):
        senders.give([(0.0, 1, b"one")])
        senders.give([(0.0, 2, b"two")])
        assert calls.count == rounds
        await asyncio.sleep(0.01)
        assert sent == [b"one", b"two"] * rounds


def test_what_a_loop_was_given_before_it_was_closed_fails_with_what_it_is_given_then() -> None:
    """It was called, and has never looked."""
    loop = asyncio.new_event_loop()
    done: Hop[Outcome] = Hop(lambda come: None, print)

    async def make() -> tasks.Tasks:
        return senders_on_asyncio([], done)

    senders = loop.run_until_complete(make())
    senders.give([(0.0, 1, b"one")])
    assert done.take() == []
    loop.close()
    senders.give([(0.0, 2, b"two")])
    outcomes = done.take()
    assert [entry[1] for entry, _, _, _ in outcomes] == [1, 2]
    assert all(isinstance(error, RuntimeError) for _, _, _, error in outcomes)
