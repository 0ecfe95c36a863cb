"""What becomes of a claimed message: it waits here for its time, is sent by the pool, and Redis is told.

The schedule, the ledger, the workers and the delivery are those of the queue in memory. What differs is that
Redis has the message, too: a finished one is confirmed there, one that failed and must wait goes back there,
and one whose lease has ended is not sent, for it is somebody else's by now.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio

from localdelay.entry import (
    Body,
    Entry,
    after_failing,
    chosen_id,
    execute_at_of,
    failures_of,
    goes_alone,
    size_of,
)
from localdelay.queue.ids import Ids
from localdelay.queue.ledger import Ledger
from localdelay.queue.schedule import Schedule
from localdelay.queue.sending import Delivery, Send, SendBatch, not_awaitable
from localdelay.queue.workers import Worker, Workers
from localdelay.redis_plan.bodies import Stored, note
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held


class ClaimedDelivery(Delivery):
    """Sends what is claimed, and has Redis told what came of it."""

    def __init__(
        self,
        send: Send | SendBatch,
        schedule: Schedule,
        ledger: Ledger,
        workers: Workers,
        *,
        ids: Ids,
        held: Held,
        keep_within: float,
        on_room: Callable[[], None],
        one_by_one: bool,
        **options: Any,
    ) -> None:
        """`keep_within`: a message that is to be tried again within so many seconds stays here."""
        super().__init__(
            confirming_each(send, held) if one_by_one else confirming_all(send, held),
            schedule,
            ledger,
            workers,
            ids=ids,
            one_by_one=one_by_one,
            **options,
        )
        self._held = held
        self.keep_within = keep_within
        self._on_room = on_room

    async def settle(self, worker: Worker) -> None:
        """As in the queue in memory. A worker whose send took too long comes here by itself."""
        try:
            await super().settle(worker)
        finally:
            self._on_room()

    async def cancel(self, number: int, remove: Callable[[], Awaitable[bool]]) -> bool:
        """Take out a message that waits here; it is cancelled once `remove` says that Redis has removed it.

        Meanwhile nobody sends it, and it counts as being sent. Where `remove` raises, it waits again.
        """
        body = self._schedule.cancel(number)
        if body is None:
            return False
        entry = (execute_at_of(0.0, body), number, body)
        self._handing_back[number] = entry
        self.depart(1)
        try:
            removed = await remove()
        except BaseException:
            self._take_again(entry)
            raise
        finally:
            del self._handing_back[number]
        self._ledger.sending -= 1
        self._held.forget(id_of(body))
        if removed:
            self._ledger.cancelled += 1
            self._ids.free(body)
            self._ledger.release(size_of(body))
        else:
            self._leave(body)
        self._on_room()
        return removed

    def _take_again(self, entry: Entry) -> None:
        if self._workers.paused or self._workers.finished.is_set():
            self._ledger.sending -= 1
            self.release(entry)
            return
        self.put_back(entry)

    async def deliver(self, worker: Worker, now: float) -> float:
        """Send what the worker has taken, except what is not this instance's any more."""
        self.drop_lapsed(worker, now)
        try:
            return await super().deliver(worker, now) if worker.entries else now
        finally:
            self._on_room()

    def drop_lapsed(self, worker: Worker, now: float) -> None:
        """Let go of messages whose lease has ended: Redis gives them to whoever asks first."""
        lapsed = [entry for entry in worker.entries if not self._held.holds(id_of(entry[2]), now)]
        if not lapsed:
            return
        worker.entries[:] = [entry for entry in worker.entries if entry not in lapsed]
        worker.size = sum(size_of(body) for _, _, body in worker.entries)
        for _, _, body in lapsed:
            self._held.forget(id_of(body))
            self._ledger.sending -= 1
            self._leave(body)

    def release(self, entry: Entry) -> None:
        """Give a message that has just been taken out of the schedule back to Redis."""
        due, _, body = entry
        self._held.give_back(id_of(body), due if failures_of(body) else None, b"")
        self._leave(body)

    def _leave(self, body: Body) -> None:
        self._ledger.spooled += 1
        self._ids.free(body)
        self._ledger.release(size_of(body))

    def _finish(self, entry: Entry, dead: str | None = None) -> None:
        super()._finish(entry, dead)
        self._held.confirm(id_of(entry[2]))

    def _put_off(self, entry: Entry, due: float, attempt: int, *, alone: bool) -> None:
        again = after_failing(entry, attempt, alone=alone)
        its_note = note(attempt, failures_of(again), alone=goes_alone(again))
        if not self._workers.paused and due - trio.current_time() <= self.keep_within:
            self._held.write_down(id_of(entry[2]), its_note)
            super()._put_off(entry, due, attempt, alone=alone)
            return
        self._held.give_back(id_of(entry[2]), due, its_note)
        self._ledger.sending -= 1
        self._leave(entry[2])


class Arrivals:
    """Takes in what was claimed."""

    def __init__(
        self,
        schedule: Schedule,
        ledger: Ledger,
        workers: Workers,
        ids: Ids,
        held: Held,
        clock: RedisClock,
        numbers: Iterator[int],
    ) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._workers = workers
        self._ids = ids
        self._held = held
        self._clock = clock
        self._numbers = numbers
        self.closed = False
        """Whether what arrives goes back at once."""

    def take_in(self, id: str, shard: int, stored: Stored, due: int, ends: float) -> None:
        """Hold a message that was claimed until `ends`, to be sent when it is due on Redis's clock."""
        if self._ids.number(id) is not None:
            if self._held.where(id) in (None, (shard, stored.due)):
                self._held.claim(id, shard, ends, stored.due)  # its lease had ended, and nobody else came
            return  # or it is another message of this id: it waits for the end of its lease
        self._held.claim(id, shard, ends, stored.due)
        execute_at = self._clock.local(stored.due)
        when = self._clock.local(max(due, stored.due)) if stored.failures else execute_at
        if self.closed or self._workers.paused:
            self._held.give_back(id, when if stored.failures else None, b"")
            return
        number = next(self._numbers)
        body: Body = (
            stored.payload,
            stored.headers,
            id,
            stored.attempt,
            stored.failures,
            execute_at,
            stored.alone,
        )
        self._ledger.accept(size_of(body))
        self._ids.take(number, body)
        if stored.failures:
            self._schedule.put_back(when, number, body)
        else:
            self._schedule.put(when, number, body)


def id_of(body: Body) -> str:
    """The id of a claimed message."""
    name = chosen_id(body)
    assert name is not None  # noqa: S101 (each claimed message has one)
    return name


def confirming_each(send: Any, held: Held) -> Send:
    """The send, after which Redis is told."""

    async def confirming(message: Any) -> None:
        sending = send(message)
        if not inspect.isawaitable(sending):
            raise not_awaitable("send", sending)
        await sending
        held.confirm(message.id)

    return confirming


def confirming_all(send: Any, held: Held) -> SendBatch:
    """The batch sender, after which Redis is told; where it raises, the delivery finds out for whom."""

    async def confirming(messages: Any) -> None:
        sending = send(messages)
        if not inspect.isawaitable(sending):
            raise not_awaitable("send_batch", sending)
        await sending
        for message in messages:
            held.confirm(message.id)

    return confirming
