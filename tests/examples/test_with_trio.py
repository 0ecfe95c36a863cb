"""How a service on Trio tests what it publishes: in virtual time, without a broker."""

import trio
import trio.testing

import localdelay
from localdelay.testing import RecordingSender, ThrottledPrimary


async def place(fallback: localdelay.Fallback, order: int) -> None:
    """A function of yours."""
    await fallback.publish(b"close order %d if it is unpaid" % order, delay=120.0)


def test_an_order_that_is_refused_is_closed_on_time() -> None:
    """Two minutes later, to the microsecond, and in none of real time."""
    sender, primary = RecordingSender(), ThrottledPrimary(limit=0)

    async def main() -> None:
        async with localdelay.open_delay_queue(sender, capacity=10, workers=1) as queue:
            begun = trio.current_time()
            await place(localdelay.Fallback(primary, queue), 7)
            assert queue.statistics().pending == 1
        assert sender.payloads == [b"close order 7 if it is unpaid"]
        assert sender.times == [begun + 120.0]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
