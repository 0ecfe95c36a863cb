"""What calls take of a quota: the rules of products, and limits that count by them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import AdaptiveLimit, Fallback, Message, RateLimit, Route, Throttled, costs, open_delay_queue
from localdelay.limit import Limit
from localdelay.testing import RecordingSender


def message(size: int) -> Message:
    return Message("a", bytes(size), 0.0)


@pytest.mark.parametrize("preset", [costs.APSARA_ROCKETMQ, costs.TDMQ_ROCKETMQ])
@pytest.mark.parametrize(("size", "parts"), [(0, 1), (1, 1), (4096, 1), (4097, 2), (16384, 4)])
def test_a_delayed_publish_counts_five_times_and_by_started_4_kb(
    preset: costs.Cost, size: int, parts: int
) -> None:
    """Both products say so, of the payload."""
    assert preset(message(size), False) == parts
    assert preset(message(size), True) == 5 * parts


@pytest.mark.parametrize("wrong", [-1, math.nan, "5"])
def test_what_counts_nothing_is_refused(wrong: Any) -> None:
    """By its name."""
    with pytest.raises((ValueError, TypeError), match="delayed"):
        costs.ByParts(wrong, 4096)
    with pytest.raises((ValueError, TypeError), match="part_bytes"):
        costs.ByParts(5, wrong)


@pytest.mark.parametrize(
    "make", [lambda cost: RateLimit(10.0, cost=cost), lambda cost: AdaptiveLimit(cost=cost)]
)
def test_a_cost_is_a_function(make: Callable[[Any], Limit]) -> None:
    """A number would count every call alike, which is another rate."""
    with pytest.raises(TypeError, match="cost must be a function, not int"):
        make(5)


@pytest.mark.parametrize("answer", [-1, math.nan, None, "5", ZeroDivisionError])
def test_a_cost_that_is_no_number_counts_1_and_is_told_once(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the publish nor the worker is to end by it."""

    def cost(message: Message, delayed: bool) -> float:
        if answer is ZeroDivisionError:
            raise ZeroDivisionError
        return answer

    limit = RateLimit(10.0, cost=cost)
    assert [limit.price(message(1), True) for _ in range(2)] == [1.0, 1.0]
    assert [(record.levelno, "cost must return" in record.message) for record in caplog.records] == [
        (logging.WARNING, True)
    ]


async def test_what_costs_more_than_the_burst_needs_a_full_burst(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It owes the rest, and the rate is kept; else it would never go."""
    limit = RateLimit(10.0, burst=2, cost=costs.APSARA_ROCKETMQ)
    assert limit.try_acquire(5)
    assert limit.available == -3
    await trio.sleep(0.49)
    assert not limit.try_acquire(5)
    await trio.sleep(0.01)
    assert limit.available == 2
    assert limit.try_acquire(5)


async def test_sends_take_less_of_a_shared_limit_than_publishes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Of ten units a delayed publish takes five; what is held takes one when it is due."""
    sender = RecordingSender()
    limit = RateLimit(10.0, burst=10, cost=costs.APSARA_ROCKETMQ)

    async def publish_delayed(message: Message, delay: float) -> None:
        """Take it."""

    async with open_delay_queue(sender, capacity=100, workers=5, limit=limit) as queue:
        fallback = Fallback(publish_delayed, queue, limit=limit)
        routes = [(await fallback.publish(b"", delay=1.0)).route for _ in range(12)]
        assert routes == [Route.PRIMARY] * 2 + [Route.LOCAL] * 10
        await trio.sleep(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert len(sender.sent) == 10
        assert limit.available == 0


async def test_what_is_handed_back_is_charged_as_a_delayed_publish(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While the queue runs, and when it drains: at ten units a second that is two messages a second."""
    returned: list[float] = []

    async def publish_delayed(message: Message, delay: float) -> None:
        if trio.current_time() < 1.0:
            raise Throttled
        returned.append(trio.current_time())

    limit = RateLimit(10.0, burst=1, cost=costs.APSARA_ROCKETMQ)
    async with open_delay_queue(RecordingSender(), capacity=100, workers=1, limit=limit) as queue:
        fallback = Fallback(publish_delayed, queue, limit=limit, breaker=None, hand_back=True)
        for _ in range(12):
            await fallback.publish(b"", delay=3600.0)
        await trio.sleep(4.25)
        assert 5 <= len(returned) <= 7
        await queue.drain(0.0)
    while_running = len(returned)

    async def hand_back(message: Message, remaining: float) -> None:
        returned.append(trio.current_time())

    limit = RateLimit(10.0, burst=1, cost=costs.APSARA_ROCKETMQ)
    async with open_delay_queue(RecordingSender(), capacity=100, workers=1, limit=limit) as queue:
        for _ in range(12):
            queue.put_nowait(b"", delay=3600.0)
        await queue.drain(3.0, hand_back)
    assert 6 <= len(returned) - while_running <= 7
