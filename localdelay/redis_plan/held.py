"""What this instance has claimed: until when, and what Redis is still to be told of it.

A message is confirmed to Redis a little after its send has returned, together with others of its shard. Until
then a crash means that it is sent again.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import trio

from localdelay.redis_plan.link import logger
from localdelay.redis_plan.store import Finished, News, Return, Store

_MOST = 500
"""Messages of one command."""
_IN_FLIGHT = 16
_Told = TypeVar("_Told")
_RETRY = 0.5
"""Seconds after which what Redis did not take is told again."""
KEEP = -1.0


_Claim: TypeAlias = tuple[int, float, int]
"""(shard, until when the lease holds for certain in seconds on Trio's clock, execute-at in microseconds on
Redis's). A tuple of numbers: there are thousands of these, and the garbage collector does not walk them."""


class Held:
    """Keeps the claims. Its `tell` and `renew` are to run as tasks."""

    def __init__(self, store: Store, *, lease: float, confirm_within: float) -> None:
        self._store = store
        self._lease = lease
        self._confirm_within = confirm_within
        self._claims: dict[str, _Claim] = {}
        self._confirmed: defaultdict[int, list[Finished]] = defaultdict(list)
        self._returned: defaultdict[int, list[tuple[str, float | None, bytes]]] = defaultdict(list)
        self._untold = trio.lowlevel.ParkingLot()
        self._returns = trio.Event()
        self._telling = trio.Lock()
        self._being_told = 0
        self.on_news: Callable[[News], None] = lambda _: None
        """Is told what the shards say."""

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, id: str) -> bool:
        return id in self._claims

    @property
    def untold(self) -> int:
        """Messages of which Redis is to be told something."""
        confirmed = sum(len(ids) for ids in self._confirmed.values())
        return self._being_told + confirmed + sum(len(returned) for returned in self._returned.values())

    def claim(self, id: str, shard: int, ends: float, due: int) -> None:
        """This message was claimed, or claimed again; `due` is its execute-at on Redis's clock."""
        self._claims[id] = (shard, ends, due)

    def where(self, id: str) -> tuple[int, int] | None:
        """The shard of a message that is claimed, and its execute-at on Redis's clock."""
        claim = self._claims.get(id)
        return None if claim is None else (claim[0], claim[2])

    def holds(self, id: str, now: float) -> bool:
        """Whether the message is this instance's for certain."""
        claim = self._claims.get(id)
        return claim is not None and now < claim[1]

    def forget(self, id: str) -> None:
        """The lease has ended: it is somebody else's."""
        self._claims.pop(id, None)

    def confirm(self, id: str) -> None:
        """The message is finished. Redis is told soon."""
        claim = self._claims.pop(id, None)
        if claim is not None:
            self._confirmed[claim[0]].append((id, claim[2]))
            self._untold.unpark()

    def give_back(self, id: str, due: float | None, note: bytes) -> None:
        """Somebody else may have the message, due then (None: as it always was). Redis is told at once."""
        claim = self._claims.pop(id, None)
        if claim is not None:
            self._returned[claim[0]].append((id, due, note))
            self._returns.set()
            self._untold.unpark()

    def write_down(self, id: str, note: bytes) -> None:
        """The message has failed, and stays here."""
        claim = self._claims.get(id)
        if claim is not None:
            self._returned[claim[0]].append((id, KEEP, note))
            self._returns.set()
            self._untold.unpark()

    def pop_confirmed(self, shard: int) -> list[Finished]:
        """What Redis is to be told of this shard, by whoever goes there; `told_confirmed` is to follow."""
        return self._pop(self._confirmed, shard)

    def told_confirmed(self, shard: int, finished: Sequence[Finished], *, ok: bool) -> None:
        """Redis was told what `pop_confirmed` has returned, or it is to be told again."""
        self._being_told -= len(finished)
        if finished and not ok:
            self._confirmed[shard] += finished
            self._untold.unpark()

    async def tell(self) -> None:
        """Tell Redis what is confirmed, `confirm_within` seconds later, and at once what is given back."""
        while True:
            if not self._confirmed and not self._returned:
                await self._untold.park()
            if not self._returned:
                with trio.move_on_after(self._confirm_within):
                    await self._returns.wait()
            if not await self.tell_all():
                await trio.sleep(_RETRY)

    async def tell_all(self) -> bool:
        """Tell Redis all that it does not know; return whether it was told."""
        ok = True
        room = trio.CapacityLimiter(_IN_FLIGHT)

        async def told(job: Callable[[], Awaitable[bool]]) -> None:
            nonlocal ok
            async with room:
                ok = await job() and ok

        async with self._telling, trio.open_nursery() as nursery:
            self._returns = trio.Event()
            for shard, finished in self._confirmed.items():
                for _ in range(0, len(finished), _MOST):
                    nursery.start_soon(told, partial(self._tell_confirmed, shard))
            for shard, returned in self._returned.items():
                for _ in range(0, len(returned), _MOST):
                    nursery.start_soon(told, partial(self._tell_returned, shard))
        return ok

    def _pop(self, untold: dict[int, list[_Told]], shard: int) -> list[_Told]:
        of_shard = untold.get(shard, [])
        taken = of_shard[:_MOST]
        del of_shard[:_MOST]
        if not of_shard:
            untold.pop(shard, None)
        self._being_told += len(taken)
        return taken

    # Each takes what it tells when its turn has come: a cancellation before that loses nothing.

    async def _tell_confirmed(self, shard: int) -> bool:
        finished = self.pop_confirmed(shard)
        if not finished:
            return True
        told = False
        try:
            self.on_news(await self._store.confirm(shard, finished))
            told = True
        except Exception as error:  # noqa: BLE001 (told again)
            logger.debug("shard %d could not be told what is confirmed: %s", shard, error)
        finally:
            self.told_confirmed(shard, finished, ok=told)
        return told

    async def _tell_returned(self, shard: int) -> bool:
        returned = self._pop(self._returned, shard)
        if not returned:
            return True
        now = trio.current_time()
        returns: list[Return] = [
            (name, due if due is None or due == KEEP else max(0.0, due - now), note)
            for name, due, note in returned
        ]
        told = False
        try:
            self.on_news(await self._store.give_back(shard, returns))
            told = True
        except Exception as error:  # noqa: BLE001 (told again)
            logger.debug("shard %d could not be told what is given back: %s", shard, error)
        finally:
            self._being_told -= len(returns)
            if not told:
                self._returned[shard] += returned
                self._untold.unpark()
        return told

    async def renew(self) -> None:
        """Hold what is claimed for as long as it is here."""
        while True:
            await trio.sleep(self._lease / 4)
            await self.renew_all()

    async def renew_all(self) -> None:
        """Renew the leases that have lost a third of their length; what fails is tried again in time."""
        now = trio.current_time()
        by_shard: defaultdict[int, list[str]] = defaultdict(list)
        for name, (shard, ends, _) in self._claims.items():
            if now < ends < now + self._lease * 2 / 3:  # what has ended may be another's by now
                by_shard[shard].append(name)
        for shard, ids in by_shard.items():
            for start in range(0, len(ids), _MOST):
                part = ids[start : start + _MOST]
                asked = trio.current_time()
                try:
                    still = await self._store.renew(shard, part)
                except Exception:  # noqa: BLE001, S112 (the lease runs out, or the next time is in time)
                    continue
                for name in part:
                    if name in self._claims:
                        ends = asked + self._lease if name in still else -math.inf
                        self.claim(name, shard, ends, self._claims[name][2])
