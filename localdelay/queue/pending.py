"""Every message that was accepted and has not ended: its order, its id, its room, its count.

Each message goes through here, and little else changes these four books: the short way of `put_nowait` and
`hold`, the counting of what other threads have put (`Remote`), what the workers take, and a move of the wall
clock.

    enter ──▶ waiting, retrying ──take, lend──▶ taken ──▶ end
                      ▲                           │
                      └───────────again───────────┘

What waits is the schedule's, in due order, and the workers take it from there. What is taken is somebody's
to end or to bring back: a worker's, or that of whoever hands it back; it counts as being sent meanwhile.
Everything here happens in one step: nothing awaits, so that a cancellation finds a message in one of these
places and never in two or in none. What takes time, because a journal has to know, is returned for the
caller to await.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from localdelay import arguments
from localdelay.arguments import LATEST
from localdelay.entry import (
    AT,
    CHOSEN_ID,
    Entry,
    all_plain,
    chosen_id,
    execute_at_of,
    failures_of,
    message_of,
    rescheduled,
    size_of,
)
from localdelay.keeping import End, Keeper, Wait
from localdelay.message import Message, number_of

from .ledger import Ledger
from .schedule import Schedule


class Pending:
    """The books of what is pending. Of the Trio thread, but for what says otherwise."""

    def __init__(self, schedule: Schedule, ledger: Ledger) -> None:
        self.schedule = schedule
        self.ledger = ledger
        self.keeper = Keeper(lambda: (ledger.pending, ledger.pending_bytes))
        """Who else knows what is pending."""
        self.has_at = False
        """Whether any was put with `at`."""
        self.suspects_since = -math.inf
        """When the suspects were taken in: what was due before goes before them."""
        self.lent: dict[int, Entry] = {}
        """What is taken and no worker's, by number."""
        self.is_given_away = False
        """Whether what lies beyond the schedule's horizon is handed back, in a drain."""
        self.at_work: Callable[[], Iterable[Entry]] = tuple  # which is empty, until there are workers
        """What the workers have taken."""
        # Most messages have no id but their number, so only the ids that callers chose are kept: of what is
        # pending, and of what waits for its room or its journal.
        self._chosen: dict[str, int] = {}

    # The way in.

    def enter(self, entry: Entry, size: int) -> Wait | None:
        """Accept a message of this many bytes, for which room is reserved: what makes a put atomic.

        None: it is accepted. Else it is when the keeper has it; what is returned waits for that, and raises
        `JournalError` where it can't be, and gives room and id back.
        """
        # What the keeper calls is such a step, too: no crash must find a message that was accepted and is not
        # kept, and no cancellation one that is kept and was not accepted.
        wait = self.keeper.entering(entry, partial(self._accept, entry, size))
        if wait is None:
            self._accept(entry, size)
            return None
        self.take_id(entry)
        return partial(self._until_kept, wait, entry, size)

    def enter_at_risk(self, entry: Entry, size: int) -> None:
        """Accept a message for which room is reserved, now; the keeper has it later."""
        self._accept(entry, size)
        self.keeper.entered(entry)

    def enter_counted(self, entries: Sequence[Entry]) -> None:
        """Accept messages that the ledger has counted in already; the keeper has them later."""
        if not all_plain(entries):
            for entry in entries:
                self.take_id(entry)
        self.schedule.put_all(entries)
        if self.keeper.writes:
            for entry in entries:
                self.keeper.entered(entry)

    def enter_kept(self, entries: Sequence[Entry]) -> None:
        """Accept messages in due order that the keeper has already, whatever the room."""
        self._count_kept(entries)
        self.schedule.put_all(entries)

    def enter_suspects(self, entries: Sequence[Entry], now: float) -> None:
        """Accept messages that the keeper has, and that were being sent when the last process ended."""
        self._count_kept(entries)
        self.suspects_since = now
        for entry in entries:
            self.schedule.set_aside(entry)
        # They are no one's next due message, so that the alarm says nothing of them; and whoever takes the
        # next message may sleep already, until one that is due in an hour.
        self.schedule.alarm.ring()

    def _count_kept(self, entries: Sequence[Entry]) -> None:
        self.ledger.accept(sum(size_of(body) for _, _, body in entries), len(entries))
        self.ledger.recovered += len(entries)
        for entry in entries:
            self.take_id(entry)

    def enter_claimed(self, entry: Entry) -> None:
        """Accept a message that the keeper has already, and may have seen fail, whatever the room."""
        self.ledger.accept(size_of(entry[2]))
        self.take_id(entry)
        (self.schedule.put_back if failures_of(entry[2]) else self.schedule.put)(entry)

    def _accept(self, entry: Entry, size: int) -> None:
        self.ledger.accept_reserved(size)
        self.take_id(entry)
        self.schedule.put(entry)

    async def _until_kept(self, wait: Wait, entry: Entry, size: int) -> None:
        try:
            await wait()
        except BaseException:
            # It never was pending, so this is no end of it; but the next in line has to get its room.
            self.free_id(entry)
            self.ledger.release_reserved(size)
            raise

    # Out of the order, and back.

    def lend(self, number: int, due: float = 0.0) -> Entry | None:
        """Take out a waiting message for somebody who is no worker; None if it does not wait here.

        It is due at its execute-at, whatever it waits for. `due` is that of a plain one, which has it nowhere
        else: without it a plain one must end, or come back under another number.
        """
        # Not simply when it was due as it was looked at: the wall clock may have moved it since.
        body = self.schedule.lend(number)
        return None if body is None else self._lent((execute_at_of(due, body), number, body))

    def lend_later(self, now: float) -> Entry | None:
        """The same, for the next one beyond the schedule's horizon."""
        entry = self.schedule.take_later(now)
        return None if entry is None else self._lent(entry)

    @property
    def has_to_give(self) -> bool:
        """Whether there is anything to be handed back in a drain, now or later, or on its way."""
        return self.is_given_away and (bool(self.lent) or self.schedule.has_later(LATEST))

    def _lent(self, entry: Entry) -> Entry:
        self.lent[entry[1]] = entry
        return entry

    def again(self, entry: Entry, back: Callable[[Entry], None] | None = None) -> None:
        """Bring back a message that was taken: it failed, or was cut off. It has its number still.

        `back` is another method of the schedule than that which puts it back where it belongs: for what
        `lend_later` gave. What `lend` gave has left its place behind, and would stand there, too.
        """
        self.schedule.taken -= 1
        self.lent.pop(entry[1], None)
        (back or self.schedule.put_back)(entry)

    def bring_back(self, entry: Entry, again: Entry) -> None:
        """Bring back a message whose send has failed, as `again`, unless the keeper takes it from here.

        So may one whose send has not begun, after a pause, say: then it is `again` what it was.
        """
        if self.keeper.failed(entry, again):
            self.again(again)
        else:
            self.end([entry], End.SPOOLED)

    def reschedule(self, number: int, new_number: int, due: float, at: float | None) -> bool:
        """Have a waiting message due then, under a new number: the old one is left in the order, dead.

        `at` is the Unix time that it is put for now, if it is for one. False: it does not wait here.
        """
        entry = self.lend(number)
        if entry is None:
            return False
        moved = rescheduled(entry, due, at, new_number)
        self.take_id(moved)
        self.keeper.moved(entry, moved)
        self.schedule.forget(number)
        del self.lent[number]
        self.again(moved)
        return True

    # The end.

    def end(
        self, entries: Sequence[Entry], how: End, size: int | None = None, *, why: str | None = None
    ) -> Wait | None:
        """These messages, which were taken, are finished; `size` is their bytes, where that is known.

        What is returned waits until the keeper has written that. `why` is what a dead one was given up for,
        where nobody but the keeper has it from now on.
        """
        # The room goes last but for the keeper: who is let in by it finds all else as it is from now on.
        count = len(entries)
        ledger = self.ledger
        self.schedule.taken -= count
        ledger.ended[how] += count
        if self._chosen:
            for entry in entries:
                self.free_id(entry)
        if self.lent:
            for _, number, _ in entries:
                self.lent.pop(number, None)
                self.schedule.forget(number)
        ledger.pending -= count
        ledger.pending_bytes -= sum(size_of(body) for _, _, body in entries) if size is None else size
        if ledger.waiters:
            ledger.admit()
        return self.keeper.ended(entries, how, why)

    def cancel(self, number: int) -> bool:
        """End the message with this number, if it waits here."""
        entry = self.lend(number)
        if entry is not None:
            self.end([entry], End.CANCELLED)
        return entry is not None

    def spool(self) -> None:
        """End what waits and the keeper has: it is safe there. What it has not stays pending.

        The queue is closed by then, so that nobody waits for the room.
        """
        unkept = self.keeper.unkept()
        if unkept is None:
            return
        # A hand-back may still be on its way out where a send has ended the queue under a drain: what it has
        # is pending until it brings it back, and must be neither ended here nor put into the order twice.
        taken = self.taken()
        numbers = {number for _, number, _ in taken}
        left = [entry for entry in unkept if entry[1] not in numbers]
        spooled = self.schedule.waiting + self.schedule.retrying - len(left)
        size = self.ledger.pending_bytes - sum(size_of(body) for _, _, body in [*left, *taken])
        self.schedule.clear()
        self._chosen.clear()
        for entry in [*left, *taken]:
            self.take_id(entry)
        for entry in left:
            self.schedule.set_aside(entry)
        self.ledger.ended[End.SPOOLED] += spooled
        self.ledger.pending -= spooled
        self.ledger.pending_bytes -= size

    # Ids, and a look at all.

    def number(self, id: str) -> int | None:
        """The number of the pending message with this id, or None. Raises if it cannot be an id."""
        name = arguments.check_id(id)
        if name in self._chosen:
            return self._chosen[name]
        number = number_of(name)
        if number is None:
            return None
        body = self.schedule.find(number)
        if body is None:
            body = next((body for _, key, body in self.taken() if key == number), None)
        return None if body is None or chosen_id(body) is not None else number

    def is_chosen(self, id: str) -> bool:
        """Whether a caller chose this id for a message that is pending. In any thread."""
        return id in self._chosen

    def take_id(self, entry: Entry) -> None:
        """Keep the id that was chosen for this message, if there is one, until it ends or `free_id`."""
        body = entry[2]
        if isinstance(body, bytes):
            return
        if body[AT] is not None:  # read in place: a journal brings a million of these back
            self.has_at = True
        if (chosen := body[CHOSEN_ID]) is not None:
            self._chosen[chosen] = entry[1]

    def free_id(self, entry: Entry) -> None:
        """The id of this message may be used again."""
        # Unless it is another's: a journal may bring back two with one id.
        chosen = chosen_id(entry[2])
        if chosen is not None and self._chosen.get(chosen) == entry[1]:
            del self._chosen[chosen]

    def taken(self) -> list[Entry]:
        """The messages that count as being sent."""
        return [*self.at_work(), *self.lent.values()]

    def messages(self) -> list[Message]:
        """Every pending message, in due order; a retry stands where its next send is."""
        taken = self.taken()
        entries = [*self.schedule.entries(), *taken]

        def when(entry: Entry) -> tuple[float, int]:
            due, number, body = entry
            return max(due, execute_at_of(due, body)), number

        if taken or self.schedule.retrying or self.schedule.next_later() < math.inf:
            entries.sort(key=when)
        return [message_of(entry) for entry in entries]

    def oldest(self) -> float:
        """The earliest execute-at of all; infinite if there is none."""
        taken = (execute_at_of(due, body) for due, _, body in self.taken())
        return min(self.schedule.oldest(), min(taken, default=math.inf))
