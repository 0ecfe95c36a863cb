"""The public fakes and the clock that a test moves, an example for threads and for asyncio, and the edges."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from localdelay import Message, RetryPolicy, Route, aio, threads
from localdelay.testing import FailingSender, MovableClock, RecordingSender, ThrottledPrimary

pytestmark = pytest.mark.filterwarnings("error")


def test_an_evening_of_a_threaded_program() -> None:
    """What a throttled primary refuses is sent after 120 s of the clock, and not before, in no time."""
    began = time.perf_counter()
    clock = MovableClock()
    primary, send = ThrottledPrimary(1, clock=clock), RecordingSender()
    with threads.open_delay_queue(send, capacity=10, workers=1, clock=clock) as queue:
        fallback = threads.Fallback(primary.blocking, queue, limit=None)
        routes = [fallback.publish(b"%d" % number, delay=120.0).route for number in range(3)]
        assert routes == [Route.PRIMARY, Route.LOCAL, Route.LOCAL]
        clock.advance(119.0)
        assert send.payloads == []
        assert queue.statistics().next_due_in == 1.0
        clock.advance(1.0)
        assert (send.payloads, send.times) == ([b"1", b"2"], [120.0, 120.0])
    assert time.perf_counter() - began < 20


def test_an_evening_of_an_asyncio_program() -> None:
    """The same on asyncio, where the sends run on the caller's loop."""

    async def evening() -> None:
        clock = MovableClock()
        primary, send = ThrottledPrimary(1, clock=clock), RecordingSender(clock=clock)
        async with aio.open_delay_queue(send, capacity=10, workers=1, clock=clock) as queue:
            fallback = aio.Fallback(primary, queue, limit=None)
            for number in range(3):
                await fallback.publish(b"%d" % number, delay=120.0)
            await clock.advance_async(119.0)
            assert send.payloads == []
            await clock.advance_async(1.0)
            assert (send.payloads, send.times) == ([b"1", b"2"], [120.0, 120.0])

    asyncio.run(asyncio.wait_for(evening(), 20))


def test_what_waits_at_the_end_is_sent_at_its_time() -> None:
    """At the end of the block, and in a drain, the clock goes on by itself, from one instant to the next."""
    clock = MovableClock(idle=0.05)
    sent: list[tuple[float, bytes]] = []
    with threads.open_delay_queue(
        lambda message: sent.append((clock.current_time(), message.payload)),
        capacity=10,
        workers=1,
        clock=clock,
    ) as queue:
        for delay in (30, 10, 20):
            queue.put(b"%d" % delay, delay=delay)
    assert sent == [(10.0, b"10"), (20.0, b"20"), (30.0, b"30")]
    assert clock.current_time() >= 30.0


def test_a_drain_ends_with_its_grace() -> None:
    """A drain that is given 25 s takes them on this clock, and leaves what is due later."""
    clock, send = MovableClock(), RecordingSender()
    with threads.open_delay_queue(send, capacity=10, workers=1, clock=clock) as queue:
        queue.put(b"soon", delay=20)
        queue.put(b"late", delay=3600)
        report = queue.drain(grace=25)
    assert (report.sent, [message.payload for message in report.remaining]) == (1, [b"late"])
    assert send.times == [20.0]


def test_retries_wait_on_the_clock() -> None:
    """A send that fails once is tried again after the wait of the policy, in the same advance."""
    clock, send = MovableClock(), FailingSender(OSError, times=1)
    policy = RetryPolicy(wait_initial=10, wait_jitter=0)
    with threads.open_delay_queue(send, capacity=10, workers=1, retry=policy, clock=clock) as queue:
        queue.put(b"x", delay=5)
        clock.advance(60)
        assert [when for when, _, _ in send.attempts] == [5.0, 15.0]


def test_a_recorded_send_takes_its_time_on_asyncio() -> None:
    """`duration` passes on the clock of the test, or really where there is none."""

    async def scene() -> None:
        clock = MovableClock(idle=0.05)
        send = RecordingSender(duration=2.0, clock=clock)
        async with aio.open_delay_queue(send, capacity=10, workers=1, clock=clock) as queue:
            queue.put_nowait(b"x", delay=5)
            await clock.advance_async(6)
            assert (await queue.statistics()).sending == 1
            assert send.sent == []
            await clock.advance_async(6)
            while not send.sent:  # noqa: ASYNC110 (its task has yet to run)
                await asyncio.sleep(0.005)
            assert 5.0 <= send.times[0] <= 6.0
        without = RecordingSender(duration=0.001)
        await without(Message("a", b"", 0.0))
        assert without.ids == ["a"]

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_the_fakes_serve_without_any_clock() -> None:
    """In a plain thread and on asyncio they ask no loop of Trio's for the time."""
    primary, send = ThrottledPrimary(1), RecordingSender()
    asyncio.run(send(Message("a", b"", 0.0)))
    primary.blocking(Message("b", b"", 0.0), 1.0)
    assert abs(send.times[0] - time.perf_counter()) < 20
    assert [message.id for _, message in primary.published] == ["b"]


def test_a_clock_goes_on_with_the_next_queue(tmp_path: Path) -> None:
    """After a queue has ended the clock can be moved, and another queue take up the journal at that time."""
    clock, send = MovableClock(), RecordingSender()
    journal: Any = tmp_path / "orders.journal"
    options: dict[str, Any] = {"capacity": 10, "workers": 1, "journal": journal, "clock": clock}
    with threads.open_delay_queue(send, **options) as queue:
        queue.put(b"x", delay=3600)
        queue.drain(grace=0)
    clock.advance(100.0)
    with threads.open_delay_queue(send, **options) as queue:
        assert queue.statistics().pending == 1
    assert send.payloads == [b"x"]


def test_wrong_uses_are_told() -> None:
    """Moving it back, blocking an asyncio loop with it, and a clock that is none."""
    clock = MovableClock()
    with pytest.raises(ValueError, match="seconds"):
        clock.advance(-1)

    async def block() -> None:
        with pytest.raises(RuntimeError, match="advance_async"):
            clock.advance(1)

    asyncio.run(block())
    options: dict[str, Any] = {"clock": time.monotonic}
    with (
        pytest.raises(TypeError, match="clock must be"),
        threads.open_delay_queue(print, capacity=1, workers=1, **options),
    ):
        pass
