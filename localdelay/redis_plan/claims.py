"""Claiming: when to ask which shard, without asking when there is nothing to be had.

For each shard this instance knows when its first message is due and when its first lease ends: from the
answers to its own commands, and from the news that others' commands make. So it sleeps until there is
something to claim somewhere. It claims what is due within the claim-ahead time in one go, and what it has
claimed waits for its time here.

When several instances wait for the same message, each comes at a time of its own, the more eager ones for
this shard first (`keys.lead`). The first one's claim is news to the others, who then wait for what comes
next.
"""

from __future__ import annotations

import math
import random
from heapq import heappop, heappush

import attrs
import trio

from localdelay.queue.ledger import Ledger
from localdelay.queue.schedule import Schedule
from localdelay.queue.workers import Workers
from localdelay.redis_plan.bodies import decode
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held
from localdelay.redis_plan.keys import lead
from localdelay.redis_plan.link import Link, logger
from localdelay.redis_plan.sending import Arrivals
from localdelay.redis_plan.store import NOTHING, News, Store

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
    """What is known of a shard. Instants are microseconds of Redis's clock; -1: none."""

    number: int
    lead: float
    at: int = 0
    next_due: int = NOTHING
    next_end: int = NOTHING
    when: float = math.inf
    """When to ask, seconds on Trio's clock."""
    asking: bool = False
    failures: int = 0


