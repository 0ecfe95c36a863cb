"""coredis, pipelined: all publishes go through one connection, which writes together what comes in one turn.

Its `client.xadd` waits for its reply with a connection of its own, which is several times slower.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import coredis

from bench.bare import Sent, in_nursery, on_trio


@on_trio
async def bare(url: str, payload: bytes, *, count: int, at_once: int, batch: int = 1) -> Sent:
    where = urlsplit(url)
    stream = where.path[1:].encode()
    async with (
        coredis.Redis(host=where.hostname, port=where.port) as client,
        client.connection_pool.acquire() as connection,
    ):

        async def publish() -> None:
            requests = [
                connection.create_request(b"XADD", stream, b"*", b"payload", payload) for _ in range(batch)
            ]
            for request in requests:
                await request

        return await in_nursery(publish, turns=count // batch, at_once=at_once)
