"""A service that is told to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import trio
import trio.testing

from localdelay import DelayQueue, Message, QueueClosed, Statistics, open_delay_queue, run_until_signal
from tests.kit.journals import Disk

Conserved = Callable[[DelayQueue], Statistics]


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)


async def nothing(_: Message) -> None:
    pass


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_begins_a_drain(
    autojump_clock: trio.testing.MockClock, conserved: Conserved, signum: int
) -> None:
    """What comes due within the grace is sent, the rest handed back; the service is cancelled first."""
    stopped: list[float] = []

    async def service() -> None:
        queue.put_nowait(b"soon", delay=20.0)
        queue.put_nowait(b"late", delay=100.0)
        await trio.sleep(1.0)
        kill(signum)
        try:
            await trio.sleep_forever()
        finally:
            stopped.append(trio.current_time() - began)

    handed: list[float] = []

    async def hand_back(_: Message, remaining: float) -> None:
        handed.append(remaining)

    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
        began = trio.current_time()
        report = await run_until_signal(queue, service, grace=25.0, hand_back=hand_back)
        assert trio.current_time() - began == pytest.approx(20.0)
        with pytest.raises(QueueClosed):
            queue.put_nowait(b"", delay=1.0)
    assert stopped == [1.0]
    assert (report.sent, report.handed_back, report.remaining) == (1, 1, [])
    assert handed == [pytest.approx(99.0)]
    assert conserved(queue).pending == 0


async def test_the_grace_begins_with_the_signal(autojump_clock: trio.testing.MockClock) -> None:
    """What the service takes to end is taken off it."""

    async def service() -> None:
        kill(signal.SIGTERM)
        with trio.CancelScope(shield=True):
            await trio.sleep(4.0)

    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=9.0)
        queue.put_nowait(b"", delay=11.0)
        began = trio.current_time()
        report = await run_until_signal(queue, service, grace=10.0)
        assert trio.current_time() - began == pytest.approx(9.0)
    assert (report.sent, len(report.remaining)) == (1, 1)


@pytest.mark.parametrize("journal", [False, True])
async def test_a_second_signal_cuts_it_short(
    autojump_clock: trio.testing.MockClock, conserved: Conserved, *, journal: bool
) -> None:
    """Sends under way are cut off, and every message is accounted for."""
    if journal:
        autojump_clock.autojump_threshold = 0.02

    async def send(_: Message) -> None:
        await trio.sleep(50.0)

    async with open_delay_queue(send, capacity=10, workers=1, journal=Disk() if journal else None) as queue:
        for delay in (0.0, 10.0, 1000.0):
            queue.put_nowait(b"", delay=delay)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def signals() -> None:
                await trio.sleep(1.0)
                kill(signal.SIGTERM)
                await trio.sleep(5.0)
                kill(signal.SIGTERM)

            report = await run_until_signal(queue, grace=100.0)
        assert trio.current_time() - began == pytest.approx(6.0)
    assert report.sent == 0
    assert (report.spooled, len(report.remaining)) == ((3, 0) if journal else (0, 3))
    assert conserved(queue).pending == len(report.remaining)


async def test_a_second_signal_while_the_service_ends(autojump_clock: trio.testing.MockClock) -> None:
    """There is no grace left when the drain begins."""

    async def service() -> None:
        kill(signal.SIGTERM)
        with trio.CancelScope(shield=True):
            await trio.sleep(1.0)
            kill(signal.SIGTERM)
            await trio.sleep(1.0)

    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=5.0)
        began = trio.current_time()
        report = await run_until_signal(queue, service, grace=10.0)
        assert trio.current_time() - began == pytest.approx(2.0)
    assert len(report.remaining) == 1


async def test_a_service_that_ends_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    """Then there is a drain, too."""
    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:

        async def service() -> None:
            await queue.put(b"", delay=5.0)

        report = await run_until_signal(queue, service, grace=10.0)
    assert report.sent == 1


async def test_an_error_of_the_service_is_raised_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    """In no group; what is pending stays."""

    async def service() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
            queue.put_nowait(b"", delay=5.0)
            await run_until_signal(queue, service, grace=10.0)
    assert queue.statistics().pending == 1


async def test_signals_have_their_old_effect_afterwards(autojump_clock: trio.testing.MockClock) -> None:
    """The handlers are those of before."""
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)]

    async def service() -> None:
        kill(signal.SIGUSR1)
        await trio.sleep_forever()

    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
        await run_until_signal(queue, service, grace=1.0, signals=[signal.SIGUSR1])
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)] == before


async def test_wrong_arguments(autojump_clock: trio.testing.MockClock) -> None:
    """They are named."""
    async with open_delay_queue(nothing, capacity=10, workers=1) as queue:
        with pytest.raises(ValueError, match="grace"):
            await run_until_signal(queue, grace=-1.0)
        with pytest.raises(TypeError, match="hand_back"):
            await run_until_signal(queue, grace=1.0, hand_back=5)  # type: ignore[arg-type]


async def test_the_first_signal_after_the_service_leaves_the_grace(
    autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """Where the service has returned by itself the drain goes on; the second signal ends it."""

    async def service() -> None:
        queue.put_nowait(b"soon", delay=20.0)
        queue.put_nowait(b"later", delay=22.0)

    async def signal_twice() -> None:
        await trio.sleep(10.0)
        kill(signal.SIGTERM)
        await trio.sleep(11.0)
        kill(signal.SIGTERM)

    async with trio.open_nursery() as nursery, open_delay_queue(nothing, capacity=10, workers=1) as queue:
        nursery.start_soon(signal_twice)
        report = await run_until_signal(queue, service, grace=25.0)
    assert report.sent == 1
    assert [message.payload for message in report.remaining] == [b"later"]
    conserved(queue)
