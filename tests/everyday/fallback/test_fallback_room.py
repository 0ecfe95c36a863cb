"""The degrade path when the local queue is full, closed or waited for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import DelayQueue, Fallback, QueueFull, Receipt, Route, Throttled, open_delay_queue
from localdelay.testing import RecordingSender
from tests.kit.fakes import Primary


async def fill(queue: DelayQueue, *, delay: float) -> None:
    while queue.statistics().pending < queue.statistics().capacity:
        await queue.put(b"", delay=delay)


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
