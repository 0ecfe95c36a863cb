"""The timer, on the virtual clock."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from localdelay.timer import Timer


async def test_wake_without_a_sleeper_is_forgotten(autojump_clock: Any) -> None:
    """A call while nobody sleeps, before the first wait or after one, does not shorten the next."""
    timer = Timer()
    timer.wake()
    await timer.sleep_until(3.0)
    assert trio.current_time() == 3.0
    timer.wake()
    await timer.sleep_until(7.0)
    assert trio.current_time() == 7.0


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
