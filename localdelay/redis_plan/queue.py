"""A delay queue whose messages wait in Redis: what callers see of one instance of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

import attrs
import trio

from localdelay import arguments
from localdelay.arguments import NOT_GIVEN, NotGiven
from localdelay.errors import QueueClosed
from localdelay.limit import Limit
from localdelay.message import NO_HEADERS, Message
from localdelay.queue.admission import already_pending
from localdelay.queue.core import Core
from localdelay.queue.draining import report_of
from localdelay.queue.ledger import Ledger
from localdelay.queue.pending import Pending
from localdelay.queue.schedule import Schedule
from localdelay.queue.sending import HandBack
from localdelay.queue.workers import Workers
from localdelay.redis_plan import asking, leaving, stamping
from localdelay.redis_plan.claims import Claimer
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held
from localdelay.redis_plan.keys import check_shards
from localdelay.redis_plan.layouts import Layouts
from localdelay.redis_plan.link import Link
from localdelay.redis_plan.puts import Putter
from localdelay.redis_plan.sending import Arrivals, Leases
from localdelay.redis_plan.statistics import RedisStatistics
from localdelay.redis_plan.store import Store
from localdelay.statistics import DrainReport


@attrs.frozen(kw_only=True, eq=False)
class Parts:
    """What an instance is made of."""

    link: Link
    clock: RedisClock
    store: Store
    schedule: Schedule
    ledger: Ledger
    pending: Pending
    workers: Workers
    core: Core
    held: Held
    leases: Leases
    arrivals: Arrivals
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

    def __repr__(self) -> str:
        return f"<RedisDelayQueue: {self._parts.ledger} here>"

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
        argument that is wrong; an `id` that is pending already is wrong too. A call that is cancelled may
        have stored its message or not.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        parts = self._parts
        put = stamping.stamp(payload, delay, at, id, headers, parts.clock, parts.store.limits)
        self._check_open()
        if id is not None:
            before = parts.layouts.layout.shards_of(id)[1:]  # the other one is asked by the put
            if await asking.has_in(parts.store, before, id):
                raise already_pending(id)
        await parts.putter.put(put)
        shown = NO_HEADERS if put.headers is None else MappingProxyType(put.headers)
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
        seconds = arguments.at_least("delay", delay, 0, "a number of seconds")
        due = trio.current_time() + seconds
        await self._parts.putter.put(stamping.of_message(message, due, self._parts.store.limits))

    async def hold(self, message: Message, timeout: float = 0.0) -> None:  # noqa: ASYNC109 (for room alone)
        """For `Fallback`, whose primary has refused this message. It never waits for room."""
        self._check_open()
        put = stamping.of_message(message, message.execute_at, self._parts.store.limits)
        await self._parts.putter.put(put)

    def is_known(self, id: str) -> bool:
        """For `Fallback`: whether this instance holds a message with this id at this moment."""
        return self._parts.pending.number(id) is not None

    @property
    def limit(self) -> Limit | None:
        """For `Fallback`: what it shares unless it was given another."""
        return self._parts.core.limit

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
        number = parts.pending.number(id)
        where = parts.held.where(id)
        if number is not None and where is not None and parts.held.holds(id, trio.current_time()):
            await trio.lowlevel.checkpoint_if_cancelled()
            shard, due = where

            async def remove() -> bool:
                return bool(await parts.store.cancel(shard, id, mine=due))

            return await parts.leases.cancel(number, remove)
        if number is not None and parts.schedule.find(number) is None:
            await trio.lowlevel.checkpoint()
            return False
        for shard in parts.layouts.layout.shards_of(id):
            found = await parts.store.cancel(shard, id)
            if found is not None:
                return found
        return False

    async def is_pending(self, id: str) -> bool:
        """Whether a message with this id is stored and not finished."""
        arguments.check_id(id)
        return await asking.has_in(self._parts.store, self._parts.layouts.layout.shards_of(id), id)

    async def count(self) -> int:
        """How many messages Redis holds, claimed ones included. It asks every shard."""
        return await asking.count(self._parts.store, self._parts.layouts.layout)

    async def messages(self, limit: int = 1000) -> list[Message]:
        """The first so many (1,000 at most) of the messages that Redis holds, in due order.

        It asks every shard, and is no snapshot: what is put or sent meanwhile may be in it or not.
        """
        most = min(1000, arguments.count("limit", limit))
        return await asking.messages(self._parts.store, self._parts.layouts.layout, self._parts.clock, most)

    def pause(self) -> None:
        """Stop claiming and sending here; what is claimed and not being sent goes back, for others."""
        self._check_open()
        parts = self._parts
        parts.workers.pause()
        parts.claimer.paused = True
        parts.leases.release_all()

    def resume(self) -> None:
        """Claim and send again, unless it is drained."""
        if self._drained is not None:
            return
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
        capacity_bytes: int | NotGiven | None = NOT_GIVEN,
    ) -> None:
        """Change how much this instance claims, or its workers. `capacity_bytes` None: no limit."""
        self._parts.core.resize(capacity, workers, capacity_bytes)
        self._parts.claimer.change()

    async def set_shards(self, shards: int) -> None:
        """Have so many shards, for all instances, while they run.

        Messages that wait stay where they are, and are sent from there. Where there are fewer shards than
        before, the others get no new messages, and disappear once they are empty. An `id` that the caller
        chose is looked for where it would have been before, as of the last eight changes.
        """
        await self._parts.layouts.change(check_shards(shards))

    def statistics(self) -> RedisStatistics:
        """What this instance holds and has done, and how late it was."""
        parts = self._parts
        now = trio.current_time() if self._ended_at is None else self._ended_at
        next_due = min(parts.schedule.next_due(), parts.claimer.next_due())
        layout = parts.layouts.layout
        return RedisStatistics(
            **parts.core.figures(now, next_due),
            puts_waiting=parts.putter.in_flight,
            closed=self._closed,
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
        seconds = arguments.check_seconds("grace", grace, zero=True)
        if hand_back is not None:
            raise ValueError("hand_back must be None: what waits in Redis is safe there")
        if self._parts.workers.has(trio.lowlevel.current_task()):
            raise RuntimeError("drain was called from inside a send, for which it would wait")
        if self._drained is not None:
            raise QueueClosed("the queue is drained already, or draining")
        self._drained = trio.Event()
        self._closed = True
        before = list(self._parts.ledger.ended)
        plan = leaving.plan(self._parts, seconds)
        try:
            await leaving.drain(self._parts, seconds)
        finally:
            self._drained.set()
        return report_of(plan, before, self._parts.pending)

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
