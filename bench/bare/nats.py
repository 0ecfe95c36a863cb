"""nats-py as it is, on asyncio: publish and await, or a batch of publishes and all of their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import nats
from nats.js import JetStreamContext

from bench.bare import Sent

_LONGEST = 60.0


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    return asyncio.run(_publish(url, payload, count, at_once, batch))


async def _publish(url: str, payload: bytes, count: int, at_once: int, batch: int) -> Sent:
    where = urlsplit(url)
    times: list[float] = []
    turns = iter(range(count // batch))
    async with await nats.connect(f"{where.scheme}://{where.netloc}") as client:
        # The answers to `publish_async` cost less than those to `publish`, which waits with a timer for each.
        stream = client.jetstream(publish_async_max_pending=max(4000, at_once * batch))
        begun = time.perf_counter()
        publish = (
            _publish_in_turn(stream, where.path[1:], payload, turns, batch, times) for _ in range(at_once)
        )
        await asyncio.wait_for(asyncio.gather(*publish), _LONGEST)
        return Sent(time.perf_counter() - begun, times)


async def _publish_in_turn(
    stream: JetStreamContext,
    subject: str,
    payload: bytes,
    turns: Iterator[int],
    batch: int,
    times: list[float],
) -> None:
    for _ in turns:
        begun = time.perf_counter()
        if batch == 1:
            await (await stream.publish_async(subject, payload))
        else:
            await asyncio.gather(*[await stream.publish_async(subject, payload) for _ in range(batch)])
        times.append(time.perf_counter() - begun)
