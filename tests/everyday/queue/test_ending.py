"""The last moments of a queue: who still works, who holds the loop, and what a Ctrl-C can do."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from localdelay import (
    DelayQueue,
    Message,
    PartialSendError,
    RateLimit,
    RetryPolicy,
    Statistics,
    open_delay_queue,
)
from localdelay.queue.schedule import Schedule
from localdelay.testing import RecordingSender
from localdelay.timer import Timer

Conserved: TypeAlias = Callable[[DelayQueue], Statistics]


async def test_hand_backs_that_do_not_wait_leave_the_loop_to_others(
    autojump_clock: Any, conserved: Conserved
) -> None:
    """A client that only buffers is given no more than a hundred messages in a row."""
    given = 0
    seen: list[int] = []
    done = False

    async def hand_back(message: Message, remaining: float) -> None:
        nonlocal given
        given += 1

    async def other() -> None:
        while not done:
            seen.append(given)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with open_delay_queue(RecordingSender(), capacity=10_000, workers=1) as queue:
            for _ in range(10_000):
                queue.put_nowait(b"", delay=600)
            nursery.start_soon(other)
            report = await queue.drain(grace=1.0, hand_back=hand_back)
            done = True
            assert report.handed_back == 10_000
            assert conserved(queue).pending == 0
    assert max(after - before for before, after in pairwise(seen)) <= 2 * 100


class EachReadTakesTime(trio.abc.Clock):
    """Time passes where somebody looks at the clock, and nowhere else."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self.now += self.step
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0


class Counting(RateLimit):
    """Counts what it lets through."""

    granted = 0

    def try_acquire(self, count: float = 1) -> bool:
        is_granted = super().try_acquire(count)
        self.granted += is_granted
        return is_granted


@pytest.mark.parametrize("step", [0.002, 0.003])
def test_every_hand_back_has_a_token_of_its_own(step: float) -> None:
    """Also that of a message which failed, and is to be tried again just when its turn is looked for."""
    random.seed(1)
    limit, calls = Counting(1e6, burst=1e6), 0

    async def hand_back(message: Message, remaining: float) -> None:
        nonlocal calls
        calls += 1
        raise OSError("down")

    async def main() -> None:
        retry = RetryPolicy(wait_initial=1.0, wait_max=1.0, wait_jitter=0.9)
        async with open_delay_queue(
            RecordingSender(), capacity=99, workers=1, limit=limit, retry=retry, timer="trio"
        ) as queue:
            for _ in range(20):
                queue.put_nowait(b"", delay=1e6)
            await queue.drain(60.0, hand_back)

    trio.run(main, clock=EachReadTakesTime(step))
    assert calls == limit.granted > 500


@pytest.mark.parametrize("by", ["drain", "leaving"])
async def test_what_is_left_of_a_failed_batch_is_sent_by_all_workers(
    by: str, autojump_clock: Any, conserved: Conserved
) -> None:
    """Also when the queue was closed before the batch failed: nobody leaves while there may be more to do."""

    async def send_batch(messages: Sequence[Message]) -> None:
        await trio.sleep(1)
        if len(messages) > 1:
            raise PartialSendError({message.id: OSError() for message in messages})

    retry = RetryPolicy(wait_initial=1, wait_max=1, wait_jitter=0)
    async with open_delay_queue(send_batch=send_batch, retry=retry, capacity=100, workers=20) as queue:
        for _ in range(100):
            queue.put_nowait(b"", delay=0)
        if by == "drain":
            assert (await queue.drain(grace=25)).sent == 100
            assert conserved(queue).sent == 100
    # A second for the batch, one of waiting, and five for a hundred sends by twenty workers.
    assert trio.current_time() == 7


@pytest.mark.parametrize("grace", [None, 1.0])
def test_ctrl_c_while_the_workers_end_hangs_nothing(
    grace: float | None, monkeypatch: pytest.MonkeyPatch, conserved: Conserved
) -> None:
    """It comes out of the block, alone, and the queue has ended."""
    queues: list[DelayQueue] = []

    def close(timer: Timer) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    async def main() -> None:
        async with open_delay_queue(RecordingSender(), capacity=10, workers=3) as queue:
            queues.append(queue)
            queue.put_nowait(b"x", delay=0.5)
            monkeypatch.setattr(Timer, "close", close)
            if grace is not None:
                await queue.drain(grace=grace)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert conserved(queues[0]).sent == 1


def test_what_was_popped_off_the_heap_stays_within_the_horizon() -> None:
    """Messages that were seen to be due, and not taken, are sent by a drain and not handed back."""
    schedule = Schedule(indexed=False)
    for number in range(20):
        schedule.put((20.0 - number, number, b""))  # each earlier than the last: lanes first, then the heap
    assert [entry[0] for entry in schedule.due(3.5, 10)] == [1.0, 2.0, 3.0]
    schedule.set_horizon(10.0)
    sent = []
    while due := schedule.due(100.0, 10):
        schedule.take(due)
        sent += [entry[0] for entry in due]
    assert sent == [float(due) for due in range(1, 10)]
    later = [schedule.take_later(0.0) for _ in range(11)]
    assert [entry[0] for entry in later if entry is not None] == [float(due) for due in range(10, 21)]
