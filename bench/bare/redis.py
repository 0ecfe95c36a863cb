"""coredis as it is: one client, and XADD by XADD, or a pipeline for each batch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import coredis
import trio

from bench.bare import Sent


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    return trio.run(_publish, url, payload, count, at_once, batch)


async def _publish(url: str, payload: bytes, count: int, at_once: int, batch: int) -> Sent:
    where = urlsplit(url)
    times: list[float] = []
    turns = iter(range(count // batch))
    # A connection for each publish, where coredis uses more than one: the best of what was tried.
    client = coredis.Redis(host=where.hostname, port=where.port, max_connections=at_once)
    async with client:
        await client.ping()
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(_publish_in_turn, client, where.path[1:], payload, turns, batch, times)
        return Sent(time.perf_counter() - begun, times)


async def _publish_in_turn(
    client: coredis.Redis[bytes],
    stream: str,
    payload: bytes,
    turns: Iterator[int],
    batch: int,
    times: list[float],
) -> None:
    fields: dict[str | bytes, str | bytes] = {"payload": payload}
    for _ in turns:
        begun = time.perf_counter()
        if batch == 1:
            await client.xadd(stream, fields)
        else:
            async with client.pipeline(transaction=False) as pipeline:
                for _ in range(batch):
                    pipeline.xadd(stream, fields)
        times.append(time.perf_counter() - begun)
