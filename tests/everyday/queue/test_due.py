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
