"""The degrade path when the local queue is full, closed or waited for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import (
    DelayQueue,
    Fallback,
    QueueClosed,
    QueueFull,
    Receipt,
    Route,
    Throttled,
    open_delay_queue,
)
from localdelay.testing import RecordingSender
from tests.kit.fakes import Primary


async def fill(queue: DelayQueue, *, delay: float) -> None:
    while queue.statistics().pending < queue.statistics().capacity:
        await queue.put(b"", delay=delay)


@pytest.mark.parametrize("room_timeout", [{}, {"room_timeout": 0}, {"room_timeout": 0.0}])
async def test_a_full_queue_refuses_at_once_by_default(
    room_timeout: Any, autojump_clock: Any, conserved: Any
) -> None:
    """At the peak a caller must not hang: `QueueFull` at once, raised from the throttle error."""
    error = Throttled("429")
    async with open_delay_queue(RecordingSender(), capacity=3, workers=1) as queue:
        await fill(queue, delay=100)
        fallback = Fallback(Primary(error, duration=2.0), queue, **room_timeout)
        with pytest.raises(QueueFull, match="3 of 3 messages") as caught:
            await fallback.publish(b"", delay=5)
        assert trio.current_time() == 2
        assert caught.value.__cause__ is error
        assert conserved(queue).accepted == 3


async def test_what_is_held_leaves_the_loop_to_others(autojump_clock: Any, conserved: Any) -> None:
    """Who publishes one message after the other while nothing is called lets the workers send meanwhile."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=3, workers=1) as queue:
        fallback = Fallback(Primary(), queue, mode="forced")
        for number in range(10):
            await fallback.publish(b"%d" % number, delay=0)
    assert sender.payloads == [b"%d" % number for number in range(10)]
    assert conserved(queue).sent == 10


async def test_it_does_not_push_past_those_that_wait(autojump_clock: Any, conserved: Any) -> None:
    """Without a timeout there is no room either while others wait for it: small messages do not overtake."""
    sender = RecordingSender()
    async with (
        open_delay_queue(sender, capacity=9, workers=1, capacity_bytes=10) as queue,
        trio.open_nursery() as n,
    ):
        await queue.put(b"6 byte", delay=10)
        n.start_soon(lambda: queue.put(b"5byte", delay=10))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await Fallback(Primary(Throttled()), queue).publish(b"1", delay=5)
        assert conserved(queue).puts_waiting == 1
    assert conserved(queue).sent == 2


@pytest.mark.parametrize("room_timeout", [1e-9, 0.5, 30])
async def test_room_is_waited_for_so_long(room_timeout: float, autojump_clock: Any, conserved: Any) -> None:
    """`QueueFull`, from the throttle error, exactly `room_timeout` seconds after the refusal."""
    error = Throttled("429")
    async with open_delay_queue(RecordingSender(), capacity=3, workers=1) as queue:
        await fill(queue, delay=100)
        fallback = Fallback(Primary(error, duration=2.0), queue, room_timeout=room_timeout)
        with pytest.raises(QueueFull, match=f"{room_timeout}") as caught:
            await fallback.publish(b"", delay=5, id="order 7")
        assert trio.current_time() == 2.0 + room_timeout
        assert caught.value.__cause__ is error
        s = conserved(queue)
        assert (s.accepted, s.puts_waiting) == (3, 0)
        queue.resize(capacity=4)
        assert queue.put_nowait(b"", delay=200, id="order 7").id == "order 7"
        conserved(queue)


@pytest.mark.parametrize("room_timeout", [9.5, 1e9, math.inf, None])
@pytest.mark.parametrize(("delay", "sent_at"), [(30, 30), (5, 10)])
async def test_room_that_comes_in_time_is_taken(
    room_timeout: float | None, delay: float, sent_at: float, autojump_clock: Any, conserved: Any
) -> None:
    """A publish that waits gets the first room there is, and its execute-at is that of the call."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=3, workers=1) as queue:
        await queue.put(b"first", delay=10)
        await fill(queue, delay=100)
        fallback = Fallback(Primary(Throttled("429"), duration=1.0), queue, room_timeout=room_timeout)
        receipt = await fallback.publish(b"mine", delay=delay)
        assert trio.current_time() == 10
        assert receipt.route is Route.LOCAL
        assert receipt.message.execute_at == delay
        conserved(queue)
    assert (sent_at, receipt.message) in sender.sent


async def test_without_a_timeout_it_waits_for_ever(autojump_clock: Any, conserved: Any) -> None:
    """`room_timeout=None` waits until there is room, however long that takes."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=1, workers=1) as queue:
        await queue.put(b"first", delay=3600)
        receipt = await Fallback(Primary(Throttled()), queue, room_timeout=None).publish(b"mine", delay=5)
        assert trio.current_time() == 3600
        assert receipt.route is Route.LOCAL
        conserved(queue)
    assert sender.times == [3600, 3600]


