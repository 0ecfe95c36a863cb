"""What this instance has claimed: it waits here for its time, is sent by the pool, and Redis is told.

The queue's core is that of the queue in memory. What differs is who else knows what is pending: Redis has
each message, for which this instance has a lease. What is finished is confirmed there a little after its
send, together with others of its shard: a crash before that sends it again. One that failed and must wait
goes back there, and one whose lease has ended is not sent, for it is somebody else's by now.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import trio

from localdelay.entry import Body, Entry, attempt_of, chosen_id, failures_of, goes_alone
from localdelay.keeping import End, Keeper, Wait
from localdelay.queue.core import Core
from localdelay.redis_plan.bodies import KEEP, Told, decode, finished, note, returned
from localdelay.redis_plan.link import logger
from localdelay.redis_plan.store import Store

_MOST = 500
"""Messages of one command."""
_RETRY = 0.5
"""Seconds after which what Redis did not take is told again."""

_Claim: TypeAlias = tuple[int, float, int]
"""(shard, until when the lease holds for certain in seconds on Trio's clock, execute-at in microseconds on
Redis's). A tuple of numbers: there are thousands of these, and the garbage collector does not walk them."""


class Leases(Keeper):
    """A keeper of messages: Redis, by the leases that this instance has there. Nothing is at risk."""

    lapses = True

    def __init__(self, core: Core, store: Store, numbers: Iterator[int]) -> None:
        super().__init__(lambda: (0, 0))
        self._pending = core.pending
        self._workers = core.workers
        self._store = store
        self._numbers = numbers
        self._claims: dict[str, _Claim] = {}
        self._untold: defaultdict[int, list[Told]] = defaultdict(list)
        self._tell_at: dict[int, float] = {}
        """When each shard is to be told, on Trio's clock."""
        self._being_told = 0
        self._some = trio.lowlevel.ParkingLot()
        self.on_room: Callable[[], None] = lambda: None
        """Is called where there may be room for others."""
        self.ending = False

    @property
    def untold(self) -> int:
        """Messages of which Redis is to be told something."""
        return self._being_told + sum(map(len, self._untold.values()))

    @property
    def untold_of(self) -> list[int]:
        """The shards of these."""
        return [*self._untold]

    @property
    def is_paused(self) -> bool:
        """Whether nothing more is claimed here, and what is, and not being sent, goes back."""
        return self.ending or self._workers.paused

    def take_in(self, id: str, shard: int, due: int, value: bytes, ends: float) -> None:
        """Hold a message that was claimed until `ends`, to be sent when it is due on Redis's clock."""
        try:
            stored = decode(value)
        except ValueError as error:
            logger.error("message %s in Redis is none of localdelay's: %s", id, error)
            return
        there = self._claims.get(id)
        if self._pending.number(id) is not None:
            if there is None or (there[0], there[2]) == (shard, stored.due):
                self._claims[id] = (shard, ends, stored.due)  # its lease had ended, and nobody else came
            return  # or it is another message of this id: it waits for the end of its lease
        self._claims[id] = (shard, ends, stored.due)
        clock, failures = self._store.clock(shard), stored.failures
        execute_at = clock.local(stored.due)
        when = clock.local(max(due, stored.due)) if failures else execute_at
        if self.is_paused:
            self._give_back(id, when if failures else None)
            return
        details = (stored.attempt, failures, execute_at, stored.alone, None, None)
        body: Body = (stored.payload, stored.headers, id, *details)
        self._pending.enter_claimed((when, next(self._numbers), body))

    def holds(self, id: str, now: float) -> bool:
        """Whether the message is this instance's for certain."""
        claim = self._claims.get(id)
        return claim is not None and now < claim[1]

    def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """Those whose lease holds: the others Redis gives to whoever asks first."""
        return [entry for entry in entries if self.holds(_id(entry[2]), now)]

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait | None:
        """Redis is told soon what is finished; of what was cancelled or given up to it, it knows."""
        for _, _, body in entries:
            claim = self._claims.pop(_id(body), None)
            if claim is not None and how in (End.SENT, End.DEAD):
                self._tell(claim[0], (_id(body), finished(claim[2])))
        self.on_room()
        return None

    def failed(self, entry: Entry, again: Entry) -> bool:
        """Redis is told how often, and has it back where it has to wait for longer than a claim may."""
        due, _, body = again
        written = note(attempt_of(body), failures_of(body), alone=goes_alone(body))
        stays = due - trio.current_time() <= self._store.tuning.claim_ahead and not self.is_paused
        if not stays:
            self._give_back(_id(body), due, written)
        elif (claim := self._claims.get(_id(body))) is not None:
            self._tell(claim[0], (_id(body), KEEP + written), at_once=True)
        return stays

    def release_all(self) -> None:
        """Give back all that waits here."""
        for due, number, body in self._pending.schedule.entries():
            entry = self._pending.lend(number, due)
            if entry is not None:
                self._give_back(_id(body), due if failures_of(body) else None)
                self._pending.end([entry], End.SPOOLED)

    async def cancel(self, number: int, id: str) -> bool:
        """Take out a message that waits here; it is cancelled once Redis has removed it.

        Meanwhile nobody sends it, and it counts as being sent. Where Redis does not say so it waits again.
        """
        shard, _, due = self._claims[id]
        entry = self._pending.lend(number)
        if entry is None:
            return False
        try:
            lost, _ = await self._store.take(shard, [(id, finished(due))])
        except BaseException:
            self._pending.again(entry)
            if self.is_paused:
                self.release_all()
            raise
        self._pending.end([entry], End.SPOOLED if lost else End.CANCELLED)
        return not lost

    def _give_back(self, id: str, due: float | None, written: bytes = b"") -> None:
        """Let others claim it, to be sent then; None: at its execute-at."""
        claim = self._claims.pop(id, None)
        if claim is not None:
            shard, _, execute_at = claim
            instant = execute_at if due is None else self._store.clock(shard).redis(due)
            self._tell(shard, (id, returned(instant) + written), at_once=True)

    def _tell(self, shard: int, told: Told, *, at_once: bool = False) -> None:
        self._untold[shard].append(told)
        self._tell_within(shard, 0.0 if at_once else self._store.tuning.confirm_within)

    def _tell_within(self, shard: int, seconds: float) -> None:
        when = trio.current_time() + seconds
        if when < self._tell_at.get(shard, math.inf):
            self._tell_at[shard] = when
            self._some.unpark()

    async def overdue(self) -> list[int]:
        """Wait until Redis is to be told something; the shards.

        What is finished it hears `confirm_within` later, together with what came after it in the same shard;
        what is given back at once.
        """
        while True:
            now = trio.current_time()
            if shards := [shard for shard, when in self._tell_at.items() if when <= now]:
                return shards
            with trio.CancelScope(deadline=min(self._tell_at.values(), default=math.inf)):
                await self._some.park()

    async def ask(self, shard: int, most: int = 0, ahead: float = 0.0) -> None:
        """Tell Redis of messages of this shard what it does not know, and claim up to `most` others."""
        ends = trio.current_time() + self._store.tuning.lease
        with self.telling(shard) as (told, lost):
            if not told and not most:
                return
            with trio.CancelScope(shield=most > 0):  # or nobody could give back what it claims
                found, taken = await self._store.take(shard, told, most, ahead)
            lost.update(found)
        for name, due, value in taken:
            self.take_in(name, shard, due, value, ends)

    @contextmanager
    def telling(self, shard: int, most: int = _MOST) -> Iterator[tuple[list[Told], set[str]]]:
        """What Redis does not know of this shard, to be told in the block; it says what was not found there.

        Where the block raises it is to be told again.
        """
        ends = trio.current_time() + self._store.tuning.lease
        told, lost = self._pop(shard, most) if most else [], set[str]()
        try:
            yield told, lost
        except BaseException:
            if told:
                self._untold[shard] += told
                self._tell_within(shard, _RETRY)
            raise
        finally:
            self._being_told -= len(told)
        for name, what in told:
            claim = self._claims.get(name)
            if claim is not None and what.startswith(KEEP):
                self._claims[name] = (shard, -math.inf if name in lost else ends, claim[2])

    def _pop(self, shard: int, most: int) -> list[Told]:
        untold = self._untold.pop(shard, [])
        self._tell_at.pop(shard, None)
        if len(untold) > most:
            self._untold[shard] = untold[most:]
            self._tell_within(shard, 0.0)
        # A lease that has ended meanwhile may be another's by now, and is not to be renewed.
        now = trio.current_time()
        told = [one for one in untold[:most] if not one[1].startswith(KEEP) or self.holds(one[0], now)]
        self._being_told += len(told)
        return told

    async def renew(self) -> None:
        """Hold what is claimed for as long as it is here."""
        while True:
            await trio.sleep(self._store.tuning.lease / 4)
            self.renew_all()

    def renew_all(self) -> None:
        """Renew the leases that have lost a third of their length; what fails is tried again in time."""
        now = trio.current_time()
        for name, (shard, ends, _) in self._claims.items():
            if now < ends < now + self._store.tuning.lease * 2 / 3:  # what has ended may be another's by now
                self._tell(shard, (name, KEEP), at_once=True)


def _id(body: Body) -> str:
    return chosen_id(body) or ""  # each claimed message has one
