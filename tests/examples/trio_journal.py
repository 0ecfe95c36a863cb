"""A Trio service whose pending orders survive `kill -9`.

    python trio_journal.py HOW_MANY     # 0: go on with what is left

It prints `held ID` when a message is on disk, and `sent ID` when it was sent.
"""

import sys

import trio

import localdelay


async def send(message: localdelay.Message) -> None:
    """Give one message that is due to your queue."""
    await trio.lowlevel.checkpoint()
    print("sent", message.id, flush=True)


async def main(orders: int) -> None:
    """Take orders, then wait until all of them are sent."""
    async with localdelay.open_delay_queue(
        send, capacity=24_000, workers=30, journal="orders.journal"
    ) as queue:
        for order in range(orders):
            message = await queue.put(b"close order %d if it is unpaid" % order, delay=1.0)
            print("held", message.id, flush=True)


trio.run(main, int(sys.argv[1]))
