"""A connection to Redis, to look at it with. Needs the extra `redis`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from localdelay.redis_plan.link import Link
from localdelay.redis_plan.opening import place_of

from .settings import queue_url

_TIMEOUT = 5.0


@asynccontextmanager
async def open_link(server: str) -> AsyncIterator[Link]:
    """A connection to this server; `ConnectionError` where there is none."""
    place, _ = place_of(queue_url(server, "compare"))
    link = Link(
        place,
        b"localdelay:compare",
        connect_timeout=_TIMEOUT,
        reply_timeout=_TIMEOUT,
        on_news=lambda _: None,
        on_connected=lambda: None,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(link.keep)
        try:
            yield link
        finally:
            nursery.cancel_scope.cancel()
