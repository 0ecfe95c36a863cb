"""How what other threads put comes to the loop of a queue.

A message is accepted in the thread that puts it. The room is the queue's own (`Ledger`): what is on its way
to the loop counts there as `coming`. Whoever has to wait for room does so on the loop: while somebody does,
nothing is accepted past him.

To wake a loop costs many times what a message costs, so that it is woken only for what would be late. Who
takes the next message (`Workers`) sets the schedule's `alarm` and then takes in what has come, before he
sleeps; who puts lets his message come and then looks at the alarm, and calls if it is due before. So one of
the two sees the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import trio

from localdelay import forks
from localdelay.entry import Entry, all_plain, chosen_id, plain_size, size_of
from localdelay.errors import QueueClosed
from localdelay.message import Message
from localdelay.queue.admission import Stamped, already_pending
from localdelay.queue.alarm import Alarm
from localdelay.queue.ledger import Ledger
from localdelay.queue.queue import DelayQueue

AT_ONCE = 512
"""So much is taken in in one turn of the loop: what is due must not wait for it."""


class Intake:
    """What has been put into one queue and is not there yet. In any thread, but for what says otherwise."""

    ledger: Ledger
    _most: int
    _queue: DelayQueue
    _alarm: Alarm
    _post: Callable[[Callable[[], object]], object]

    def __init__(self) -> None:
        # Whoever accepts a message holds this, from looking for room until the message is on its way. It can
        # be taken twice, for a handler of signals may come in the midst of a put.
        self.lock = threading.RLock()
        self.is_closed = self.is_forked = False
        self._waiting = 0  # puts that wait for room
        self._chosen: set[str | None] = set()  # ids on their way
        self._come: list[Entry] = []
        self._left: deque[Entry] = deque()  # of the loop: what was too much for one turn
        self._called = False  # whether the loop knows that there is something

    def open(self, queue: DelayQueue, post: Callable[[Callable[[], object]], object]) -> None:
        """The queue has begun: `post` has a function called on its loop."""
        self._queue, self._post = queue, post
        self.ledger, self._alarm = queue.core.pending.ledger, queue.core.pending.schedule.alarm
        queue.core.workers.bring_in = self.bring_in
        self._most = 1 if queue.admission.is_kept else AT_ONCE  # a journal must not lag

    def close(self) -> bool:
        """Take no more messages; those that were accepted arrive. Whether that was so already."""
        with self.lock:
            was_closed, self.is_closed = self.is_closed, True
        return was_closed

    def forget(self) -> None:
        """This is a forked child, in which the thread that held the lock may be missing."""
        self.is_forked = True
        self.lock = threading.RLock()

    def check_open(self) -> None:
        """Raise `QueueClosed` where nothing is taken any more."""
        if self.is_closed:
            if self.is_forked:
                raise forks.not_ours()
            raise QueueClosed("the queue takes no more messages")

    def try_accept(self, stamped: Stamped, *, comes: bool = True) -> bool:
        """Take room for a message, if there is any, and let it come, unless a call is to bring it."""
        _, entry, size = stamped
        ledger, is_plain = self.ledger, type(entry[2]) is bytes
        if size > ledger.limit_bytes or size > ledger.largest:
            ledger.check_size(size)
        with self.lock:
            # In here nothing is called, if it can be helped. The interpreter changes threads at calls: if one
            # had to stop while it holds the lock, all others would soon stand in line for it, and from then
            # on each put would wake a thread. So this is `Ledger.fits`, and in step with it; and what comes
            # stands in a list, not in a `Hop`: its `append` alone is no call for the interpreter.
            fits = (
                not self.is_closed
                and not self._waiting
                and ledger.reserved + ledger.coming + ledger.pending < ledger.capacity
                and ledger.reserved_bytes + ledger.coming_bytes + ledger.pending_bytes + size
                <= ledger.limit_bytes
            )
            if fits:
                if not is_plain:
                    self._claim(chosen_id(entry[2]))
                ledger.coming += 1
                ledger.coming_bytes += size
                if comes:  # in the same step, or the loop might end in between and never see it
                    self._come.append(entry)
        if not fits:
            self.check_open()
            return False
        if comes and (entry[0] < self._alarm.until or not is_plain or len(self._come) >= self._most):
            self._call()
        return True

    def line_up(self, stamped: Stamped) -> None:
        """This one waits for its room from now on, as `wait_for_room` does. Under the lock."""
        self._claim(chosen_id(stamped[1][2]))
        self._waiting += 1

    def is_chosen(self, id: str) -> bool:
        """Whether a caller chose this id for a message that is pending, or on its way."""
        return id in self._chosen or self._queue.core.pending.is_chosen(id)

    def _claim(self, id: str | None) -> None:
        if id is not None:
            if self.is_chosen(id):
                raise already_pending(id)
            self._chosen.add(id)

    def _call(self) -> None:
        if not self._called:
            self._called = True  # two threads may both come here: one call too many finds nothing to do
            try:
                self._post(self._turn)
            except trio.RunFinishedError:  # it has taken all there was on its way out
                pass
            except BaseException:  # an interrupt: else nobody would call it any more
                self._called = False
                raise

    # What follows runs on the loop.

    def bring_in(self, most: float = AT_ONCE) -> bool:
        """Take in what has come, in its order, and no more than so many; whether there was any."""
        come = self._come
        if come:
            with self.lock:
                come, self._come = self._come, []
        if self._left or len(come) > most:
            self._left += come
            come = [self._left.popleft() for _ in range(int(min(most, len(self._left))))]
        if not come:
            return False
        is_plain, count = all_plain(come), len(come)
        size = plain_size(come) if is_plain else sum(size_of(body) for _, _, body in come)
        ledger = self.ledger
        with self.lock:  # nobody may see the room of what is neither coming nor pending; no calls, as above
            ledger.accepted += count
            ledger.pending += count
            ledger.pending_bytes += size
            ledger.coming -= count
            ledger.coming_bytes -= size
        self._queue.core.pending.enter_counted(come)
        if not is_plain:
            self._chosen.difference_update(chosen_id(body) for _, _, body in come)
        return True

    async def wait_for_room(self, stamped: Stamped) -> Message:
        """Accept it as soon as there is room, behind all who wait already."""
        try:
            return await self._queue.admission.accept_or_wait(stamped)
        finally:
            with self.lock:
                self._waiting -= 1
                self._chosen.discard(chosen_id(stamped[1][2]))

    async def commit(self, stamped: Stamped) -> Message:
        """Accept one that has its room, when the journal has it."""
        try:
            with self.lock:  # nobody may see the room of one that is neither coming nor reserved
                self.ledger.reserve(stamped[2])
                self.ledger.arrive(stamped[2])
            return await self._queue.admission.accept_reserved(stamped)
        finally:
            self._chosen.discard(chosen_id(stamped[1][2]))

    def _turn(self) -> None:
        # Before anything is taken: who puts after the last was taken must call again, and he looks at this
        # after he has let his message come.
        self._called = False
        self.bring_in()
        if self._left:
            self._call()
