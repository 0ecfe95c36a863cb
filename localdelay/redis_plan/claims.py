"""Claiming: when to ask which shard, without asking when there is nothing to be had.

For each shard this instance knows when its first message is due and when its first lease ends: from the
answers to its own commands, and from the news that others' commands make. So it sleeps until there is
something to claim somewhere. When several instances wait for the same message, each comes at a time of its
own, the more eager ones for this shard first (`keys.lead`). The first one's claim is news to the others.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import attrs
import trio

from localdelay.queue.core import Core
from localdelay.redis_plan.keys import lead
from localdelay.redis_plan.leases import Leases
from localdelay.redis_plan.link import logger
from localdelay.redis_plan.store import Store, each

MOST = 200
"""Messages of one claim."""
_IN_FLIGHT = 16
_STAGGER = 0.02
"""Seconds over which instances spread their claims when news come late."""
_STAGGER_EXPIRED = 0.2
_STEPPED = 1_000_000
"""Microseconds. Redis's clock was set back if news are older than others by this."""
_AFTER_FAILURE = 0.5
_BEHIND = 0.25
"""Seconds. An instance whose messages are overdue by more leaves what it need not have yet to others."""
_FEW_EACH = 4
"""Messages for each worker of such an instance."""


@attrs.define(eq=False)
class Shard:
    """What is known of a shard. Instants are microseconds of Redis's clock, infinite for none."""

    number: int
    at: int = 0
    next_due: float = math.inf
    next_end: float = math.inf
    when: float = math.inf
    """When to ask, seconds on Trio's clock."""
    asking: bool = False


