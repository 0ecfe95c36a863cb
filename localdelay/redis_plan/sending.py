"""What becomes of a claimed message: it waits here for its time, is sent by the pool, and Redis is told.

The queue's core is that of the queue in memory. What differs is who else knows what is pending: Redis has
each message, for which this instance has a lease. A finished one is confirmed there, one that failed and must
wait goes back there, and one whose lease has ended is not sent, for it is somebody else's by now.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

import trio

from localdelay.entry import Body, Entry, attempt_of, chosen_id, failures_of, goes_alone
from localdelay.keeping import End, NoKeeper, Wait
from localdelay.queue.pending import Pending
from localdelay.queue.workers import Workers
from localdelay.redis_plan.bodies import Stored, note
from localdelay.redis_plan.clock import RedisClock
from localdelay.redis_plan.held import Held


class Leases(NoKeeper):
    """A keeper of messages: Redis, by the leases that this instance has there. Nothing is at risk."""

    lapses = True

    def __init__(
        self,
        pending: Pending,
        workers: Workers,
        held: Held,
        *,
        keep_within: float,
        on_room: Callable[[], None],
    ) -> None:
        """`keep_within`: a message that is to be tried again within so many seconds stays here."""
        super().__init__(lambda: (0, 0))
        self._pending = pending
        self._workers = workers
        self._held = held
        self._on_room = on_room
        self.keep_within = keep_within

    def failed(self, entry: Entry, again: Entry) -> bool:
        """Redis is told how often, and has it back where it has to wait for long."""
        due, _, body = again
        its_note = note(attempt_of(body), failures_of(body), alone=goes_alone(body))
        if not self._workers.paused and due - trio.current_time() <= self.keep_within:
            self._held.write_down(id_of(body), its_note)
            return True
        self._held.give_back(id_of(body), due, its_note)
        return False

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait | None:
        """Redis is told soon what is finished; of what was cancelled or given up to it, it knows."""
        let_go = self._held.confirm if how in (End.SENT, End.DEAD) else self._held.forget
        for _, _, body in entries:
            let_go(id_of(body))
        self._on_room()
        return None

    def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """Those whose lease holds: the others Redis gives to whoever asks first."""
        return [entry for entry in entries if self._held.holds(id_of(entry[2]), now)]

    def release(self, entry: Entry) -> None:
        """Give a message that was taken back to Redis."""
        due, _, body = entry
        self._held.give_back(id_of(body), due if failures_of(body) else None, b"")
        self._pending.end([entry], End.SPOOLED)

    def release_all(self) -> None:
        """Give back all that waits here."""
        for due, number, _ in self._pending.schedule.entries():
            entry = self._pending.lend(number, due)
            if entry is not None:
                self.release(entry)

    async def cancel(self, number: int, remove: Callable[[], Awaitable[bool]]) -> bool:
        """Take out a message that waits here; it is cancelled once `remove` says that Redis has removed it.

        Meanwhile nobody sends it, and it counts as being sent. Where `remove` raises, it waits again.
        """
        entry = self._pending.lend(number)
        if entry is None:
            return False
        try:
            removed = await remove()
        except BaseException:
            if self._workers.paused or self._workers.finished.is_set():
                self.release(entry)
            else:
                self._pending.again(entry)
            raise
        self._pending.end([entry], End.CANCELLED if removed else End.SPOOLED)
        return removed


class Arrivals:
    """Takes in what was claimed."""

    def __init__(
        self, pending: Pending, workers: Workers, held: Held, clock: RedisClock, numbers: Iterator[int]
    ) -> None:
        self._pending = pending
        self._workers = workers
        self._held = held
        self._clock = clock
        self._numbers = numbers
        self.closed = False
        """Whether what arrives goes back at once."""

    def take_in(self, id: str, shard: int, stored: Stored, due: int, ends: float) -> None:
        """Hold a message that was claimed until `ends`, to be sent when it is due on Redis's clock."""
        if self._pending.number(id) is not None:
            if self._held.where(id) in (None, (shard, stored.due)):
                self._held.claim(id, shard, ends, stored.due)  # its lease had ended, and nobody else came
            return  # or it is another message of this id: it waits for the end of its lease
        self._held.claim(id, shard, ends, stored.due)
        execute_at = self._clock.local(stored.due)
        when = self._clock.local(max(due, stored.due)) if stored.failures else execute_at
        if self.closed or self._workers.paused:
            self._held.give_back(id, when if stored.failures else None, b"")
            return
        body: Body = (
            stored.payload,
            stored.headers,
            id,
            stored.attempt,
            stored.failures,
            execute_at,
            stored.alone,
            None,
            None,
        )
        self._pending.enter_claimed((when, next(self._numbers), body))


def id_of(body: Body) -> str:
    """The id of a claimed message."""
    name = chosen_id(body)
    assert name is not None  # noqa: S101 (each claimed message has one)
    return name
