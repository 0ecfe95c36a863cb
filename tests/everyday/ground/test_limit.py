"""The token bucket, on the virtual clock."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from localdelay import RateLimit


async def test_a_burst_goes_at_once_and_then_the_rate(autojump_clock: trio.testing.MockClock) -> None:
    """Three tokens are there; the next come every half second, and no more than three gather."""
    limit = RateLimit(2.0, burst=3)
    assert [limit.try_acquire() for _ in range(4)] == [True, True, True, False]
    await trio.sleep(0.49)
    assert not limit.try_acquire()
    await trio.sleep(0.01)
    assert limit.try_acquire()
    await trio.sleep(100)
    assert limit.available == 3
    assert [limit.try_acquire() for _ in range(4)] == [True, True, True, False]


async def test_who_must_go_waits_in_the_order_of_the_calls(autojump_clock: trio.testing.MockClock) -> None:
    """Calls of `acquire` are let through one by one, at the rate."""
    limit = RateLimit(10.0, burst=1)
    times: list[tuple[int, float]] = []

    async def send(number: int) -> None:
        await limit.acquire()
        times.append((number, round(trio.current_time(), 6)))

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(send, number)
            await trio.testing.wait_all_tasks_blocked(0.0)
    assert times == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


async def test_a_cancelled_wait_costs_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Its tokens are given back."""
    limit = RateLimit(1.0, burst=1)
    assert limit.try_acquire()
    with trio.move_on_after(0.25):
        await limit.acquire(10)
    assert limit.available == pytest.approx(0.25)
    await trio.sleep(0.75)
    assert limit.try_acquire()


def test_it_can_be_used_in_one_run_after_another() -> None:
    """Where the clock of a later run stands behind, the bucket is as full as it was."""
    limit = RateLimit(1.0, burst=2)

    async def take() -> bool:
        return limit.try_acquire()

    assert trio.run(take, clock=trio.testing.MockClock())
    assert trio.run(take, clock=trio.testing.MockClock())
    assert not trio.run(take, clock=trio.testing.MockClock())


def test_the_burst_is_a_tenth_of_a_second_if_nothing_else_is_said() -> None:
    """And at least one token."""
    assert (RateLimit(5000).burst, RateLimit(3).burst) == (500.0, 1.0)


def test_a_wrong_limit_is_refused_by_name() -> None:
    """Each argument says which it is."""
    rates = [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("5", TypeError),
    ]
    for rate, error in rates:
        with pytest.raises(error, match="rate"):
            RateLimit(rate)  # type: ignore[arg-type]
    for burst, error in ((0.5, ValueError), (math.inf, ValueError), ("1", TypeError)):
        with pytest.raises(error, match="burst"):
            RateLimit(5, burst)  # type: ignore[arg-type]
