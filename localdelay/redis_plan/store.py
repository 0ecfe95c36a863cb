"""What the plan asks of Redis, one shard at a time, and how the answers are read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import attrs
import trio

from localdelay.redis_plan import scripts
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.keys import Layout, Names, former_text, layout_of
from localdelay.redis_plan.link import Link

NOTHING = -1
"""For an instant: there is none."""


@attrs.frozen
class News:
    """What a shard holds at an instant. All instants are microseconds of Redis's clock."""

    shard: int
    at: int
    next_due: int
    """When the first message that waits is due; -1: none waits."""
    next_end: int
    """When the first lease ends; -1: none is claimed."""
    count: int | None = None
    """Messages in it; None: it was not said."""


@attrs.frozen
class NewMessage:
    """A message to be put, as Redis is to hold it."""

    id: str
    when: float | int
    """Seconds from now, a float; or microseconds on Redis's clock, an int."""
    may_be_there: bool
    """Whether the id may be one that is pending."""
    body: bytes = attrs.field(repr=False)


@attrs.frozen
class PutAnswer:
    """What became of the messages of a put: a letter and a due time for each, unless the shard was closed."""

    news: News
    moved: bool
    """The shard is closed: nothing was put."""
    codes: bytes = b""
    """For each message: W it waits, L it is claimed for this instance, D its id is pending, F full."""
    dues: Sequence[int] = ()


@attrs.frozen
class Taken:
    """A message that was claimed."""

    id: str
    due: int
    """When it is to be sent: its execute-at, or the end of a wait after a failure."""
    value: bytes = attrs.field(repr=False)


Finished: TypeAlias = tuple[str, int]
"""(id, execute-at in microseconds of Redis's clock), for an id may be that of another message by now."""
Return: TypeAlias = tuple[str, float | None, bytes]
"""(id, wait, note). wait: seconds; None: until it was due; -1: keep the lease. note: b"" for none."""


@attrs.frozen(kw_only=True)
class Limits:
    """How much a shard holds, and how claims are made."""

    elements: int
    bytes: int
    claim_ahead: float
    """Seconds."""
    lease: float
    """Seconds."""


