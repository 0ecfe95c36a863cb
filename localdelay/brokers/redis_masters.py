"""Who takes writes: the Redis of a URL, the node of a Cluster that has a key, or whom sentinels name.

The Redis plan asks so, too.
"""

from __future__ import annotations

import random
import re
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

import attrs
import trio
from coredis.exceptions import AskError, ClusterDownError, ReadOnlyError, RedisError, ResponseError

from localdelay.brokers.address import Address
from localdelay.brokers.redis_line import Place, no_connection, places_of, reached
from localdelay.errors import LocalDelayError

_T = TypeVar("_T")
SLOTS = 16384
_ANSWER = 2.0
"""Seconds for one node or sentinel to say who it is."""

Ask: TypeAlias = Callable[..., Awaitable[Any]]
"""Sends one command to some node."""


def slot_of(key: bytes) -> int:
    """The slot of a key, by its hash tag where it has one."""
    tag = re.match(rb"[^{]*\{([^}]+)\}", key)
    return crc_hqx(tag[1] if tag else key, 0) % SLOTS


class Masters:
    """One Redis, which has every key."""

    refusals: ClassVar[tuple[type[Exception], ...]] = (ReadOnlyError,)
    """What somebody answers who has not taken a message, and is not the master, or not any more."""

    _nobody: ClassVar[str] = "nobody"

    def __init__(self, places: Sequence[Place], what: str = "Redis") -> None:
        """`places` are who is to be asked, in any order."""
        self.places = self._known = [*places]
        self.where = f"{what} at {','.join(map(str, places))}"
        """All of it, as errors name it."""

    def at(self, host: str, port: int) -> Place:
        """The server that another one names; where that knows no host, it is where the first one is."""
        first = self.places[0]
        return attrs.evolve(first, host=host or first.host, port=port)

    async def owner(self, key: bytes) -> Place:
        """The master that has this key. Raises `ConnectionError` where there is none."""
        return self.places[0]

    async def _asked(self, asks: Iterable[Ask], read: Callable[[Any], _T], *command: bytes) -> _T:
        """What is read of the first answer that can be: of those behind `asks`, then of all, in any order.

        Many ask when a master has gone. Raises `ConnectionError` where nobody answers.
        """
        why: Exception | None = None
        others: list[Ask] = [partial(_ask, place) for place in random.sample(self._known, len(self._known))]
        all_of_them = [*asks, *others]
        for number, ask in enumerate(all_of_them):
            # One that does not answer must leave some time for the others, and for what comes after them.
            left = trio.current_effective_deadline() - trio.current_time()
            share = left / (len(all_of_them) - number + 1)
            with trio.move_on_after(min(_ANSWER, max(0.0, share))):
                try:
                    return read(await ask(*command))
                except (ConnectionError, RedisError, LocalDelayError, TypeError, ValueError) as error:
                    why = error
        raise ConnectionError(f"{self._nobody} answers: {why or 'not in time'}") from why


class Nodes(Masters):
    """The nodes of a Redis Cluster, as far as they are known."""

    refusals = (ReadOnlyError, AskError, ClusterDownError)
    _nobody = "no node of the cluster"

    async def look(self, asks: Iterable[Ask] = ()) -> list[tuple[int, int, Place]]:
        """Which slots each master has, from the first to the last of a range. `asks` are asked first."""
        return await self._asked(asks, self._slots, b"CLUSTER SLOTS")

    def _slots(self, said: Any) -> list[tuple[int, int, Place]]:
        found = []
        known = dict.fromkeys(self.places)
        for first, last, *nodes in said:
            places = [self.at(bytes(node[0] or b"").decode(), int(node[1])) for node in nodes]
            known |= dict.fromkeys(places)
            found.append((first, last, places[0]))
        self._known = [*known]
        return found

    async def owner(self, key: bytes) -> Place:
        """The master of the key's slot."""
        slot = slot_of(key)
        for first, last, master in await self.look():
            if first <= slot <= last:
                return master
        raise ConnectionError("no node of the cluster has its slot")


class Sentinels(Masters):
    """Sentinels, and the service whose master they name: another one after a failover.

    They are asked as the default user, by the password of the URL: one that wants none takes any.
    """

    _nobody = "no sentinel"

    def __init__(self, places: Sequence[Place], service: str) -> None:
        super().__init__(places, f"Redis {service} of the sentinels")
        self._known = [attrs.evolve(place, username=None, db=0) for place in places]
        self._service = service.encode()

    async def owner(self, key: bytes) -> Place:
        """The service's master."""
        return await self._asked((), self._named, b"SENTINEL GET-MASTER-ADDR-BY-NAME", self._service)

    def _named(self, said: Any) -> Place:
        if said is None:
            raise ConnectionError("it knows no such service")
        host, port = map(bytes.decode, said)
        return self.at(host, int(port))


def masters_of(where: Address) -> tuple[Masters, str]:
    """Who takes writes, by a URL, and its key or name. Raises `ValueError` for an option that is none."""
    places = places_of(where)
    if where.scheme.endswith("+cluster"):
        return Nodes(places, "Redis Cluster"), where.target
    if where.scheme.endswith("+sentinel"):
        service, _, key = where.target.partition("/")
        return Sentinels(places, service), key
    return Masters(places), where.target


async def _ask(place: Place, *command: bytes) -> Any:
    try:
        async with reached(place, fit=False) as line:
            return await line.create_request(*command, decode=False)
    except ResponseError as error:  # it has answered
        raise ConnectionError(f"Redis at {place}: {error}") from error
    except Exception as error:
        raise no_connection(f"Redis at {place}", error) from error
