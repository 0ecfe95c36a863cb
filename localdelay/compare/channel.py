"""The write-up's plan 2, ported to Trio word for word: what localdelay is measured against.

One bounded memory channel, FIFO, and a pool of workers. A worker receives a message, sleeps until it is
due (once received, it can't be put back) and sends it. Nothing more: no ids, no retries, no statistics.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

Waiting: TypeAlias = tuple[float, bytes]
"""(execute-at in seconds on Trio's clock, payload)."""
Send: TypeAlias = Callable[[Waiting], Awaitable[None]]


class LiteralPort:
    """The sending side of the channel, with the same two calls as a `localdelay.DelayQueue`."""

    def __init__(self, channel: trio.MemorySendChannel[Waiting]) -> None:
        self._channel = channel

    def put_nowait(self, payload: bytes, *, delay: float) -> None:
        """Take in a message that is due in `delay` seconds; `trio.WouldBlock` if the channel is full."""
        self._channel.send_nowait((trio.current_time() + delay, payload))

    async def put(self, payload: bytes, *, delay: float) -> None:
        """Take in a message that is due in `delay` seconds, waiting for room where there is none."""
        await self._channel.send((trio.current_time() + delay, payload))


async def _work(receiving: trio.MemoryReceiveChannel[Waiting], send: Send) -> None:
    async for message in receiving:
        await trio.sleep_until(message[0])
        await send(message)


@asynccontextmanager
async def open_literal_port(send: Send, *, capacity: int, workers: int) -> AsyncIterator[LiteralPort]:
    """Run the pool; leaving the block waits until everything is sent."""
    sending, receiving = trio.open_memory_channel[Waiting](capacity)
    async with trio.open_nursery() as nursery, sending:
        for _ in range(workers):
            nursery.start_soon(_work, receiving, send)
        yield LiteralPort(sending)
