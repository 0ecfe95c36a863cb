"""How a service on asyncio tests what it publishes: with a clock that it moves, and no broker."""

import asyncio

from localdelay import aio
from localdelay.testing import MovableClock, RecordingSender, ThrottledPrimary


async def place(fallback: aio.Fallback, order: int) -> None:
    """A function of yours."""
    await fallback.publish(b"close order %d if it is unpaid" % order, delay=120.0)


def test_an_order_that_is_refused_is_closed_on_time() -> None:
    """Two minutes later, and in none of real time."""

    async def main() -> None:
        clock = MovableClock()
        sender, primary = RecordingSender(clock=clock), ThrottledPrimary(limit=0, clock=clock)
        async with aio.open_delay_queue(sender, capacity=10, workers=1, clock=clock) as queue:
            await place(aio.Fallback(primary, queue), 7)
            await clock.advance_async(119.0)
            assert sender.payloads == []
            await clock.advance_async(1.0)
            assert sender.payloads == [b"close order 7 if it is unpaid"]

    asyncio.run(main())
