"""Pausing and resizing while running."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from localdelay import QueueClosed, QueueFull, open_delay_queue
from localdelay.testing import RecordingSender


async def test_pause_stops_sending_and_not_putting(autojump_clock: Any, conserved: Any) -> None:
    """While paused no send begins, one that has begun ends, and puts are accepted; resume sends at once."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        queue.put_nowait(b"begun", delay=1)
        queue.put_nowait(b"due while paused", delay=2)
        await trio.sleep(1.5)
        queue.pause()
        queue.put_nowait(b"put while paused", delay=0.5)
        assert conserved(queue).paused
        await trio.sleep(8.5)
        s = conserved(queue)
        assert (s.sent, s.waiting, s.sending, s.oldest_overdue) == (1, 2, 0, 8)
        queue.resume()
        assert not conserved(queue).paused
    assert sorted(sender.times) == [1, 10, 10]


async def test_pause_before_anything_runs(autojump_clock: Any, conserved: Any) -> None:
    """A queue that is paused at once sends nothing, also what was put before."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        queue.put_nowait(b"", delay=0)
        queue.pause()
        queue.pause()
        await trio.sleep(5)
        assert conserved(queue).waiting == 1
        queue.resume()
        queue.resume()
        await trio.sleep(1)
        assert sender.times == [5]


async def test_leaving_a_paused_queue_resumes_it(autojump_clock: Any) -> None:
    """Leaving the block sends all, paused or not; a queue that drains can't be paused."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        queue.put_nowait(b"", delay=1)
        queue.pause()
        await trio.sleep(3)
    assert sender.times == [3]
    with pytest.raises(QueueClosed):
        queue.pause()


async def test_resize_capacity(autojump_clock: Any, conserved: Any) -> None:
    """More room is there at once, also for puts that wait; less room loses nothing."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=1, workers=1) as queue, trio.open_nursery() as nursery:
        queue.put_nowait(b"1", delay=10)
        nursery.start_soon(lambda: queue.put(b"2", delay=20))
        nursery.start_soon(lambda: queue.put(b"3", delay=30))
        await trio.testing.wait_all_tasks_blocked()
        queue.resize(capacity=2)
        assert (conserved(queue).accepted, queue.statistics().puts_waiting) == (2, 1)
        queue.resize(capacity=5)
        assert (conserved(queue).accepted, queue.statistics().puts_waiting) == (3, 0)
        queue.resize(capacity=1)
        s = conserved(queue)
        assert (s.pending, s.capacity) == (3, 1)
        await trio.sleep(25)
        with pytest.raises(QueueFull):
            queue.put_nowait(b"4", delay=1)
        await trio.sleep(10)
        queue.put_nowait(b"4", delay=1)
    assert sender.times == [10, 20, 30, 36]


async def test_resize_capacity_bytes(autojump_clock: Any, conserved: Any) -> None:
    """The byte limit can be set, changed and taken away; a put that can never fit any more is told so."""
    async with (
        open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue,
        trio.open_nursery() as nursery,
    ):
        queue.put_nowait(b"12345", delay=1)
        queue.resize(capacity_bytes=8)
        assert conserved(queue).capacity_bytes == 8
        with pytest.raises(QueueFull):
            queue.put_nowait(b"1234", delay=1)

        async def too_large() -> None:
            with pytest.raises(ValueError, match="payload"):
                await queue.put(b"1234567", delay=1)

        async def fits_later() -> None:
            await queue.put(b"1234", delay=1)

        nursery.start_soon(too_large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fits_later)
        await trio.testing.wait_all_tasks_blocked()
        queue.resize(capacity_bytes=6)
        await trio.testing.wait_all_tasks_blocked()
        assert queue.statistics().puts_waiting == 1
        queue.resize(workers=2)
        assert queue.statistics().capacity_bytes == 6
        queue.resize(capacity_bytes=None)
        s = conserved(queue)
        assert (s.puts_waiting, s.capacity_bytes, s.pending_bytes) == (0, None, 9)


async def test_more_workers_send_at_once(autojump_clock: Any, conserved: Any) -> None:
    """New workers take what is due already."""
    sender = RecordingSender(duration=10)
    async with open_delay_queue(sender, capacity=100, workers=1) as queue:
        for _ in range(6):
            queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
        assert conserved(queue).sending == 1
        queue.resize(workers=4)
        await trio.testing.wait_all_tasks_blocked()
        s = conserved(queue)
        assert (s.sending, s.workers) == (4, 4)
    assert sorted(sender.times) == [1, 2, 2, 2, 11, 12]


async def test_fewer_workers_interrupt_no_send(autojump_clock: Any, conserved: Any) -> None:
    """Busy workers end their sends first; then there are as many as were asked for."""
    sender = RecordingSender(duration=10)
    async with open_delay_queue(sender, capacity=100, workers=4) as queue:
        for _ in range(8):
            queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
        queue.resize(workers=1)
        s = conserved(queue)
        assert (s.sending, s.workers, s.workers_busy) == (4, 1, 4)
        await trio.sleep(10)
        assert conserved(queue).workers_busy == 1
    assert sorted(sender.times) == [1, 1, 1, 1, 11, 21, 31, 41]
    assert conserved(queue).failures == 0


async def test_idle_workers_go_first(autojump_clock: Any) -> None:
    """Shrinking ends idle workers, the leader included, and what is due next is still sent on time."""
    sender = RecordingSender(duration=5)
    async with open_delay_queue(sender, capacity=100, workers=5) as queue:
        queue.put_nowait(b"", delay=1)
        queue.put_nowait(b"", delay=10)
        await trio.sleep(2)
        queue.resize(workers=2)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue._workers._workers) == 2
        assert queue.statistics().workers_busy == 1
        queue.resize(workers=1)
        await trio.testing.wait_all_tasks_blocked()
        assert len(queue._workers._workers) == 1
        queue.put_nowait(b"", delay=6)
    assert sender.times == [1, 8, 13]


async def test_resize_up_and_down_all_the_time(autojump_clock: Any, conserved: Any) -> None:
    """Whatever the pool's size from moment to moment, every message is sent once."""
    sender = RecordingSender(duration=0.05)
    async with open_delay_queue(sender, capacity=1000, workers=1) as queue:
        for i in range(200):
            queue.put_nowait(b"%d" % i, delay=i % 7 / 10)
            queue.resize(workers=1 + i * 7 % 11)
            await trio.sleep(0.02)
            conserved(queue)
    assert sorted(sender.payloads) == sorted(b"%d" % i for i in range(200))