@pytest.mark.parametrize("room_timeout", [30.0, None])
async def test_a_cancellation_while_it_waits_for_room_is_not_swallowed(
    room_timeout: float | None, autojump_clock: Any, conserved: Any
) -> None:
    """The caller's own deadline ends the wait as a cancellation and no `QueueFull`; nothing is held."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        await queue.put(b"first", delay=100)
        fallback = Fallback(Primary(Throttled()), queue, room_timeout=room_timeout)
        with trio.move_on_after(3) as scope:
            await fallback.publish(b"", delay=5, id="order 7")
            pytest.fail("the publish returned")
        assert scope.cancelled_caught
        assert trio.current_time() == 3
        s = conserved(queue)
        assert (s.accepted, s.puts_waiting) == (1, 0)
        assert not queue.cancel("order 7")


async def test_a_cancellation_in_the_primary_holds_nothing(autojump_clock: Any, conserved: Any) -> None:
    """A publish that is cut off in the primary is not degraded: the caller has given it up."""
    async with open_delay_queue(RecordingSender(), capacity=5, workers=1) as queue:
        fallback = Fallback(Primary(Throttled(), duration=9.0), queue, degrade_on=lambda error: True)
        with trio.move_on_after(3) as scope:
            await fallback.publish(b"", delay=5)
        assert scope.cancelled_caught
        assert conserved(queue).accepted == 0


async def test_room_and_a_cancellation_at_the_same_instant(autojump_clock: Any, conserved: Any) -> None:
    """Room that was given before the cancellation counts: the message is held, and the caller hears of it."""
    receipts: list[Receipt] = []
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        first = await queue.put(b"first", delay=100)
        fallback = Fallback(Primary(Throttled()), queue, room_timeout=None)
        scope = trio.CancelScope()

        async def publish() -> None:
            with scope:
                receipts.append(await fallback.publish(b"mine", delay=5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            queue.cancel(first.id)
            scope.cancel()
        assert [receipt.message for receipt in receipts] == queue.messages()
        assert conserved(queue).accepted == 2


@pytest.mark.parametrize("room_timeout", [0.0, 30.0, None])
async def test_a_closed_queue_refuses_what_is_degraded(
    room_timeout: float | None, autojump_clock: Any, conserved: Any
) -> None:
    """After a drain the primary still takes messages, and what it refuses is a `QueueClosed`."""
    error = Throttled("429")
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        await queue.drain(grace=0)
        fallback = Fallback(Primary(None, error), queue, room_timeout=room_timeout)
        assert (await fallback.publish(b"", delay=5)).route is Route.PRIMARY
        with pytest.raises(QueueClosed) as caught:
            await fallback.publish(b"", delay=5)
        assert error in (caught.value.__cause__, caught.value.__context__)
        assert conserved(queue).accepted == 0
    with pytest.raises(QueueClosed):
        await fallback.publish(b"", delay=5)


async def test_a_drain_ends_the_wait_for_room(autojump_clock: Any, conserved: Any) -> None:
    """A publish that waits for room when the queue is drained gets `QueueClosed` at once."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        await queue.put(b"first", delay=100)
        fallback = Fallback(Primary(Throttled()), queue, room_timeout=None)
        refused_at: list[float] = []

        async def publish() -> None:
            with pytest.raises(QueueClosed):
                await fallback.publish(b"", delay=5)
            refused_at.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(2)
            report = await queue.drain(grace=10)
        assert refused_at == [2]
        assert [message.payload for message in report.remaining] == [b"first"]
        conserved(queue)
