"""How a service on asyncio tests what it publishes: with a primary that refuses, and without a broker."""

import asyncio

import localdelay
from localdelay import aio


async def place(fallback: aio.Fallback, order: int) -> None:
    """A function of yours."""
    await fallback.publish(b"close order %d if it is unpaid" % order, delay=120.0)


def test_an_order_that_is_refused_is_held() -> None:
    """It waits for its time, and nothing has been sent."""
    sent: list[bytes] = []

    async def send(message: localdelay.Message) -> None:
        sent.append(message.payload)

    async def refuse(message: localdelay.Message, delay: float) -> None:
        raise localdelay.Throttled("429")

    async def main() -> None:
        async with aio.open_delay_queue(send, capacity=10, workers=1) as queue:
            await place(aio.Fallback(refuse, queue), 7)
            [held] = await queue.messages()
            assert held.payload == b"close order 7 if it is unpaid"
            assert 119 < (await queue.statistics()).next_due_in <= 120  # type: ignore[operator]
            assert await queue.reschedule(held.id, delay=0.01)  # rather than wait for two minutes
        assert sent == [b"close order 7 if it is unpaid"]

    asyncio.run(main())