@pytest.mark.parametrize("name", ["capacity", "workers", "capacity_bytes"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-5, ValueError), ("2", TypeError), (2.5, TypeError)]
)
async def test_resize_refuses_bad_counts(
    name: str, value: Any, error: type[Exception], autojump_clock: Any
) -> None:
    """A wrong argument of `resize` is named, and changes nothing."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=2, capacity_bytes=100) as queue:
        with pytest.raises(error, match=name):
            queue.resize(**{"capacity": 5, "workers": 5, "capacity_bytes": 50} | {name: value})
        s = queue.statistics()
        assert (s.capacity, s.workers, s.capacity_bytes) == (10, 2, 100)


async def test_resize_before_and_after_the_workers_run(autojump_clock: Any) -> None:
    """A resize before the first turn of the loop counts, and one after the end harms nothing."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        queue.resize(workers=3)
        for _ in range(3):
            queue.put_nowait(b"", delay=0)
    assert sender.times == [0, 0, 0]
    queue.resize(workers=9)


class Stumbling(trio.abc.Clock):
    """A clock that steps back by 5 µs now and then, as those of some hypervisors do."""

    reads = 0

    def start_clock(self) -> None:
        """There is nothing to start."""

    def current_time(self) -> float:
        self.reads += 1
        return time.perf_counter() - (5e-6 if self.reads % 97 == 0 else 0.0)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return deadline - self.current_time()


def test_a_clock_that_steps_back_ends_no_worker() -> None:
    """Everything is sent, whatever was measured."""
    sender = RecordingSender()

    async def scene() -> None:
        async with open_delay_queue(sender, capacity=2_000, workers=4) as queue:
            for _ in range(2_000):
                queue.put_nowait(b"", delay=0.0)
        assert queue.statistics().sent == 2_000

    trio.run(scene, clock=Stumbling())
