"""Taking a message in: checking and stamping it, finding room for it, and letting it enter.

A put on the loop is refused here: for its arguments or its id when it is stamped, where the queue is closed,
and where there is no room; and while it waits, by the ledger or its journal. Whoever gets in has room
reserved first, and `Pending.enter` turns that into a pending message in the same step. A put that waits is
cancelled while it stands in line (as by the time limit of `DelayQueue.hold`), and then nothing has happened;
or too late, when it has its room and goes on to its end. Of a queue that is closed `put_nowait` and `hold`
know by `Ledger.has_short_way` alone, and come here to be refused.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import itemgetter
from typing import TypeAlias

import trio

from localdelay import arguments, forks
from localdelay.arguments import Delay, Terms
from localdelay.entry import Body, Entry, message_of, size_of
from localdelay.errors import QueueClosed, QueueFull
from localdelay.journal.commits import Commits
from localdelay.journal.record import DEAD, DUE, SENDING, Journal, Kept, recovered
from localdelay.keys import Keys
from localdelay.logs import log
from localdelay.message import NO_TERMS, Message, number_in, terms_of

from .ledger import Ledger
from .pending import Pending

Stamped: TypeAlias = tuple[Message, Entry, int]
"""(what put returns, what waits, its bytes)"""

_CHUNK = 2000  # recovered messages, between which other tasks run


def stamp(
    number: int,
    payload: bytes,
    due: float,
    id: str | None,
    headers: Mapping[str, str] | None,
    terms: Terms | None,
    keys: Keys | None,
) -> Stamped:
    """What a put makes of its arguments, of which all but headers and key were checked. In any thread."""
    copy = None if headers is None else arguments.check_headers(headers)
    body: Body = payload
    if id is not None or copy is not None or terms is not None:
        body = (payload, copy, id, 1, 0, due, False, *(terms or NO_TERMS))
    entry = due, number, body
    message = message_of(entry)
    if keys is not None:
        keys.check(message)
    return message, entry, size_of(body)


def already_pending(id: str) -> ValueError:
    """What to raise for an id that is one of a pending message."""
    return ValueError(f"id {id!r} is the id of a message that is pending already")


def full_inside(ledger: Ledger) -> QueueFull:
    """What to raise where a send, or a hook, would wait for the room that only sends make."""
    return QueueFull(
        "put was called from inside a send of this very queue, and would wait for itself: use put_nowait "
        f"there, or let the send fail ({ledger.describe()})"
    )


class Admission:
    """The long way in. `DelayQueue.put_nowait` and `hold` have a short one each, for the common call."""

    def __init__(
        self, pending: Pending, numbers: Iterator[int], is_inside: Callable[[], bool], keys: Keys | None
    ) -> None:
        """`is_inside` says whether it is called from inside a send, or from a hook."""
        self._pending = pending
        self._is_inside = is_inside
        self._keys = keys
        self._ledger = pending.ledger
        self._ledger.has_short_way = keys is None  # else each message is looked at
        self._numbers = numbers
        self.closed = False
        self.is_forked = False
        """Whether this is a forked child, and all that is pending is the parent's."""
        self.is_kept = False
        """Whether a put returns only when a journal has its message."""

    async def open_journal(self, journal: Journal) -> Sequence[Kept]:
        """Have what is taken in from now on kept there, and return what is there. Raises `JournalError`."""
        none = self._pending.keeper  # that keeps nothing
        commits = Commits(journal, lambda: none.at_risk)
        held = await commits.open(next(self._numbers))
        self._pending.keeper = commits
        self.is_kept = True
        self._ledger.has_short_way = False
        self._ledger.largest = journal.largest
        return held

    async def recover(self, held: Sequence[Kept]) -> None:
        """Take in what a journal held."""
        by_due = itemgetter(DUE)
        waiting = sorted([kept for kept in held if kept[DEAD] is None], key=by_due)
        dead = len(held) - len(waiting)
        wall = time.time()
        now = trio.current_time()
        overdue = bisect_right(waiting, wall, key=by_due)
        # What is not due, for the clock was set back, waits like any other, and goes alone.
        suspects = [kept for kept in waiting[:overdue] if kept[SENDING]]
        if suspects:
            waiting[:overdue] = [kept for kept in waiting[:overdue] if not kept[SENDING]]
        for begin in range(0, len(waiting), _CHUNK):
            self._pending.enter_kept(recovered(waiting[begin : begin + _CHUNK], wall=wall, now=now))
            # Cut off here: what has not ended meanwhile is in the journal still.
            await trio.lowlevel.checkpoint()
        self._pending.enter_suspects(recovered(suspects, wall=wall, now=now), now)
        if suspects:
            line = (
                "%d messages were being sent when the last process ended: each goes alone, after all others"
            )
            log(logging.INFO, line, len(suspects))
        if held:
            line = "%d messages came back from the journal, %d of them overdue; it has %d dead letters"
            log(logging.INFO, line, len(held) - dead, overdue, dead)

    def close(self) -> None:
        """Take in nothing any more; puts that wait for room raise `QueueClosed`."""
        self.closed = True
        self._ledger.has_short_way = False
        self._ledger.close()

    def forget(self) -> None:
        """This is a forked child: take in nothing, and send nothing."""
        self.closed = self.is_forked = True
        self._ledger.has_short_way = False

    def stamp(
        self,
        payload: bytes,
        delay: Delay | None,
        at: datetime | None,
        id: str | None,
        headers: Mapping[str, str] | None,
        expires: Delay | None,
    ) -> Stamped:
        """Check the arguments of a put, and fix when its message is due and how it is called."""
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(trio.current_time(), delay, at, wall=wall)
        terms = arguments.terms(expires, at)
        payload = arguments.check_payload(payload)
        chosen = None if id is None else arguments.check_id(id)
        return self._stamped(next(self._numbers), payload, due, chosen, headers, terms)

    def stamp_held(self, message: Message) -> Stamped:
        """Stamp what a `Fallback` has checked, but for its id; one that this process has made is new."""
        number, chosen = number_in(message), None
        if number is None:
            number, chosen = next(self._numbers), message.id
        headers = message.headers or None  # most messages have none
        terms = None if (given := terms_of(message)) == NO_TERMS else given
        return self._stamped(number, message.payload, message.execute_at, chosen, headers, terms)

    def _stamped(
        self,
        number: int,
        payload: bytes,
        due: float,
        id: str | None,
        headers: Mapping[str, str] | None,
        terms: Terms | None,
    ) -> Stamped:
        if id is not None and self._pending.number(id) is not None:
            raise already_pending(id)
        stamped = stamp(number, payload, due, id, headers, terms, self._keys)
        self._ledger.check_size(stamped[2])
        return stamped

    def check_open(self) -> None:
        """Raise `QueueClosed` where nothing is taken in any more."""
        if self.closed:
            self.check_process()
            raise QueueClosed("the queue takes no more messages")

    def check_process(self) -> None:
        """Raise `QueueClosed` in a forked child, and say where to open a queue instead."""
        if self.is_forked:
            raise forks.not_ours()

    def accept(self, stamped: Stamped) -> Message:
        """Take the message in, or raise `QueueFull`. A journal has it with its next commit."""
        self.check_open()
        self._reserve(stamped)
        self._pending.enter_at_risk(stamped[1], stamped[2])
        return stamped[0]

    async def accept_safely(self, stamped: Stamped) -> Message:
        """Take the message in, or raise `QueueFull`; return when the journal has it, if there is one."""
        self.check_open()
        self._reserve(stamped)
        return await self._enter(stamped)

    async def accept_reserved(self, stamped: Stamped) -> Message:
        """Take the message in when the journal has it; room is reserved for it."""
        if self.closed:
            self._ledger.release_reserved(stamped[2])
            self.check_open()
        return await self._enter(stamped)

    async def accept_or_wait(self, stamped: Stamped) -> Message:
        """Take the message in when there is room; return when the journal has it, if there is one."""
        # A cancellation counts here, and while it waits for room: of what has entered the call returns.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check_open()
        message, entry, size = stamped
        if self._ledger.try_reserve(size):
            return await self._enter(stamped)
        if self._is_inside():
            raise full_inside(self._ledger)
        self._pending.take_id(entry)  # it is pending as an id also while its message waits for room
        try:
            wait = await self._ledger.wait_for_room(size, partial(self._pending.enter, entry, size))
        except BaseException:
            self._pending.free_id(entry)
            raise
        if wait is not None:
            await wait()  # not cut off before the commit has ended, for nobody knows until then what to undo
        return message

    def _reserve(self, stamped: Stamped) -> None:
        if not self._ledger.try_reserve(stamped[2]):
            raise QueueFull(self._ledger.describe())

    async def _enter(self, stamped: Stamped) -> Message:
        wait = self._pending.enter(stamped[1], stamped[2])
        # Not cancelled any more, for it has entered; but who only puts must leave the loop to others.
        await (trio.lowlevel.cancel_shielded_checkpoint if wait is None else wait)()
        return stamped[0]
