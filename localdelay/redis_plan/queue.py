"""A delay queue whose messages wait in Redis: what callers see of one instance of it, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import chain
from types import MappingProxyType

import trio

from localdelay import arguments, forks
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.drain_plan import plan_drain
from localdelay.errors import QueueClosed
from localdelay.limit import Limit
from localdelay.message import NO_HEADERS, Message, numbers
from localdelay.queue.admission import already_pending
from localdelay.queue.core import Core
from localdelay.queue.draining import ended_inside, report_of
from localdelay.queue.sending import HandBack
from localdelay.redis_plan.bodies import CANCEL, decode
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.keys import check_shards
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.leases import Leases
from localdelay.redis_plan.puts import Putter
from localdelay.redis_plan.settings import RedisStatistics
from localdelay.redis_plan.store import LOOK, Store, each
from localdelay.statistics import DrainReport

_LOOK_EVERY = 0.01
_LAST_WORDS = 2.0
"""Seconds for which an instance that ends tries to tell Redis what it gives back."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class RedisDelayQueue:
    """One instance of a delay queue in Redis. Made by `open_redis_delay_queue`.

    All methods are to be called from the Trio thread that runs it. Those that have to ask Redis are async,
    and raise: `RedisUnreachable` where there is no connection (nothing was sent), `ConnectionError` where it
    was lost meanwhile and `Throttled` where no answer came in time (nobody knows), and `Throttled` too where
    Redis is out of memory.
    """

    def __init__(self, core: Core, store: Store) -> None:
        self._core = core
        self._pending = core.pending
        self._workers = core.workers
        self._store = store
        self._link = store.link
        self._link.on_connected = self._look_at_all
        self._leases = core.pending.keeper = Leases(core, store, numbers())
        self._claimer = Claimer(core, store, self._leases)
        self._layouts = Layouts(store, self._claimer)
        self._putter = Putter(store, self._layouts, self._claimer, self._leases)
        self._begun = self._closed = False
        self._forks = forks.count
        self._drained: trio.Event | None = None
        self._ended_at: float | None = None

    def __repr__(self) -> str:
        return f"<RedisDelayQueue: {self._pending.ledger} here>"

    async def put(
        self,
        payload: bytes,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Store a message in Redis; returns once Redis has it.

        `delay` is in seconds from the call; `at` is an aware datetime on Redis's clock, and one in the past
        means now: give one of them. It never waits for room: raises `QueueFull` where the message's shard has
        as much as a key may hold (without an `id`, where several shards have). Else it raises as the class
        says, `QueueClosed`, and `TypeError` or `ValueError` for an argument that is wrong, as an `id` that is
        pending already is. A call that is cancelled may have stored its message or not.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        due = arguments.execute_at(now, delay, at, wall=at)  # the wall clock of this machine says nothing
        instant = None if at is None else (at - _EPOCH) // _MICROSECOND
        if instant is not None:
            due = max(now, self._store.clock(0).local(instant))
        put = self._putter.check(payload, headers, id, due)
        put.at = instant
        self._check_open()
        if id is not None:
            before = self._layouts.layout.shards_of(id)[1:]  # the other one is asked by the put
            if await self._store.has(before, id):
                raise already_pending(id)
        await self._putter.put(put)
        shown = NO_HEADERS if not headers else MappingProxyType(dict(headers))
        return Message(put.id, payload, due, shown)

    def put_nowait(self, payload: bytes, **options: object) -> Message:
        """Raises `RuntimeError`: that Redis has a message nobody knows without waiting for its answer."""
        raise RuntimeError("a message is not in Redis until Redis has answered: use `await put`")

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Store this message, with its id, to be sent in `delay` seconds: a primary for a `Fallback`.

        Raises like `put`; but a message that is there already is well, for it is the same one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = arguments.at_least("delay", delay, 0, "a number of seconds")
        await self._hold(message, trio.current_time() + seconds)

    async def hold(self, message: Message, timeout: float = 0.0) -> None:  # noqa: ASYNC109 (for room alone)
        """For `Fallback`, whose primary has refused this message. It never waits for room."""
        self._check_open()
        await self._hold(message, message.execute_at)

    async def _hold(self, message: Message, due: float) -> None:
        if message.expires is not None:
            raise ValueError("expires must be None: a message in Redis does not expire")
        put = self._putter.check(message.payload, message.headers, message.id, due, message.attempt)
        put.twice = True
        await self._putter.put(put)

    def is_known(self, id: str) -> bool:
        """For `Fallback`: whether this instance holds a message with this id at this moment."""
        return self._pending.number(id) is not None

    @property
    def limit(self) -> Limit | None:
        """For `Fallback`: what it shares unless it was given another."""
        return self._core.limit

    @property
    def at_risk(self) -> int:
        """Messages that a crash of this process would lose: none, for Redis has them."""
        return 0

    async def cancel(self, id: str) -> bool:
        """Take a message out again.

        True: it will never be sent. False: it is unknown, being sent, finished, or claimed by another
        instance, as it is in the last second (`claim_ahead`) before it is due.
        """
        self._check_process()
        number = self._pending.number(id)
        if number is not None and self._leases.holds(id, trio.current_time()):
            await trio.lowlevel.checkpoint_if_cancelled()
            return await self._leases.cancel(number, id)
        if number is not None and self._pending.schedule.find(number) is None:
            await trio.lowlevel.checkpoint()
            return False
        for shard in self._layouts.layout.shards_of(id):
            if not (await self._store.take(shard, [(id, CANCEL)]))[0]:
                return True
        return False

    async def is_pending(self, id: str) -> bool:
        """Whether a message with this id is stored and not finished."""
        name = arguments.check_id(id)
        return await self._store.has(self._layouts.layout.shards_of(name), name)

    async def count(self) -> int:
        """How many messages Redis holds, claimed ones included. It asks every shard."""
        return sum(await each(self._layouts.layout.served, self._store.count))

    async def messages(self, limit: int = 1000) -> list[Message]:
        """The first so many (1,000 at most) of the messages that Redis holds, in due order; no snapshot."""
        most = min(1000, arguments.count("limit", limit))

        async def look(shard: int) -> list[Message]:
            _, *pairs = await self._store.run(LOOK, shard, most)
            found = []
            for name, value in zip(pairs[::2], pairs[1::2], strict=True):
                one = decode(value)
                due, headers = self._store.clock(shard).local(one.due), MappingProxyType(one.headers or {})
                found.append(Message(name.decode(), one.payload, due, headers, one.attempt))
            return found

        found = await each(self._layouts.layout.served, look)
        return sorted(chain(*found), key=lambda message: (message.execute_at, message.id))[:most]

    def pause(self) -> None:
        """Stop claiming and sending here; what is claimed and not being sent goes back, for others."""
        self._check_open()
        self._workers.pause()
        self._leases.release_all()

    def resume(self) -> None:
        """Claim and send again, unless it is drained."""
        if self._drained is None:
            self._workers.resume()
            self._claimer.ask_all()

    def resize(
        self,
        *,
        capacity: int | None = None,
        workers: int | None = None,
        capacity_bytes: int | NotGiven | None = NOT_GIVEN,
    ) -> None:
        """Change how much this instance claims, or its workers. `capacity_bytes` None: no limit."""
        self._core.resize(capacity, workers, capacity_bytes)
        self._claimer.change()

    async def set_shards(self, shards: int) -> None:
        """Have so many shards, for all instances, while they run.

        Messages that wait stay where they are, and are sent from there. Where there are fewer shards than
        before, the others get no new messages, and disappear once they are empty. An `id` that the caller
        chose is looked for where it would have been before, as of the last eight changes.
        """
        await self._layouts.change(check_shards(shards))

    def statistics(self) -> RedisStatistics:
        """What this instance holds and has done, and how late it was."""
        layout, link = self._layouts.layout, self._link
        now = trio.current_time() if self._ended_at is None else self._ended_at
        return RedisStatistics(
            **self._core.figures(now, self._next_due()),
            puts_waiting=self._putter.in_flight,
            closed=self._closed,
            put=self._putter.done,
            unconfirmed=self._leases.untold,
            shards=layout.shards,
            retiring=len(layout.retiring),
            connected=link.is_connected,
            connections=link.connections,
            commands=link.commands,
        )

    async def drain(self, grace: float | None = None, hand_back: HandBack | None = None) -> DrainReport:
        """Take this instance out of service; what it does not send stays in Redis for others.

        For up to `grace` seconds it goes on to claim and send what comes due within them, and returns as soon
        as there is no such message; sends that run at the end are cancelled. With None it claims nothing any
        more, and waits for the sends that run. What is claimed and not sent goes back and counts as
        `spooled`. There is nothing to hand back: `hand_back` must be None. A second call raises
        `QueueClosed`, and one from inside a send `RuntimeError`.
        """
        seconds = arguments.check_seconds("grace", grace, zero=True)
        if hand_back is not None:
            raise ValueError("hand_back must be None: what waits in Redis is safe there")
        self._check_process()
        if self._workers.is_inside():
            raise ended_inside()
        if self._drained is not None:
            raise QueueClosed("the queue is drained already, or draining")
        self._drained = trio.Event()
        self._closed = True
        now = trio.current_time()
        deadline = now + seconds
        schedule, ledger = self._pending.schedule, self._pending.ledger
        before = list(ledger.ended)
        due = [entry[0] - now for entry in schedule.entries() if seconds < math.inf and entry[0] < deadline]
        last, sends = max(0.0, *due, 0.0), len(due) + schedule.taken
        plan = plan_drain(pending=ledger.pending, due=sends, grace=seconds, last_due_in=last, journal=True)
        try:
            if deadline < math.inf:
                self._workers.resume()
                self._claimer.change_until(deadline)
                await self._until_nothing_is_due(deadline)
            self._leases.ending = True
            await self._claimer.settle()
            self._leases.release_all()
            self._workers.close()
            with trio.CancelScope(deadline=deadline):
                await self._workers.finished.wait()
        finally:
            await self._stop()
            self._drained.set()
        return report_of(plan, before, self._pending)

    async def _until_nothing_is_due(self, deadline: float) -> None:
        while (now := trio.current_time()) < deadline:
            await self._claimer.settle()
            next_due = self._next_due()
            if next_due > deadline and not self._pending.schedule.taken:
                return
            await trio.sleep(min(max(_LOOK_EVERY, min(next_due, deadline) - now), deadline - now))

    async def _stop(self) -> None:
        """End the workers at once, and tell Redis what it does not know, for a short time."""
        self._leases.ending = True
        self._workers.stop()
        with trio.CancelScope(shield=True):
            await self._claimer.settle()
            await self._workers.finished.wait()
            self._leases.release_all()
            with trio.move_on_after(_LAST_WORDS):
                while self._leases.untold:
                    if not await self._claimer.tell_of(self._leases.untold_of):
                        await trio.sleep(_LOOK_EVERY)  # there may be a connection in a moment

    def _look_at_all(self) -> None:
        self._claimer.ask_all()  # news may have been lost
        self._layouts.look()

    async def begin(self, nursery: trio.Nursery, shards: int | None) -> None:
        """Read the layout, or make one with so many shards, and start."""
        await self._layouts.refresh(shards)
        self._begun = True
        leases = self._leases
        for run in (
            self._claimer.run,
            self._claimer.tell,
            self._putter.run,
            leases.renew,
            self._layouts.beat,
        ):
            nursery.start_soon(run)
        nursery.start_soon(self._workers.run)

    async def leave(self) -> None:
        """The block is left normally: a drain without a grace, unless there was or is one."""
        if self._drained is None:
            await self.drain()
        else:
            await self._drained.wait()

    async def end(self) -> None:
        """The block has been left, in whatever way, or was never entered."""
        if self._begun:
            await self._stop()
        self._closed = True
        self._ended_at = trio.current_time()

    def _next_due(self) -> float:
        return min(self._pending.schedule.next_due(), self._claimer.next_due())

    def _check_process(self) -> None:
        if self._forks != forks.count:
            raise forks.not_ours()

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise QueueClosed("the queue takes no more messages")
