"""The precise timer, on the real clock: where it is used, how it wakes, and that nothing is left open."""

from __future__ import annotations

import errno
import math
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import Message, open_delay_queue, timer
from localdelay.timer import MERGED, PreciseTimer, Timer, clock_parts, is_trios_own, open_timer

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="timerfd is Linux's")


@on_linux
async def test_the_precise_timer_is_for_trios_own_clock() -> None:
    """On the system's clock "auto" is precise, and "trio" is Trio's."""
    assert is_trios_own(trio.lowlevel.current_clock())
    precise = open_timer("auto")
    assert isinstance(precise, PreciseTimer)
    precise.close()
    assert type(open_timer("trio")) is Timer


async def test_any_other_clock_gets_trios_timer(autojump_clock: Any) -> None:
    """A virtual clock is exact with Trio's deadlines, and a timerfd knows nothing of it."""
    assert not is_trios_own(trio.lowlevel.current_clock())
    assert type(open_timer("auto")) is Timer


async def test_a_clock_of_ones_own_gets_trios_timer() -> None:
    """Also where the class has the same name as Trio's."""

    class SystemClock(trio.abc.Clock):
        def start_clock(self) -> None:
            pass

        def current_time(self) -> float:
            return 0.0

        def deadline_to_sleep_time(self, deadline: float) -> float:
            return 0.0

    assert not is_trios_own(SystemClock())


@on_linux
async def test_without_a_descriptor_trios_timer_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is out of descriptors can still open a queue."""

    def create() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(timer, "_create", create)
    assert type(open_timer("auto")) is Timer


async def test_the_parts_of_the_clock_add_up() -> None:
    """Their sum lies between two readings of Trio's clock."""
    read, offset = clock_parts()
    before = trio.current_time()
    now = read() + offset
    assert before <= now <= trio.current_time()


async def test_the_parts_of_a_virtual_clock_are_itself(autojump_clock: Any) -> None:
    """Exactly, whatever it shows."""
    await trio.sleep(1e9 + 0.1)
    read, offset = clock_parts()
    assert read() + offset == trio.current_time()


@on_linux
@pytest.mark.parametrize("wait", [-1.0, 0.0, 1e-9, 1e-4, 0.0123])
async def test_it_never_returns_early(wait: float) -> None:
    """However short the wait, and past instants come back too."""
    with closing(PreciseTimer()) as precise:
        for _ in range(20):
            when = trio.current_time() + wait
            await precise.sleep_until(when)
            assert trio.current_time() >= when


@on_linux
async def test_close_wake_ups_are_merged() -> None:
    """No two wake-ups are closer than `MERGED`, whatever is asked for."""
    with closing(PreciseTimer()) as precise:
        woke = []
        for _ in range(50):
            await precise.sleep_until(trio.current_time() + 1e-6)
            woke.append(trio.current_time())
        # The timer reads the clock a little before this test does.
        assert woke[-1] - woke[0] >= 49 * MERGED - 50e-6


@on_linux
@pytest.mark.parametrize("when", [3600.0, 1e15, math.inf])
async def test_wake_ends_the_wait_at_once(when: float) -> None:
    """Also one without an end, and the next sleeper may come before the last one has run."""
    with closing(PreciseTimer()) as precise:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(precise.sleep_until, trio.current_time() + when)
                await trio.testing.wait_all_tasks_blocked()
                precise.wake()


@on_linux
async def test_a_cancelled_wait_leaves_a_timer_that_works() -> None:
    """Cancellation comes out, and the same timer waits again."""
    with closing(PreciseTimer()) as precise:
        with trio.move_on_after(0.01) as scope:
            await precise.sleep_until(math.inf)
        assert scope.cancelled_caught
        when = trio.current_time() + 0.01
        await precise.sleep_until(when)
        assert trio.current_time() >= when


@on_linux
async def test_a_queue_closes_its_descriptor() -> None:
    """However the block is left, no descriptor stays open."""

    async def send(message: Message) -> None:
        pass

    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    for _ in range(3):
        async with open_delay_queue(send, capacity=10, workers=2) as queue:
            queue.put_nowait(b"x", delay=0.001)
            await trio.testing.wait_all_tasks_blocked()
            assert count() == before + 1
        assert count() == before
        with pytest.raises(KeyError):
            async with open_delay_queue(send, capacity=10, workers=2):
                raise KeyError
        assert count() == before


@on_linux
async def test_an_idle_queue_uses_no_processor_time() -> None:
    """With the next message an hour away, nothing runs until a put comes in."""

    async def send(message: Message) -> None:
        pass

    with trio.CancelScope() as scope:
        async with open_delay_queue(send, capacity=1000, workers=20) as queue:
            for _ in range(1000):
                queue.put_nowait(b"x", delay=3600)
            await trio.testing.wait_all_tasks_blocked()
            steps = _Steps()
            trio.lowlevel.add_instrument(steps)
            thread = threading.Timer(0.3, trio.lowlevel.current_trio_token().run_sync_soon, [scope.cancel])
            thread.start()
            await trio.sleep_forever()
    thread.join()
    assert steps.seen <= 100  # all of them from the leaving: twenty workers, and what ends them


class _Steps(trio.abc.Instrument):
    seen = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.seen += 1


def test_a_wait_of_any_length_can_be_set() -> None:
    """Zero would mean never, and a number too large for the system is cut: who wakes early waits again."""
    assert timer._nanoseconds(math.inf) == 0
    assert timer._nanoseconds(-5.0) == timer._nanoseconds(0.0) == timer._nanoseconds(1e-12) == 1
    assert timer._nanoseconds(1.5) == 1_500_000_000
    assert timer._nanoseconds(1e300) == 10**18
    assert time.monotonic() < 10**9
