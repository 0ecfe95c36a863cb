"""The timer, on the virtual clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from localdelay.timer import Timer


@pytest.mark.parametrize("when", [0.0, 1e-9, 0.001, 1.5, 120, 1e9])
async def test_it_sleeps_until_the_instant(when: float, autojump_clock: Any) -> None:
    """The wait ends exactly at the instant, which is absolute and no duration."""
    timer = Timer()
    await timer.sleep_until(when)
    assert trio.current_time() == when
    await timer.sleep_until(when + 1)
    assert trio.current_time() == when + 1


@pytest.mark.parametrize("when", [-math.inf, -1.0, 0.0, 4.999, 5.0])
async def test_an_instant_that_is_past_ends_at_once(when: float, autojump_clock: Any) -> None:
    """What is past takes no time, but still lets the other tasks run."""
    await trio.sleep(5)
    with trio.testing.assert_checkpoints():
        await Timer().sleep_until(when)
    assert trio.current_time() == 5


@pytest.mark.parametrize("when", [100.0, math.inf])
async def test_wake_ends_the_wait(when: float, autojump_clock: Any) -> None:
    """The sleeping task goes on at the instant of the call, also from a sleep without an end."""
    timer = Timer()
    woke: list[float] = []

    async def sleeper() -> None:
        await timer.sleep_until(when)
        woke.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.sleep(2.5)
        assert woke == []
        timer.wake()
        timer.wake()
        await trio.testing.wait_all_tasks_blocked()
        assert woke == [2.5]
    assert trio.current_time() == 2.5


async def test_wake_without_a_sleeper_is_forgotten(autojump_clock: Any) -> None:
    """A call while nobody sleeps, before the first wait or after one, does not shorten the next."""
    timer = Timer()
    timer.wake()
    await timer.sleep_until(3.0)
    assert trio.current_time() == 3.0
    timer.wake()
    await timer.sleep_until(7.0)
    assert trio.current_time() == 7.0


async def test_it_sleeps_again_after_a_wake(autojump_clock: Any) -> None:
    """Each wait is one of its own: a wake ends one of them."""
    timer = Timer()
    woke: list[float] = []

    async def sleeper() -> None:
        for when in (math.inf, 10.0, math.inf):
            await timer.sleep_until(when)
            woke.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        for _ in range(2):
            await trio.sleep(20)
            timer.wake()
    assert woke == [20, 20, 40]


@pytest.mark.parametrize("woken_too", [False, True])
async def test_a_cancellation_from_outside_is_not_swallowed(woken_too: bool, autojump_clock: Any) -> None:
    """A cancelled wait raises Trio's own Cancelled, also where a wake comes at the same instant."""
    timer = Timer()
    went_on = False

    async def sleeper(scope: trio.CancelScope) -> None:
        nonlocal went_on
        with scope:
            await timer.sleep_until(math.inf)
            went_on = True

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(sleeper, scope)
        await trio.sleep(1)
        if woken_too:
            timer.wake()
        scope.cancel()
    assert scope.cancelled_caught
    assert not went_on
    timer.wake()
    await timer.sleep_until(4.0)
    assert trio.current_time() == 4.0
