"""Questions about what Redis holds, which go to several shards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import MappingProxyType

import trio

from localdelay.message import Message
from localdelay.redis_plan.bodies import Stored, decode
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.keys import Layout
from localdelay.redis_plan.store import Store

_AT_ONCE = 16


async def has_in(store: Store, shards: Iterable[int], id: str) -> bool:
    """Whether there is a message with this id in one of these shards."""
    for shard in shards:
        if await store.has(shard, id):
            return True
    return False


async def count(store: Store, layout: Layout) -> int:
    """How many messages there are."""
    counts: list[int] = []

    async def ask(shard: int) -> None:
        counts.append(await store.count(shard))

    await _ask_each(layout.served, ask)
    return sum(counts)


async def messages(store: Store, layout: Layout, clock: RedisClock, most: int) -> list[Message]:
    """The first so many in due order."""
    found: list[tuple[float, str, Stored]] = []

    async def ask(shard: int) -> None:
        for name, value in await store.look(shard, most):
            stored = decode(value)
            found.append((clock.local(stored.due), name, stored))

    await _ask_each(layout.served, ask)
    found.sort(key=lambda one: one[:2])
    return [
        Message(name, one.payload, due, MappingProxyType(one.headers or {}), one.attempt)
        for due, name, one in found[:most]
    ]


async def _ask_each(shards: Iterable[int], ask: Callable[[int], Awaitable[None]]) -> None:
    """Ask each shard, some at once; raise the first error."""
    room = trio.CapacityLimiter(_AT_ONCE)
    errors: list[Exception] = []

    async def ask_one(shard: int) -> None:
        async with room:
            if errors:
                return
            try:
                await ask(shard)
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)

    async with trio.open_nursery() as nursery:
        for shard in shards:
            nursery.start_soon(ask_one, shard)
    if errors:
        raise errors[0]