class Store:
    """One group of shards on one Redis."""

    def __init__(self, link: Link, names: Names, clock: RedisClock, token: str, limits: Limits) -> None:
        self._link = link
        self._names = names
        self._clock = clock
        self._token = token.encode()
        self.limits = limits

    @property
    def largest(self) -> int:
        """The most bytes that Redis takes in one argument."""
        return self._link.largest

    async def put(
        self, shard: int, messages: Sequence[NewMessage], *, generation: int, room: int
    ) -> PutAnswer:
        """Put messages into their shard; up to `room` of those that are due soon are claimed at once."""
        limits = self.limits
        arguments: list[bytes | int] = [
            *self._told(shard),
            generation,
            limits.elements,
            limits.bytes,
            _micro(limits.claim_ahead),
            _micro(limits.lease),
            room,
        ]
        for message in messages:
            when = message.when
            text = b"+%d" % _micro(when) if isinstance(when, float) else b"@%d" % when
            arguments += (message.id.encode(), text, int(message.may_be_there), message.body)
        found = await self._run(scripts.PUT, shard, *arguments)
        moved = found[4] == b"M"
        return PutAnswer(self._news(shard, found), moved, found[4], found[5:])

    async def take(
        self, shard: int, most: int, *, ahead: float, confirmed: Sequence[Finished] = ()
    ) -> tuple[News, list[Taken]]:
        """Claim up to so many messages that are due within `ahead` seconds, and confirm others."""
        gone = _pairs(confirmed)
        found = await self._run(
            scripts.TAKE, shard, *self._told(shard), most, _micro(ahead), _micro(self.limits.lease), *gone
        )
        rest = found[4:]
        taken = [
            Taken(name.decode(), int(due), value)
            for name, due, value in zip(rest[::3], rest[1::3], rest[2::3], strict=True)
            if value is not None
        ]
        return self._news(shard, found), taken

    async def confirm(self, shard: int, finished: Sequence[Finished]) -> News:
        """Remove messages that were sent, or given up."""
        return self._news(shard, await self._run(scripts.CONFIRM, shard, *_pairs(finished)))

    async def give_back(self, shard: int, returns: Sequence[Return]) -> News:
        """Give up claims, or write down that a message has failed."""
        arguments: list[bytes | int] = [*self._told(shard), _micro(self.limits.lease)]
        for name, wait, note in returns:
            text = b"" if wait is None else b"=" if wait < 0 else b"+%d" % _micro(wait)
            arguments += (name.encode(), text, note)
        return self._news(shard, await self._run(scripts.RETURN, shard, *arguments))

    async def renew(self, shard: int, ids: Sequence[str]) -> set[str]:
        """Hold these for another lease; return those that were still claimed."""
        names = [name.encode() for name in ids]
        found = await self._run(scripts.RENEW, shard, _micro(self.limits.lease), *names)
        return {name.decode() for name in found[4:]}

    async def cancel(self, shard: int, id: str, *, mine: int | None = None) -> bool | None:
        """Remove a message that nobody has claimed. False: somebody has; None: it is not here.

        `mine` is the execute-at of a message that this instance has claimed.
        """
        found = (await self._run(scripts.CANCEL, shard, id.encode(), b"" if mine is None else mine))[4]
        return None if found < 0 else bool(found)

    async def has(self, shard: int, id: str) -> bool:
        """Whether there is a message with this id."""
        return bool(await self._link.call(b"HEXISTS", self._names.of(shard)[2], id.encode()))

    async def count(self, shard: int) -> int:
        """How many messages there are."""
        return int(await self._link.call(b"HLEN", self._names.of(shard)[2]))

    async def look(self, shard: int, most: int) -> list[tuple[str, bytes]]:
        """Ids and messages: the first so many that wait, and as many that are claimed."""
        rest = (await self._run(scripts.LOOK, shard, most))[4:]
        pairs = zip(rest[::2], rest[1::2], strict=True)
        return [(name.decode(), value) for name, value in pairs if value is not None]

    async def glance(self, shard: int) -> tuple[int, int]:
        """When the first message is due, and when the first lease ends: two commands and no script."""
        due, leases, _, _ = self._names.of(shard)
        first_due = await self._link.call(b"ZRANGE", due, 0, 0, b"WITHSCORES")
        first_end = await self._link.call(b"ZRANGE", leases, 0, 0, b"WITHSCORES")
        return _score(first_due), _score(first_end)

    async def close(self, shard: int, generation: int) -> News:
        """Refuse puts of instances that know of no generation after this one."""
        return self._news(shard, await self._run(scripts.SHUT, shard, generation))

    async def layout(self) -> Layout | None:
        """What the layout key says; None where there is none. It compares the clocks, too."""
        time = await self._link.call(b"TIME")
        self._clock.observe(int(time[0]) * 1_000_000 + int(time[1]), trio.current_time())
        return layout_of(await self._link.call(b"HGETALL", self._names.layout))

    async def change_layout(self, layout: Layout, *, after: Layout | None) -> bool:
        """Write a layout if the one that is there is still `after`; return whether it was."""
        found = await self._link.run(
            scripts.LAYOUT,
            (self._names.layout,),
            self._names.channel,
            layout.generation,
            layout.shards,
            layout.top,
            former_text(layout.former),
            b"" if after is None else after.generation,
        )
        return bool(found[0])

    def heard(self, data: bytes) -> tuple[News, bool] | None:
        """What was told on the channel, and whether by another instance; None: the layout has changed."""
        if data == b"layout":
            return None
        shard, at, next_due, next_end, token = data.split(b" ")
        return News(int(shard), int(at), int(next_due), int(next_end)), token != self._token

    def _told(self, shard: int) -> tuple[bytes, int, bytes]:
        return self._names.channel, shard, self._token

    async def _run(self, script: scripts.Script, shard: int, *arguments: bytes | int) -> list[Any]:
        found = await self._link.run(script, self._names.of(shard), *arguments)
        self._clock.observe(int(found[0]), trio.current_time())
        return found

    def _news(self, shard: int, found: list[Any]) -> News:
        return News(shard, int(found[0]), int(found[1]), int(found[2]), int(found[3]))


def _pairs(finished: Sequence[Finished]) -> list[bytes | int]:
    return [part for name, due in finished for part in (name.encode(), due)]


def _micro(seconds: float) -> int:
    return math.ceil(seconds * 1e6)


def _score(found: Any) -> int:
    # RESP3 has pairs of a member and a number.
    if not found:
        return NOTHING
    pair = found[0] if isinstance(found[0], list | tuple) else found
    return int(float(pair[1]))
