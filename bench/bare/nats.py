"""nats-py as it is, on asyncio: publish and await, or a batch of publishes and all of their answers."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import nats

from bench.bare import Sent, in_tasks, on_asyncio

_LONGEST = 60.0


@on_asyncio
async def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    where = urlsplit(url)
    subject = where.path[1:]
    async with await nats.connect(f"{where.scheme}://{where.netloc}") as client:
        # The answers to `publish_async` cost less than those to `publish`, which waits with a timer for each.
        stream = client.jetstream(publish_async_max_pending=max(4000, at_once * batch))

        async def publish() -> None:
            if batch == 1:
                await (await stream.publish_async(subject, payload))
            else:
                await asyncio.gather(*[await stream.publish_async(subject, payload) for _ in range(batch)])

        return await asyncio.wait_for(in_tasks(publish, count=count // batch, at_once=at_once), _LONGEST)
