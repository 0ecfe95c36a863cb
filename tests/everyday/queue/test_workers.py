"""Pausing and resizing while running."""

from __future__ import annotations

import time
from typing import Any

import pytest
import trio

from localdelay import QueueFull, open_delay_queue
from localdelay.testing import RecordingSender


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