class Claimer:
    """Claims, for as long as its `run` runs."""

    def __init__(
        self,
        store: Store,
        link: Link,
        clock: RedisClock,
        ledger: Ledger,
        held: Held,
        arrivals: Arrivals,
        schedule: Schedule,
        workers: Workers,
        *,
        batch: int,
        token: str,
        claim_ahead: float,
    ) -> None:
        self._store = store
        self._link = link
        self._clock = clock
        self._ledger = ledger
        self._held = held
        self._arrivals = arrivals
        self._schedule = schedule
        self._workers = workers
        self._batch = batch
        self._token = token
        self._ahead = claim_ahead
        self._shards: dict[int, Shard] = {}
        self._heap: list[tuple[float, int]] = []
        self._changed = trio.lowlevel.ParkingLot()
        self._settled = trio.lowlevel.ParkingLot()
        self._in_flight = 0
        self._reserved = 0
        self._starved = False
        self.paused = False
        self.until = math.inf
        """Claim nothing that is due later, seconds on Trio's clock."""

    def serve(self, shards: range) -> None:
        """Claim from these shards from now on; ask those that are new."""
        for number in shards:
            if number not in self._shards:
                self._shards[number] = Shard(number, lead(self._token, number))
                self._ask_at(self._shards[number], trio.current_time())
        for number in [number for number in self._shards if number not in shards]:
            del self._shards[number]

    def ask_all(self) -> None:
        """Ask every shard: news may have been lost."""
        now = trio.current_time()
        for shard in self._shards.values():
            shard.at = 0
            self._ask_at(shard, now)

    def hear(self, news: News, *, foreign: bool = False) -> None:
        """Something is known of a shard. `foreign`: others know it, too, at this moment."""
        shard = self._shards.get(news.shard)
        if shard is None:
            return
        if news.at >= shard.at or news.at < shard.at - _STEPPED:
            shard.at, shard.next_due, shard.next_end = news.at, news.next_due, news.next_end
        else:  # it comes late, but what it says may be what was not known
            shard.next_due = _earlier(shard.next_due, news.next_due)
            shard.next_end = _earlier(shard.next_end, news.next_end)
        self._ask_at(shard, self._when(shard, foreign=foreign))

    def glanced(self, number: int, next_due: int, next_end: int) -> None:
        """This was seen in passing, at a time that nobody knows: it may be that news were lost."""
        shard = self._shards.get(number)
        if shard is not None and not shard.asking:
            earlier = (_earlier(shard.next_due, next_due), _earlier(shard.next_end, next_end))
            if earlier != (shard.next_due, shard.next_end):
                shard.next_due, shard.next_end = earlier
                self._ask_at(shard, self._when(shard, foreign=True))

    def next_due(self) -> float:
        """When the first message is due that nobody has claimed, as far as is known; infinite for none."""
        dues = [shard.next_due for shard in self._shards.values() if shard.next_due != NOTHING]
        return self._clock.local(min(dues)) if dues else math.inf

    @property
    def room(self) -> int:
        """How many messages may still be claimed."""
        if self.paused or self.until < math.inf or self._ledger.pending_bytes >= self._ledger.limit_bytes:
            return 0
        return self._room()

    def reserve(self, most: int) -> int:
        """Keep room for messages that are being put and may be claimed at once."""
        granted = max(0, min(most, self.room))
        self._reserved += granted
        return granted

    def unreserve(self, count: int) -> None:
        """Those messages are counted in, or were not claimed."""
        self._reserved -= count
        self._settled.unpark_all()
        self.made_room()

    def made_room(self) -> None:
        """A message is finished."""
        if self._starved and self._room() >= min(100, max(1, self._limit() // 4)):
            self._starved = False
            self._changed.unpark_all()

    def change(self) -> None:
        """Look again: the rules have changed."""
        self._starved = False
        self._changed.unpark_all()

    def change_until(self, until: float) -> None:
        """Claim nothing any more that is due later."""
        self.until = until
        for shard in self._shards.values():
            self._ask_at(shard, self._when(shard, foreign=False))
        self.change()

    async def settle(self) -> None:
        """Wait until nothing is under way that claims, puts included. None is begun while `paused`."""
        while self._reserved:
            await self._settled.park()

    async def run(self) -> None:
        """Claim what comes due."""
        async with trio.open_nursery() as nursery:
            while True:
                shard = self._first()
                now = trio.current_time()
                if self.paused or self._starved or self._in_flight >= _IN_FLIGHT or shard is None:
                    await self._changed.park()
                elif not self._link.is_connected:
                    await self._changed.park()  # when it is, every shard is asked
                elif shard.when > now:
                    with trio.CancelScope(deadline=shard.when):
                        await self._changed.park()
                elif self._full():
                    self._starved = True
                else:
                    most = min(MOST, self._room())
                    self._reserved += most
                    self._in_flight += 1
                    shard.asking = True
                    shard.when = math.inf
                    nursery.start_soon(self._claim, shard, most)

    async def _claim(self, shard: Shard, most: int) -> None:
        asked = trio.current_time()
        ahead = min(self._ahead, max(0.0, self.until - asked))
        confirmed = self._held.pop_confirmed(shard.number)
        told = False
        try:
            with trio.CancelScope(shield=True):  # or nobody could give back what it claims
                news, taken = await self._store.take(shard.number, most, ahead=ahead, confirmed=confirmed)
            told = True
        except Exception as error:  # noqa: BLE001 (asked again)
            logger.debug("shard %d could not be asked: %s", shard.number, error)
            shard.failures += 1
            shard.asking = False
            self._ask_at(shard, asked + _AFTER_FAILURE * random.uniform(1.0, 2.0))
            return
        finally:
            self._held.told_confirmed(shard.number, confirmed, ok=told)
            self._in_flight -= 1
            self._reserved -= most
            self._starved = False
            self._settled.unpark_all()
            self._changed.unpark_all()
        ends = asked + self._store.limits.lease
        for one in taken:
            try:
                stored = decode(one.value)
            except ValueError as error:
                logger.error("message %s in Redis is none of localdelay's: %s", one.id, error)
                continue
            self._arrivals.take_in(one.id, shard.number, stored, one.due, ends)
        shard.asking = False
        shard.failures = 0
        self.hear(news)

    def _room(self) -> int:
        return self._limit() - self._ledger.pending - self._reserved

    def _limit(self) -> int:
        """The most messages to hold: few while this instance does not keep up, for others may."""
        capacity = self._ledger.capacity
        if trio.current_time() - self._schedule.next_due() <= _BEHIND:
            return capacity
        return min(capacity, _FEW_EACH * self._workers.count * self._batch)

    def _full(self) -> bool:
        return self._room() <= 0 or self._ledger.pending_bytes >= self._ledger.limit_bytes

    def _when(self, shard: Shard, *, foreign: bool) -> float:
        now = trio.current_time()
        when = math.inf
        late = 1.0 - shard.lead
        if shard.next_due != NOTHING:
            due = self._clock.local(shard.next_due)
            if due <= self.until:
                when = due - self._ahead * shard.lead
                if foreign and when < now:
                    when = now + late * _STAGGER
        if shard.next_end != NOTHING:
            when = min(when, self._clock.local(shard.next_end) + late * _STAGGER_EXPIRED)
        return max(when, now)

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
                self._heap.sort()

    def _first(self) -> Shard | None:
        while self._heap:
            when, number = self._heap[0]
            shard = self._shards.get(number)
            if shard is not None and shard.when == when:
                return shard
            heappop(self._heap)
        return None


def _earlier(one: int, other: int) -> int:
    return max(one, other) if NOTHING in (one, other) else min(one, other)
