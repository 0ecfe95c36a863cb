"""The connections to a Redis Cluster: one to each master, and which of them has which slot.

Each is a `Link`, with its calls, its news and its node's clock. Every node passes on all news; those of a
shard are heard on the connection that its calls go to, so that what holds for one server holds here, too.
`MOVED` and `ASK` are followed. While a slot moves, a script has to wait until all keys of its shard are on
one side. Where there is no master, calls fail until another has taken over.
"""

from __future__ import annotations

from typing import Any

import trio
from coredis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from localdelay.brokers.redis_line import Place
from localdelay.brokers.redis_masters import SLOTS, Masters, Nodes, slot_of
from localdelay.nurseries import bare_nursery
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.link import Link, RedisUnreachable, logger

_LOOK_EVERY = 10.0
"""Seconds between two looks at who has which slot, where nothing says that it is wrong."""
_LOOK_AGAIN = 0.1
_TRY_EVERY = 0.02
_REDIRECTS = 2
"""So many in a row are followed at once: to who has the slot, and to who is getting it."""


class Cluster(Link):
    """Keeps a link to each master."""

    def __init__(self, nodes: Nodes, channel: bytes, connects: float, replies: float) -> None:
        super().__init__(nodes, channel, connects, replies)
        self._nodes = nodes
        self._links: dict[Place, Link] = {}
        self._slots: list[Link | None] = [None] * SLOTS
        self._nursery: trio.Nursery
        self._stale = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def is_connected(self) -> bool:
        """Whether some master can be called at this moment."""
        return any(link.is_connected for link in self._links.values())

    def serves(self, key: bytes, link: Link) -> bool:
        """Whether this is the link for this key."""
        return self._slots[slot_of(key)] is link

    def clock_of(self, key: bytes) -> RedisClock:
        """The clock of the node that has this key; that of another, as long as it has not answered yet."""
        link = self._slots[slot_of(key)]
        links = [] if link is None else [link]
        return next((one.clock for one in (*links, *self._links.values()) if one.connections), self.clock)

    async def keep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect to all masters, and follow who they are, until `end` is called. As `Link.keep`."""
        with self._scope:
            async with bare_nursery() as self._nursery:
                with trio.move_on_after(self._connects) as scope:
                    await self._look()
                    while not all(link.is_connected for link in self._links.values()):
                        await self._changed.park()
                if scope.cancelled_caught:
                    raise ConnectionError(f"not all masters of the {self._where} answer")
                self._scope.shield = True
                task_status.started()
                while True:
                    with trio.move_on_after(_LOOK_EVERY):
                        await self._stale.wait()
                    self._stale = trio.Event()
                    try:
                        await self._look()
                    except (ConnectionError, TimeoutError) as error:
                        logger.debug("%s", error)
                    await trio.sleep(_LOOK_AGAIN)

    async def call(self, command: bytes, *arguments: bytes | int, **how: Any) -> Any:
        """The reply to a script, or to a command whose first argument is its key, by the key's master.

        The keys of a script are in one slot. As `Link.call`.
        """
        key = arguments[2] if command.startswith(b"EVAL") else arguments[0]
        assert isinstance(key, bytes)  # noqa: S101 (each that is called has one)
        slot = slot_of(key)
        until = trio.current_time() + self._replies
        link, asking, redirects = self._slots[slot], False, 0
        while True:
            try:
                if link is None:
                    raise RedisUnreachable(f"no node of the {self._where} has this slot")
                return await link.call(command, *arguments, asking=asking, **how)
            except AskError as error:
                redirects += 1
                if redirects > _REDIRECTS:  # the nodes disagree, until they have heard of each other
                    await trio.sleep(_TRY_EVERY)
                link, asking = self._link_at(self._nodes.at(error.host, error.port)), True
                if isinstance(error, MovedError):
                    self._slots[slot], asking = link, False
                    self._stale.set()
                late: Exception = error
            except TryAgainError as error:
                late = error
                await trio.sleep(_TRY_EVERY)
                link, asking = self._slots[slot], False
            except (ConnectionError, ClusterDownError) as error:
                self._stale.set()
                if not isinstance(error, ClusterDownError):
                    raise
                raise RedisUnreachable(str(error)) from error
            if trio.current_time() > until:
                raise RedisUnreachable(f"the {self._where} is moving this slot") from late

    async def _look(self) -> None:
        """Learn who has which slot, and have a link to each of them, and to no node that is gone."""
        for first, last, place in await self._nodes.look([link.call for link in self._links.values()]):
            self._slots[first : last + 1] = [self._link_at(place)] * (last + 1 - first)
        used = set(self._slots)
        for place, link in [*self._links.items()]:
            if link not in used and not link.is_connected:  # who gets its first slot is asked before
                del self._links[place]
                link.end()

    def _link_at(self, place: Place) -> Link:
        link = self._links.get(place)
        if link is None:
            link = self._links[place] = Link(Masters([place]), self._channel, self._connects, self._replies)
            link.whole = self
            link.on_news = self.on_news
            link.on_connected = self._connected
            self._nursery.start_soon(link.keep)
        return link

    def _connected(self) -> None:
        self.connections += 1
        self.largest = min(link.largest for link in self._links.values())
        self._changed.unpark_all()
        self.on_connected()
