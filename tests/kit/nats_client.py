"""nats-py in a test on Trio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio
import trio_asyncio
from nats.aio.client import Client


async def _ignore(_: Exception) -> None:
    """Left to itself, nats-py prints it."""


@asynccontextmanager
async def connected(client: Client, url: str) -> AsyncIterator[None]:
    """Connect a client for the length of a block, where `trio_asyncio.aio_as_trio` calls its methods."""
    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(lambda *_: None)  # else a failed task of nats-py's would end the block
        try:
            await trio_asyncio.aio_as_trio(client.connect)(url, allow_reconnect=False, error_cb=_ignore)
            yield
        finally:
            with trio.move_on_after(1.0, shield=True), suppress(Exception):
                await trio_asyncio.aio_as_trio(client.close)()