class Claimer:
    """Claims, for as long as its `run` runs. What is being claimed or put has room reserved in the ledger."""

    def __init__(self, core: Core, store: Store, leases: Leases) -> None:
        self._core = core
        self._ledger = core.pending.ledger
        self._store = store
        self._leases = leases
        self._shards: dict[int, Shard] = {}
        self._heap: list[tuple[float, int]] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._settled = trio.lowlevel.ParkingLot()
        self._telling = trio.Lock()
        self._in_flight = 0
        self._starved = False
        self._until = math.inf
        store.on_news = self._hear
        leases.on_room = self._made_room

    def serve(self, shards: range) -> None:
        """Claim from these shards from now on; ask those that are new."""
        for number in shards:
            if number not in self._shards:
                self._shards[number] = Shard(number)
                self._ask_at(self._shards[number], trio.current_time())
        for number in [number for number in self._shards if number not in shards]:
            del self._shards[number]

    def ask_all(self) -> None:
        """Ask every shard: news may have been lost."""
        now = trio.current_time()
        for shard in self._shards.values():
            shard.at = 0
            self._ask_at(shard, now)
        self.change()

    def ask_later(self, number: int) -> None:
        """Ask this shard soon: a put has failed, and Redis may have it, claimed by this instance.

        Its own news tell an instance nothing, so that nobody here would know when that lease ends.
        """
        shard = self._shards.get(number)
        if shard is not None:
            self._ask_at(shard, min(shard.when, trio.current_time() + _after_failure()))

    def _hear(self, number: int, at: int | None, next_due: float, next_end: float, foreign: bool) -> None:
        shard = self._shards.get(number)
        if shard is None:
            return
        if at is not None and (at >= shard.at or at < shard.at - _STEPPED):
            shard.at, shard.next_due, shard.next_end = at, next_due, next_end
        else:  # it comes late, but what it says may be what was not known
            earlier = min(shard.next_due, next_due), min(shard.next_end, next_end)
            if at is None and (shard.asking or earlier == (shard.next_due, shard.next_end)):
                return
            shard.next_due, shard.next_end = earlier
        self._ask_at(shard, self._when(shard, foreign=foreign))

    def next_due(self) -> float:
        """When the first message is due that nobody has claimed, as far as is known; infinite for none."""
        return min(map(self._due, self._shards.values()), default=math.inf)

    def _due(self, shard: Shard) -> float:
        return self._store.clock(shard.number).local(shard.next_due)

    def reserve(self, most: int) -> int:
        """Keep room for messages that are being put and may be claimed at once; for how many there is."""
        return self._reserve(most) if self._claims_any else 0

    @property
    def _claims_any(self) -> bool:
        """Whether whatever comes due is claimed here: it is neither paused nor draining."""
        return not self._leases.is_paused and self._until == math.inf

    def _reserve(self, most: int) -> int:
        granted = max(0, min(most, self._room()))
        self._ledger.reserved += granted
        return granted

    def unreserve(self, count: int) -> None:
        """Those messages are counted in, or were not claimed."""
        self._ledger.reserved -= count
        self._settled.unpark_all()
        self._made_room()

    def change(self) -> None:
        """Look again: the rules have changed."""
        self._starved = False
        self._changed.unpark_all()

    def change_until(self, until: float) -> None:
        """Claim nothing any more that is due later."""
        self._until = until
        for shard in self._shards.values():
            self._ask_at(shard, self._when(shard))
        self.change()

    async def settle(self) -> None:
        """Wait until nothing is under way that claims, puts included."""
        while self._ledger.reserved:
            await self._settled.park()

    async def run(self) -> None:
        """Claim what comes due."""
        async with trio.open_nursery() as nursery:
            while True:
                shard = self._first()
                held_up = self._leases.is_paused or self._starved or self._in_flight >= _IN_FLIGHT
                if shard is None or held_up or not self._store.link.is_connected:
                    await self._changed.park()
                elif shard.when > trio.current_time():
                    with trio.CancelScope(deadline=shard.when):
                        await self._changed.park()
                elif (most := self._reserve_for(shard)) == 0:
                    self._starved = True
                else:
                    nursery.start_soon(self._claim, shard, most)

    async def tell(self) -> None:
        """Tell Redis what it does not know. To be run as a task."""
        while True:
            await self.tell_of(await self._leases.overdue())

    async def tell_of(self, shards: Iterable[int]) -> bool:
        """Tell Redis what it does not know of these shards; return whether it was told."""
        async with self._telling:
            try:
                await each(shards, self._tell)
            except Exception as error:  # noqa: BLE001 (told again)
                logger.debug("not every shard could be told: %s", error)
                return False
        return True

    async def _tell(self, number: int) -> None:
        """Tell of a shard, and claim by the same call where there is something."""
        shard = self._shards.get(number)
        if (
            shard is not None
            and not shard.asking
            and self._claims_any
            and self._due(shard) <= trio.current_time() + self._store.tuning.claim_ahead
            and (most := self._reserve_for(shard))
        ):
            await self._claim(shard, most)
        else:
            await self._leases.ask(number)

    def _reserve_for(self, shard: Shard) -> int:
        """Keep room for a claim that is about to begin; for how many messages."""
        most = self._reserve(MOST)
        if most:
            self._in_flight += 1
            shard.asking = True
            shard.when = math.inf
        return most

    async def _claim(self, shard: Shard, most: int) -> None:
        now = trio.current_time()
        failed = False
        try:
            ahead = min(self._store.tuning.claim_ahead, max(0.0, self._until - now))
            await self._leases.ask(shard.number, most, ahead)
        except Exception as error:  # noqa: BLE001 (asked again)
            logger.debug("shard %d could not be asked: %s", shard.number, error)
            failed = True
        finally:
            self._in_flight -= 1
            shard.asking = False
            self.change()
            self.unreserve(most)
        self._ask_at(shard, now + _after_failure() if failed else self._when(shard))

    def _made_room(self) -> None:
        if self._starved and self._room() >= min(100, max(1, self._limit() // 4)):
            self.change()

    def _room(self) -> int:
        ledger = self._ledger
        room = self._limit() - ledger.pending - ledger.reserved
        return room if ledger.pending_bytes < ledger.limit_bytes else 0

    def _limit(self) -> int:
        """The most messages to hold: few while this instance does not keep up, for others may."""
        core, capacity = self._core, self._ledger.capacity
        if trio.current_time() - core.pending.schedule.next_due() <= _BEHIND:
            return capacity
        return min(capacity, _FEW_EACH * core.workers.count * core.batch_most)

    def _when(self, shard: Shard, *, foreign: bool = False) -> float:
        now, due = trio.current_time(), self._due(shard)
        early = lead(self._store.token, shard.number)
        when = math.inf if due > self._until else due - self._store.tuning.claim_ahead * early
        if foreign and when < now:
            when = now + (1.0 - early) * _STAGGER
        ends = self._store.clock(shard.number).local(shard.next_end)
        return max(min(when, ends + (1.0 - early) * _STAGGER_EXPIRED), now)

    def _ask_at(self, shard: Shard, when: float) -> None:
        if shard.asking:
            return  # its answer says more
        shard.when = when
        if when < math.inf:
            heappush(self._heap, (when, shard.number))
            if self._heap[0][1] == shard.number:
                self._changed.unpark_all()
            if len(self._heap) > 4 * len(self._shards) + 64:
                self._heap = [(one.when, one.number) for one in self._shards.values() if one.when < math.inf]
                heapify(self._heap)

    def _first(self) -> Shard | None:
        while self._heap:
            when, number = self._heap[0]
            shard = self._shards.get(number)
            if shard is not None and shard.when == when:
                return shard
            heappop(self._heap)
        return None


def _after_failure() -> float:
    return _AFTER_FAILURE * random.uniform(1.0, 2.0)
