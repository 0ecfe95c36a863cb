"""A delay queue whose messages wait in Redis: what callers see of one instance of it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import attrs
import trio

from localdelay import checks, intake
from localdelay.delivery import HandBack
from localdelay.entry import size_of
from localdelay.errors import QueueClosed
from localdelay.ids import Ids
from localdelay.ledger import Ledger
from localdelay.message import NO_HEADERS, Message
from localdelay.queue import UNCHANGED, Unchanged
from localdelay.redis_plan import bodies, leaving
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held
from localdelay.redis_plan.keys import LARGEST_ID, check_shards
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.link import Link
from localdelay.redis_plan.puts import Put, Putter, body_size
from localdelay.redis_plan.sending import ClaimedDelivery
from localdelay.redis_plan.statistics import RedisStatistics
from localdelay.redis_plan.store import Store
from localdelay.schedule import Schedule
from localdelay.statistics import DrainReport
from localdelay.workers import Workers

LONGEST = 5e9
"""Seconds: what a score can still tell to the microsecond."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ASKED_AT_ONCE = 16


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """What an instance is made of."""

    link: Link
    clock: RedisClock
    store: Store
    schedule: Schedule
    ledger: Ledger
    ids: Ids
    workers: Workers
    held: Held
    delivery: ClaimedDelivery
    claimer: Claimer
    layouts: Layouts
    putter: Putter


