"""Which node of a Redis Cluster has which slot, as the nodes say. The Redis plan asks so, too."""

from __future__ import annotations

import random
import re
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import attrs
import trio
from coredis.exceptions import RedisError

from localdelay.brokers.redis_line import Place, connect
from localdelay.errors import LocalDelayError
from localdelay.nurseries import bare_nursery

SLOTS = 16384
CLUSTER = "+cluster"
"""What the scheme of a cluster's URL ends with."""
_ANSWER = 2.0
"""Seconds for one node to say who has which slot."""

Ask: TypeAlias = Callable[[bytes], Awaitable[Any]]
"""Sends one command to some node."""


def slot_of(key: bytes) -> int:
    """The slot of a key, by its hash tag where it has one."""
    tag = re.match(rb"[^{]*\{([^}]+)\}", key)
    return crc_hqx(tag[1] if tag else key, 0) % SLOTS


class Nodes:
    """The nodes of a Redis Cluster, as far as they are known."""

    def __init__(self, places: Sequence[Place]) -> None:
        """`places` are some of them."""
        self._given = self._known = [*places]

    def at(self, host: str, port: int) -> Place:
        """The node that another one names; where that knows no host, it is where the first one is."""
        first = self._given[0]
        return attrs.evolve(first, host=host or first.host, port=port)

    async def look(self, asks: Iterable[Ask] = ()) -> list[tuple[int, int, Place]]:
        """Which slots each master has, from the first to the last of a range, by the first node that answers.

        Those behind `asks` come first, then all others, in any order: many look when a master has gone.
        Raises `ConnectionError` where nobody answers.
        """
        why: Exception | None = None
        others: list[Ask] = [partial(_ask, place) for place in random.sample(self._known, len(self._known))]
        for ask in (*asks, *others):
            with trio.move_on_after(_ANSWER):
                try:
                    said = await ask(b"CLUSTER SLOTS")
                except (ConnectionError, RedisError, LocalDelayError) as error:
                    why = error
                else:
                    return self._read(said)
        raise ConnectionError(f"no node of the cluster answers: {why or 'not in time'}") from why

    async def owner(self, key: bytes) -> Place:
        """The master that has this key. Raises `ConnectionError` where there is none."""
        slot = slot_of(key)
        for first, last, master in await self.look():
            if first <= slot <= last:
                return master
        raise ConnectionError("no node of the cluster has its slot")

    def _read(self, said: Any) -> list[tuple[int, int, Place]]:
        found = []
        known = dict.fromkeys(self._given)
        for first, last, *nodes in said:
            places = [self.at(bytes(node[0] or b"").decode(), int(node[1])) for node in nodes]
            known |= dict.fromkeys(places)
            found.append((first, last, places[0]))
        self._known = [*known]
        return found


async def _ask(place: Place, command: bytes) -> Any:
    async with bare_nursery() as nursery:
        line = await connect(nursery, place, _ANSWER, fit=False)
        try:
            return await line.connection.create_request(command, decode=False)
        finally:
            line.end()
