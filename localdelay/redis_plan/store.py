"""What the plan asks of Redis, one shard at a time, and how the answers are read.

By the scripts in `lua/`: each is atomic, and touches the layout key alone, or the four keys of one shard.

    due     sorted set: ids that wait; score: when, in microseconds of Redis's own TIME
    leases  sorted set: ids that an instance has claimed; score: until when the claim holds
    bodies  hash: id to message, of both
    state   hash: bytes of all bodies, and the generation in which the shard was closed to puts

What others must know goes out as news on one channel: `shard time next-due next-end token`, which says when
the first message of the shard is due and when its first lease ends, at that time; -1 where there is none.
What is removed is named by its id and its execute-at: an instance that comes late, for it was frozen, must
not remove another message that was put under the same id meanwhile.

A Redis that is out of memory refuses a write that may take more, unless the script has written already; so
what claims, confirms and gives back begins with a removal. Only putting is refused.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any, TypeVar

import trio

from localdelay.redis_plan.bodies import Told
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.keys import Names
from localdelay.redis_plan.link import Link, Script
from localdelay.redis_plan.settings import RedisTuning

_T = TypeVar("_T")
_R = TypeVar("_R")
_AT_ONCE = 16
_LUA = files(__package__) / "lua"


def _script(*names: str) -> Script:
    text = b"".join((_LUA / f"{name}.lua").read_bytes() for name in names)
    return text, sha1(text, usedforsecurity=False).hexdigest().encode()


PUT = _script("shard", "tell", "put")
TAKE = _script("shard", "tell", "take")
SHUT = _script("shard", "shut")
LOOK = _script("shard", "look")
LAYOUT = _script("layout")


class Store:
    """One group of shards on one Redis."""

    def __init__(self, link: Link, names: Names, tuning: RedisTuning) -> None:
        self.link = link
        self.tuning = tuning
        self.token = secrets.token_hex(6)
        """How this instance is called in its news."""
        self.on_news: Callable[[int, int | None, float, float, bool], None] = lambda *_: None
        """Is told of a shard: when it was looked at (None: at some time), when its first message is due and
        its first lease ends then (infinite: never); and whether others know that, too, at this moment."""
        self.on_layout: Callable[[], None] = lambda: None
        self.names = names
        link.on_news = self._hear

    def clock(self, shard: int) -> RedisClock:
        """The clock that the instants of this shard are on."""
        return self.link.clock_of(self.names.of(shard)[0])

    async def run(self, script: Script, shard: int, *arguments: bytes | int, **how: Any) -> list[Any]:
        """What a script answers but for the news: how many messages there are, and what it says itself."""
        told = (self.names.channel, shard, self.token.encode())
        found: list[Any] = await self.link.run(script, self.names.of(shard), *told, *arguments, **how)
        at, next_due, next_end, *rest = found
        self.on_news(shard, at, _instant(next_due), _instant(next_end), False)
        return rest

    async def take(
        self, shard: int, told: Sequence[Told], most: int = 0, ahead: float = 0.0
    ) -> tuple[set[str], list[tuple[str, int, bytes]]]:
        """Tell of some messages, and claim up to `most` that are due within `ahead` seconds.

        Returns which of those that were told of are not there, or are another's; and what was claimed: id,
        when it is to be sent (its execute-at, or the end of a wait after a failure), and body.
        """
        lease = micro(self.tuning.lease)
        _, lost, *found = await self.run(TAKE, shard, most, micro(ahead), lease, *flat(told))
        taken = zip(found[::3], found[1::3], found[2::3], strict=True)
        return {name.decode() for name in lost}, [(name.decode(), due, body) for name, due, body in taken]

    async def has(self, shards: Iterable[int], id: str) -> bool:
        """Whether there is a message with this id in one of these shards."""
        for shard in shards:
            if await self.link.call(b"HEXISTS", self.names.of(shard)[2], id.encode()):
                return True
        return False

    async def count(self, shard: int) -> int:
        """How many messages there are."""
        return int(await self.link.call(b"HLEN", self.names.of(shard)[2]))

    async def glance(self, shard: int) -> None:
        """See when the first message is due, and when the first lease ends: two commands and no script."""
        firsts = []
        for key in self.names.of(shard)[:2]:
            found = await self.link.call(b"ZRANGE", key, 0, 0, b"WITHSCORES")
            firsts.append(float(found[0][1]) if found else math.inf)  # pairs, as RESP3 has them
        self.on_news(shard, None, firsts[0], firsts[1], True)

    def _hear(self, data: bytes, link: Link) -> None:
        if data == b"layout":
            self.on_layout()
        try:
            *numbers, token = data.split(b" ")
            shard, at, next_due, next_end = map(int, numbers)
        except ValueError:
            return  # it is not one of ours who says so
        if token != self.token.encode() and self.link.serves(self.names.of(shard)[0], link):
            self.on_news(shard, at, _instant(next_due), _instant(next_end), True)


def _instant(said: int) -> float:
    return math.inf if said < 0 else said


def flat(told: Sequence[Told]) -> list[bytes]:
    """What is told, as the scripts have it."""
    return [part for name, what in told for part in (name.encode(), what)]


def micro(seconds: float) -> int:
    """Seconds as the scripts have them."""
    return math.ceil(seconds * 1e6)


async def each(things: Iterable[_T], ask: Callable[[_T], Awaitable[_R]]) -> list[_R]:
    """What each answers, in any order, some asked at once; raises the first error when all were asked."""
    room = trio.CapacityLimiter(_AT_ONCE)
    answers: list[_R] = []
    errors: list[Exception] = []

    async def ask_one(thing: _T) -> None:
        async with room:
            try:
                answers.append(await ask(thing))
            except Exception as error:  # noqa: BLE001 (raised below)
                errors.append(error)

    async with trio.open_nursery() as nursery:
        for thing in things:
            nursery.start_soon(ask_one, thing)
    if errors:
        raise errors[0]
    return answers