class RedisDelayQueue:
    """One instance of a delay queue in Redis. Made by `open_redis_delay_queue`.

    All methods are to be called from the Trio thread that runs it. Those that have to ask Redis are async,
    and raise: `RedisUnreachable` where there is no connection (nothing was sent), `ConnectionError` where it
    was lost meanwhile and `Throttled` where no answer came in time (nobody knows), and `Throttled` too where
    Redis is out of memory.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._closed = False
        self._drained: trio.Event | None = None
        self._ended_at: float | None = None

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
        as much as a key may hold (without an `id`, where several shards have), and `Throttled` where Redis is
        out of memory. Else it raises as the class says, `QueueClosed`, and `TypeError` or `ValueError` for an
        argument that is wrong; an `id` that is pending already is wrong too.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        put, shown = self._stamp(payload, delay, at, id, headers)
        self._check_open()
        if id is not None and await self._is_elsewhere(id):
            raise ValueError(f"id {id!r} is the id of a message that is pending already")
        await self._parts.putter.put(put)
        return Message(put.id or "", put.payload, put.due, shown)

    def put_nowait(
        self,
        payload: bytes,
        *,
        delay: float | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Message:
        """Raises `RuntimeError`: that Redis has a message nobody knows without waiting for its answer."""
        raise RuntimeError("a message is not in Redis until Redis has answered: use `await put`")

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Store this message, with its id, to be sent in `delay` seconds: a primary for a `Fallback`.

        Raises like `put`; but a message that is there already is well, for it is the same one.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        seconds = checks.at_least("delay", delay, 0, "a number of seconds")
        await self._parts.putter.put(self._of_message(message, trio.current_time() + seconds))

    async def hold(self, message: Message) -> None:
        """For `Fallback`, whose primary has refused this message. It does not wait for room."""
        self._check_open()
        await self._parts.putter.put(self._of_message(message, message.execute_at))

    def is_known(self, id: str) -> bool:
        """For `Fallback`: whether this instance holds a message with this id at this moment."""
        return self._parts.ids.number(id) is not None

    @property
    def at_risk(self) -> int:
        """Messages that a crash of this process would lose: none, for Redis has them."""
        return 0

    async def cancel(self, id: str) -> bool:
        """Take a message out again.

        True: it will never be sent. False: it is unknown, being sent, finished, or claimed by another
        instance, as it is in the last second (`claim_ahead`) before it is due.
        """
        parts = self._parts
        number = parts.ids.number(id)
        if number is not None:
            return await self._cancel_here(id, number)
        for shard in parts.layouts.layout.shards_of(id):
            found = await parts.store.cancel(shard, id)
            if found is not None:
                return found
        return False

    async def _cancel_here(self, id: str, number: int) -> bool:
        parts = self._parts
        body = parts.schedule.cancel(number)
        if body is None:
            await trio.lowlevel.checkpoint()
            return False
        parts.ledger.cancelled += 1
        parts.ids.free(body)
        parts.ledger.release(size_of(body))
        parts.claimer.made_room()
        parts.held.confirm(id)
        await parts.held.tell_all()
        return True

    async def is_pending(self, id: str) -> bool:
        """Whether a message with this id is stored and not finished."""
        intake.check_id(id)
        parts = self._parts
        for shard in parts.layouts.layout.shards_of(id):
            if await parts.store.has(shard, id):
                return True
        return False

    async def count(self) -> int:
        """How many messages Redis holds, claimed ones included. It asks every shard."""
        counts: list[int] = []

        async def ask(shard: int) -> None:
            counts.append(await self._parts.store.count(shard))

        await self._ask_each(ask)
        return sum(counts)

    async def messages(self, limit: int = 1000) -> list[Message]:
        """The first so many (1,000 at most) of the messages that Redis holds, in due order.

        It asks every shard, and is no snapshot: what is put or sent meanwhile may be in it or not.
        """
        most = min(1000, checks.count("limit", limit))
        found: list[tuple[float, str, bodies.Stored]] = []
        clock = self._parts.clock

        async def ask(shard: int) -> None:
            for name, value in await self._parts.store.look(shard, most):
                stored = bodies.decode(value)
                found.append((clock.local(stored.due), name, stored))

        await self._ask_each(ask)
        found.sort(key=lambda one: one[:2])
        return [
            Message(name, one.payload, due, MappingProxyType(one.headers or {}), one.attempt)
            for due, name, one in found[:most]
        ]

    def pause(self) -> None:
        """Stop claiming and sending here; what is claimed and not being sent goes back, for others."""
        self._check_open()
        parts = self._parts
        parts.workers.pause()
        parts.claimer.paused = True
        leaving.release_all(parts.schedule, parts.delivery)

    def resume(self) -> None:
        """Claim and send again."""
        parts = self._parts
        parts.workers.resume()
        parts.claimer.paused = False
        parts.claimer.ask_all()
        parts.claimer.change()

    def resize(
        self,
        *,
        capacity: int | None = None,
        workers: int | None = None,
        capacity_bytes: int | Unchanged | None = UNCHANGED,
    ) -> None:
        """Change how much this instance claims, or its workers. `capacity_bytes` None: no limit."""
        ledger = self._parts.ledger
        if capacity is not None:
            checks.count("capacity", capacity)
        if workers is not None:
            checks.count("workers", workers)
        if capacity_bytes is UNCHANGED:
            capacity_bytes = ledger.capacity_bytes
        elif capacity_bytes is not None:
            checks.count("capacity_bytes", capacity_bytes)
        ledger.resize(ledger.capacity if capacity is None else capacity, capacity_bytes)
        self._parts.claimer.change()
        if workers is not None:
            self._parts.workers.resize(workers)

    async def set_shards(self, shards: int) -> None:
        """Have so many shards, for all instances, while they run.

        Messages that wait stay where they are, and are sent from there. Where there are fewer shards than
        before, the others get no new messages, and disappear once they are empty. An `id` that the caller
        chose is looked for in each place where it would have been before.
        """
        await self._parts.layouts.change(check_shards(shards))

    def statistics(self) -> RedisStatistics:
        """What this instance holds and has done, and how late it was."""
        parts = self._parts
        ledger, schedule, delivery, workers = parts.ledger, parts.schedule, parts.delivery, parts.workers
        now = trio.current_time() if self._ended_at is None else self._ended_at
        next_due = min(schedule.next_due(), parts.claimer.next_due())
        layout = parts.layouts.layout
        return RedisStatistics(
            accepted=ledger.accepted,
            sent=ledger.sent,
            dead=ledger.dead,
            cancelled=ledger.cancelled,
            handed_back=ledger.handed_back,
            spooled=ledger.spooled,
            pending=ledger.pending,
            waiting=schedule.waiting,
            sending=ledger.sending,
            retrying=schedule.retrying,
            pending_bytes=ledger.pending_bytes,
            at_risk=0,
            at_risk_bytes=0,
            capacity=ledger.capacity,
            capacity_bytes=ledger.capacity_bytes,
            workers=workers.count,
            workers_busy=workers.busy,
            puts_waiting=parts.putter.in_flight,
            paused=workers.paused,
            closed=self._closed,
            next_due_in=None if next_due == math.inf else max(0.0, next_due - now),
            oldest_overdue=max(0.0, now - min(schedule.oldest(), delivery.oldest())),
            failures=delivery.failures,
            throttled=delivery.throttled,
            dead_letter_errors=delivery.dead_letter_errors,
            lateness=delivery.lateness.summary(),
            send_time=delivery.send_time.summary(),
            total=delivery.total.summary(),
            put=parts.putter.done,
            unconfirmed=parts.held.untold,
            shards=layout.shards,
            retiring=len(layout.retiring),
            connected=parts.link.is_connected,
            connections=parts.link.connections,
            commands=parts.link.commands,
        )

    async def drain(self, grace: float | None = None, hand_back: HandBack | None = None) -> DrainReport:
        """Take this instance out of service; what it does not send stays in Redis for others.

        For up to `grace` seconds it goes on to claim and send what comes due within them, and returns as soon
        as there is no such message; sends that run at the end are cancelled. With None it claims nothing any
        more, and waits for the sends that run. What is claimed and not sent goes back to Redis and counts as
        `spooled`; `remaining` is empty. There is nothing to hand back: `hand_back` must be None. A second
        call raises `QueueClosed`, and one from inside a send `RuntimeError`.
        """
        seconds = intake.check_seconds("grace", grace, zero=True)
        if hand_back is not None:
            raise ValueError("hand_back must be None: what waits in Redis is safe there")
        if self._parts.workers.has(trio.lowlevel.current_task()):
            raise RuntimeError("drain was called from inside a send, for which it would wait")
        if self._drained is not None:
            raise QueueClosed("the queue is drained already, or draining")
        self._drained = trio.Event()
        self._closed = True
        ledger = self._parts.ledger
        before = (ledger.sent, ledger.spooled, ledger.dead, ledger.cancelled)
        try:
            await leaving.drain(self._parts, seconds)
        finally:
            self._drained.set()
        return DrainReport(
            sent=ledger.sent - before[0],
            handed_back=0,
            spooled=ledger.spooled - before[1],
            dead=ledger.dead - before[2],
            cancelled=ledger.cancelled - before[3],
            remaining=[],
        )

    async def leave(self) -> None:
        """Leave the block normally: a drain without a grace, unless there was or is one."""
        if self._drained is None:
            await self.drain()
        else:
            await self._drained.wait()

    def end(self) -> None:
        """The block has been left."""
        self._closed = True
        self._ended_at = trio.current_time()

    def _check_open(self) -> None:
        if self._closed:
            raise QueueClosed("the queue takes no more messages")

    def _stamp(
        self,
        payload: bytes,
        delay: float | None,
        at: datetime | None,
        id: str | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[Put, Mapping[str, str]]:
        now = trio.current_time()
        due = intake.execute_at(now, delay, at, wall=at)  # the wall clock of this machine says nothing
        instant = None if at is None else (at - _EPOCH) // _MICROSECOND
        if instant is not None:
            due = max(now, self._parts.clock.local(instant))
        if due - now > LONGEST:
            raise ValueError(f"{'delay' if at is None else 'at'} must be less than {LONGEST:g} s away")
        copy = None if headers is None else intake.check_headers(headers)
        put = self._put_of(intake.check_payload(payload), copy, id, due, 1)
        put.at = instant
        return put, NO_HEADERS if copy is None else MappingProxyType(copy)

    def _of_message(self, message: Message, due: float) -> Put:
        headers = dict(message.headers) or None
        put = self._put_of(message.payload, headers, message.id, due, message.attempt)
        put.twice = True
        return put

    def _put_of(
        self, payload: bytes, headers: dict[str, str] | None, id: str | None, due: float, attempt: int
    ) -> Put:
        if id is not None:
            intake.check_id(id)
            if len(id.encode(errors="surrogatepass")) > LARGEST_ID:
                raise ValueError(f"id must have at most {LARGEST_ID} bytes")
        body = bodies.encode(payload, headers, attempt)
        most = self._parts.store.limits.bytes
        if body_size(id, body) > most:
            raise ValueError(f"payload and headers of {len(body)} bytes are over the shard_bytes of {most}")
        return Put(body, payload, headers, attempt, id, due)

    async def _is_elsewhere(self, id: str) -> bool:
        """Whether it is pending where it would have been before the number of shards was changed."""
        for shard in self._parts.layouts.layout.shards_of(id)[1:]:
            if await self._parts.store.has(shard, id):
                return True
        return False

    async def _ask_each(self, ask: Callable[[int], Awaitable[None]]) -> None:
        room = trio.CapacityLimiter(_ASKED_AT_ONCE)

        async def ask_one(shard: int) -> None:
            async with room:
                await ask(shard)

        async with trio.open_nursery() as nursery:
            for shard in self._parts.layouts.layout.served:
                nursery.start_soon(ask_one, shard)
