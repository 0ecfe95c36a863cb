"""coredis, pipelined: all publishes go through one connection, which writes together what comes in one turn.

Its `client.xadd` waits for its reply with a connection of its own, which is several times slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import coredis
import trio
from coredis.connection import BaseConnection

from bench.bare import Sent


def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    return trio.run(_publish, url, payload, count, at_once, batch)


async def _publish(url: str, payload: bytes, count: int, at_once: int, batch: int) -> Sent:
    where = urlsplit(url)
    times: list[float] = []
    turns = iter(range(count // batch))
    async with (
        coredis.Redis(host=where.hostname, port=where.port) as client,
        client.connection_pool.acquire() as connection,
    ):
        begun = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(
                    _publish_in_turn, connection, where.path[1:].encode(), payload, turns, batch, times
                )
        return Sent(time.perf_counter() - begun, times)


async def _publish_in_turn(
    connection: BaseConnection,
    stream: bytes,
    payload: bytes,
    turns: Iterator[int],
    batch: int,
    times: list[float],
) -> None:
    for _ in turns:
        begun = time.perf_counter()
        requests = [
            connection.create_request(b"XADD", stream, b"*", b"payload", payload) for _ in range(batch)
        ]
        for request in requests:
            await request
        times.append(time.perf_counter() - begun)
