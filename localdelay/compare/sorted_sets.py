"""The write-up's plan 1, word for word: sorted sets in Redis, polled behind locks.

A message is a member of one of the sets, its score the wall clock when it is due, in milliseconds. Every
200 ms each instance tries for the lock of each set (SETNX, with an expiry, or a crash would lock it for
ever), and who gets it reads what is due (ZRANGE), sends each, and removes it (ZREM).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable

import trio

from localdelay.redis_plan.link import Link

POLL_EVERY = 0.2
"""Seconds."""
_LOCK_MS = 190
"""The lock of one poll is gone by the next."""
_NUMBER = 16
"""Hexadecimal digits before the payload: members of a set are all different."""


class SortedSets:
    """One instance of the plan."""

    def __init__(
        self, link: Link, name: str, shards: int, send: Callable[[float, bytes], Awaitable[None]]
    ) -> None:
        """`send` is called with when the message was due, in Unix time, and its payload."""
        self._link = link
        self._keys = [f"{name}:{shard}".encode() for shard in range(shards)]
        self._send = send
        self._numbers = itertools.count(time.time_ns())

    async def put(self, payload: bytes, *, delay: float) -> None:
        """Store a message that is due in `delay` seconds. Raises as `Link.call` does."""
        number = next(self._numbers)
        due = int((time.time() + delay) * 1000) + 1
        key = self._keys[number % len(self._keys)]
        await self._link.call(b"ZADD", key, due, b"%0*x%s" % (_NUMBER, number, payload))

    async def run(self) -> None:
        """Poll all sets, each in its own time."""
        async with trio.open_nursery() as nursery:
            for number, key in enumerate(self._keys):
                nursery.start_soon(self._poll, key, POLL_EVERY * number / len(self._keys))

    async def count(self) -> int:
        """How many messages there are."""
        return sum([int(await self._link.call(b"ZCARD", key)) for key in self._keys])

    async def _poll(self, key: bytes, first: float) -> None:
        when = trio.current_time() + first
        while True:
            await trio.sleep_until(when)
            when = max(when + POLL_EVERY, trio.current_time())
            if not await self._link.call(b"SET", key + b":lock", 1, b"NX", b"PX", _LOCK_MS):
                continue
            now = int(time.time() * 1000)
            for member, score in await self._link.call(
                b"ZRANGE", key, b"-inf", now, b"BYSCORE", b"WITHSCORES"
            ):
                await self._send(float(score) / 1000, member[_NUMBER:])
                await self._link.call(b"ZREM", key, member)
