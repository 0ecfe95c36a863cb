"""When messages are sent: exact times on the virtual clock."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import trio

from localdelay import Message, open_delay_queue
from localdelay.testing import RecordingSender


@pytest.mark.parametrize("cancellable", [True, False])
@pytest.mark.parametrize("workers", [1, 2, 20])
@pytest.mark.parametrize("timer", ["auto", "trio"])
async def test_mixed_delays_are_sent_on_time(
    cancellable: bool, workers: int, timer: Any, autojump_clock: Any, conserved: Any
) -> None:
    """A short delay is never held up by a long one: each message leaves at its own execute-at."""
    sender = RecordingSender()
    delays = [5, 1, 3, 2, 4, 1.5, 100, 0.25, 99, 98, 97, 96, 95, 94, 93, 92, 0.125, 91, 0]
    async with open_delay_queue(
        sender, capacity=100, workers=workers, cancellable=cancellable, timer=timer
    ) as queue:
        for delay in delays:
            queue.put_nowait(str(delay).encode(), delay=delay)
        assert [m.execute_at for m in queue.messages()] == sorted(delays)
        conserved(queue)
    assert sender.times == sorted(delays)
    assert [float(p) for p in sender.payloads] == sorted(delays)
    assert conserved(queue).lateness.max == 0


async def test_one_delay_with_one_worker_is_fifo(autojump_clock: Any) -> None:
    """Messages of one delay are sent in the order of their puts, also among other delays."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=1000, workers=1) as queue:
        for i in range(100):
            queue.put_nowait(b"a%d" % i, delay=2)
            queue.put_nowait(b"b%d" % i, delay=1)
            if i % 7 == 0:
                await trio.sleep(0.001)
    assert [p for p in sender.payloads if p[:1] == b"a"] == [b"a%d" % i for i in range(100)]
    assert [p for p in sender.payloads if p[:1] == b"b"] == [b"b%d" % i for i in range(100)]


async def test_an_earlier_message_wakes_the_leader(autojump_clock: Any) -> None:
    """A message that is put while the workers sleep until a later one is sent on time."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=3) as queue:
        queue.put_nowait(b"late", delay=100)
        await trio.sleep(1)
        queue.put_nowait(b"early", delay=2)
        await trio.sleep(1)
        queue.put_nowait(b"now", delay=0)
    assert list(zip(sender.times, sender.payloads, strict=True)) == [
        (2, b"now"),
        (3, b"early"),
        (100, b"late"),
    ]


async def test_a_busy_worker_does_not_hold_up_the_others(autojump_clock: Any) -> None:
    """While one worker sends, the next due message is taken by another, on time."""
    sender = RecordingSender(duration=10)
    async with open_delay_queue(sender, capacity=10, workers=3) as queue:
        for delay in (1, 2, 3, 4):
            queue.put_nowait(b"", delay=delay)
    assert sorted(sender.times) == [1, 2, 3, 11]
    s = queue.statistics()
    assert (s.lateness.max, s.send_time.max, s.total.max) == (7, 10, 17)


async def test_all_workers_send_at_once(autojump_clock: Any, conserved: Any) -> None:
    """As many sends run at the same time as there are workers, and no more."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=100, workers=7) as queue:
        for _ in range(21):
            queue.put_nowait(b"", delay=1)
        await trio.sleep(1.5)
        s = conserved(queue)
        assert (s.sending, s.workers_busy, s.waiting) == (7, 7, 14)
    assert sender.times == [1] * 7 + [2] * 7 + [3] * 7


@pytest.mark.parametrize("workers", [1, 20])
async def test_a_send_that_never_waits_does_not_hog_the_loop(workers: int, autojump_clock: Any) -> None:
    """With many messages due and sends that return at once, other tasks get their turns.

    A turn is 1,024 messages, and Trio shuffles who runs first, so there may be two turns in a row. That holds
    for the pool as a whole: twenty workers do not take a turn each.
    """
    sent: list[int] = []
    done = False

    async def other() -> None:
        while not done:
            sent.append(queue.statistics().sent)
            await trio.lowlevel.checkpoint()

    async def send(message: Message) -> None:
        pass

    async with trio.open_nursery() as nursery:
        async with open_delay_queue(send, capacity=10_000, workers=workers) as queue:
            for _ in range(10_000):
                queue.put_nowait(b"", delay=0)
            nursery.start_soon(other)
        done = True
    assert max(after - before for before, after in pairwise(sent)) <= 2 * 1024


async def test_statistics_say_what_is_next_and_what_is_overdue(autojump_clock: Any, conserved: Any) -> None:
    """`next_due_in` and `oldest_overdue` are exact, waiting, overdue and being sent."""
    sender = RecordingSender(duration=10)
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        s = conserved(queue)
        assert (s.next_due_in, s.oldest_overdue) == (None, 0)
        queue.put_nowait(b"", delay=2)
        queue.put_nowait(b"", delay=3)
        s = conserved(queue)
        assert (s.next_due_in, s.oldest_overdue) == (2, 0)
        await trio.sleep(5)
        s = conserved(queue)
        assert (s.next_due_in, s.oldest_overdue) == (0, 3)
        await trio.sleep(8)
        assert conserved(queue).oldest_overdue == 10
    s = conserved(queue)
    assert (s.next_due_in, s.oldest_overdue) == (None, 0)


async def test_the_next_due_message_is_a_living_one(autojump_clock: Any) -> None:
    """A cancelled message is not what `next_due_in` speaks of, and nothing wakes up for it."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        first = queue.put_nowait(b"", delay=1)
        queue.put_nowait(b"", delay=5)
        queue.cancel(first.id)
        assert queue.statistics().next_due_in == 5
    assert sender.times == [5]


@pytest.mark.parametrize("seed", range(5))
async def test_lost_wake_ups(seed: int, autojump_clock: Any, conserved: Any) -> None:
    """However puts, sends and cancels fall together, no message waits past its time for an idle worker."""
    import random

    print("seed", seed)
    rng = random.Random(seed)

    async def send(message: Message) -> None:
        assert trio.current_time() == message.execute_at
        if rng.random() < 0.5:
            await trio.sleep(rng.choice([0, 0.01, 0.3]))

    async with open_delay_queue(send, capacity=1000, workers=200) as queue:
        for _ in range(300):
            message = queue.put_nowait(b"", delay=rng.choice([0, 0.01, 0.5, rng.random()]))
            if rng.random() < 0.2:
                queue.cancel(message.id)
            if rng.random() < 0.5:
                await trio.sleep(rng.choice([0, 0.01, 0.02, rng.random() / 10]))
            conserved(queue)
    s = conserved(queue)
    assert s.sent + s.cancelled == 300
    assert s.failures == 0


async def test_a_block_that_is_left_at_once_sends_all(autojump_clock: Any) -> None:
    """Messages that were put before any worker has run are sent all the same."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        queue.put_nowait(b"", delay=0)
        queue.put_nowait(b"", delay=1)
    assert sender.times == [0, 1]


async def test_an_empty_queue_is_left_at_once(autojump_clock: Any) -> None:
    """Leaving the block of a queue without messages takes no time."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=2):
        await trio.sleep(1)
    assert trio.current_time() == 1
