"""The waiting messages, in due order, and what is known of each.

The order is kept by the piles. What is said of a message beyond its place in that order is kept here: how
many wait, how many of them wait to be tried again, and, while the queue drains, which of them are due
beyond its horizon and are handed back instead of sent. New messages stand in an inbox, which every method
that needs the order empties first: to sort in many at a time costs a fraction of one by one. In a queue with
keys, what is due stands in the line of its key, out of the order, and waits there as before.

Cancelling. With an index, the piles carry only (due, number), and the index owns what the number stands
for: cancelling takes it out there, which frees the payload at once, and leaves a dead pair behind. When the
dead outnumber the living, everything is swept: each cancelling does a step of that, which is a block of a
lane, a line, or a heap as a whole. A message that is lent leaves such a pair, too, and may come back under
its number. If the pair is still there the message is there again; a second one would be sent a second time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from heapq import heapify
from itertools import filterfalse
from operator import itemgetter
from typing import Final

import trio

from localdelay.entry import Body, Entry, attempt_of, execute_at_of, failures_of

from .alarm import Alarm
from .bodies import Index
from .lanes import Piles, Slot

INBOX = 256
"""So many new messages are sorted in at once, or fewer if somebody needs the order before."""
_FEW = 64
_DUE: Final = itemgetter(0)
_NUMBER: Final = itemgetter(1)
_BODY: Final = itemgetter(2)


class Schedule:
    """Messages in due order. All methods are synchronous, and call nobody but the alarm."""

    def __init__(self, *, indexed: bool) -> None:
        self.alarm = Alarm()
        """Rung when a message comes in that is due before: it would be late by the rest of that."""
        self._index = Index() if indexed else None
        self._dead = 0
        self._sweeping: Iterator[None] | None = None
        self.inbox: list[Entry] = []
        """New messages, in the order of their puts. Sorted in when there is need to, many at a time."""
        self._waiting = 0
        self.retrying = 0
        self.taken = 0
        """How many are out of the order and have not ended: they are being sent, or lent."""
        self._overdue: dict[int, float] = {}  # number to execute-at, where that is not what it waits for
        self._pairs_left: set[int] = set()  # in the order, by number, of what is lent
        self.horizon = math.inf
        self._near = Piles()
        self._later = Piles()
        self._put_off = Piles()
        self.aside = Piles()
        """What a drain leaves, and what goes after all else. Without a horizon only the latter."""
        self.lines: dict[Hashable, deque[Slot]] = {}
        """What is due stands in these, out of the order, where there are keys."""
        self.later_arrived = trio.lowlevel.ParkingLot()
        """Unparked when a message arrives beyond the horizon."""

    def put(self, entry: Entry) -> None:
        """Take in a new message."""
        self.inbox.append(entry)
        if len(self.inbox) >= INBOX:
            self.sort_in()
        if entry[0] < self.alarm.until:
            self.alarm.ring()

    def put_all(self, entries: Sequence[Entry]) -> None:
        """Take in many new messages, at once."""
        for begin in range(0, len(entries), INBOX):
            self.inbox += entries[begin : begin + INBOX]
            self.sort_in()
        if self.next_due() < self.alarm.until:
            self.alarm.ring()

    def sort_in(self) -> None:
        """Empty the inbox: every method that needs the order does this first."""
        inbox = self.inbox
        if not inbox:
            return
        self._waiting += len(inbox)
        dues = list(map(_DUE, inbox))
        if self._index is None:
            self._near.add_all(inbox, dues)
        else:
            numbers = list(map(_NUMBER, inbox))
            self._index.put_all(numbers, list(map(_BODY, inbox)))
            self._near.add_all(list(zip(dues, numbers, strict=True)), dues)
        inbox.clear()

    @property
    def waiting(self) -> int:
        """How many messages wait that have not failed yet."""
        return self._waiting + len(self.inbox)

    def put_back(self, entry: Entry) -> None:
        """Take in a message that waits for another time than its execute-at, or that was here before."""
        due, number, body = entry
        if number in self._pairs_left:
            # It has its place still, by the time with which it left. One that has another time when it comes
            # back has another number, too (`Pending.reschedule`), or no place any more (`wall.move_all`).
            assert self._index is not None  # noqa: S101 (or it could not have been lent)
            self._count_in(entry)
            self._pairs_left.discard(number)
            self._index.put(number, body)
            self._dead -= 1
        else:
            self._push(self._later if due >= self.horizon else self._near, entry)
        if due >= self.horizon:
            self.later_arrived.unpark()
        elif due < self.alarm.until:
            self.alarm.ring()

    def put_off(self, entry: Entry) -> None:
        """Take in a message for `take_later` again, when it is due and not before."""
        self._push(self._put_off, entry)

    def set_aside(self, entry: Entry) -> None:
        """Take in a message that nobody here is going to take out again; it stays pending."""
        due, number, body = entry
        self._push(self.aside, (max(due, execute_at_of(due, body)), number, body))

    def due(self, now: float, most: int) -> list[Entry]:
        """The next messages that are due, up to `most` of them and perhaps fewer. `take` takes them out."""
        if self.inbox:
            self.sort_in()
        index = self._index
        if index is None:
            return self._near.run(now, most)  # type: ignore[return-value]  # then slots are entries
        while slots := self._near.run(now, most):
            numbers = list(map(_NUMBER, slots))
            bodies = index.get_all(numbers)
            if self._dead and bodies[0] is None:
                self._near.drop_heads(self.drops)
                continue
            if self._dead and None in bodies:
                del bodies[bodies.index(None) :]  # cancelled; the next call begins after it
            return list(zip(map(_DUE, slots), numbers, bodies, strict=False))  # type: ignore[arg-type]
        return []

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of the messages that `due` has just returned, as many as are given."""
        self._near.drop(len(entries))
        self.claim(entries)

    def take_one(self, now: float, piles: Piles | None = None) -> Entry | None:
        """Take out the next message that is due: `due` and `take` in one; `piles` where it is not near."""
        if self.inbox:
            self.sort_in()
        piles = self._near if piles is None else piles
        while (slot := piles.pop(now)) is not None:
            if self._index is None:
                entry: Entry = slot  # type: ignore[assignment]  # as in `due`
            elif (body := self._index.pop(slot[1])) is not None:
                entry = (slot[0], slot[1], body)
            else:
                self.drops(slot)
                continue
            self.taken += 1
            if self.retrying or self._overdue:
                self._count_out(entry[1], entry[2])
            else:
                self._waiting -= 1
            return entry
        return None

    def take_later(self, now: float) -> Entry | None:
        """Take out a message from beyond the horizon, or one whose time to be tried again has come."""
        return self.take_one(now, self._put_off) or self.take_one(math.inf, self._later)

    def aside_in_turn(self) -> list[Entry]:
        """What is set aside: that which was tried least comes first."""
        return sorted(self.living(self.aside.slots()), key=lambda entry: (attempt_of(entry[2]), entry))

    def take_aside(self, entry: Entry) -> None:
        """Take that out."""
        self.aside.heap[:] = [slot for slot in self.aside.heap if slot[1] != entry[1]]
        heapify(self.aside.heap)
        self.claim([entry])

    def sort_out(self, now: float, most: int) -> list[Entry]:
        """Take some of what is due out of the order: it is to stand in a line at once."""
        entries = self.due(now, most)
        self._near.drop(len(entries))
        return entries

    def has_later(self, now: float) -> bool:
        """Whether there is anything for `take_later`."""
        return self.next_later() <= now or bool(self._later)

    def near(self) -> tuple[int, float]:
        """How many messages are due before the horizon, and when the last of them is; -inf without any.

        Those that were cancelled and not swept yet count for the second.
        """
        self.mix()
        count, last = self._near.extent()
        if self._dead:
            count = len(self.living(self._near.slots()))
        return count, last

    def next_in_order(self) -> float:
        """When the next message is due that stands in no line; infinite if there is none."""
        if self.inbox:
            self.sort_in()
        self._drop_dead_heads()
        return _due(self._near)

    def next_due(self) -> float:
        """When the next message is due, in seconds on Trio's clock; infinite if there is none."""
        due = self.next_in_order()
        return min([due, *map(self.first_due, self.lines.values())]) if self.lines else due

    def first_due(self, line: deque[Slot]) -> float:
        """When the first message in this line is due; infinite if there is none."""
        while self._dead and line and self.drops(line[0]):
            line.popleft()
        return line[0][0] if line else math.inf

    def next_later(self) -> float:
        """When the next message that was put off may be taken; infinite if there is none."""
        self._drop_dead_heads()
        return _due(self._put_off)

    def oldest(self) -> float:
        """The earliest execute-at of all, retries included; infinite if there is none."""
        overdue = min(self._overdue.values(), default=math.inf)  # what is put off is among these
        return min(overdue, self.next_due(), _due(self._later), _due(self.aside))

    @property
    def is_empty(self) -> bool:
        """Whether nothing within the horizon is left to take."""
        return self.next_due() == math.inf

    def find(self, number: int) -> Body | None:
        """The body of the message with this number, or None. Without an index, all is searched."""
        self.sort_in()
        if self._index is not None:
            return self._index.get(number)
        return next((entry[2] for entry in self.living(self._slots(number)) if entry[1] == number), None)

    def far(self, horizon: float) -> list[Slot]:
        """(due, number) of what waits until `horizon` or longer and has not failed, the latest first."""
        far = [entry[:2] for entry in self.entries() if entry[0] >= horizon and not failures_of(entry[2])]
        return far[::-1]  # type: ignore[return-value]

    def entries(self) -> list[Entry]:
        """Every message, in due order."""
        self.sort_in()
        return sorted(self.living(self._slots()))

    def living(self, slots: Iterable[Slot]) -> list[Entry]:
        """The messages that these stand for, as far as they are still there."""
        index = self._index
        if index is None:
            return list(slots)  # type: ignore[arg-type]  # as in `due`
        return [(slot[0], slot[1], body) for slot in slots if (body := index.get(slot[1])) is not None]

    def count(self, line: deque[Slot]) -> int:
        """How many stand in this line."""
        return len(self.living(line)) if self._dead else len(line)

    def lend(self, number: int) -> Body | None:
        """Take out the message with this number, or None if it is not here. Needs an index.

        It comes back by `put_back`, to its place if it still has one, or never, by `forget`.
        """
        if self._index is None:
            raise RuntimeError("cancel needs a queue with cancellable=True")
        self.sort_in()
        body = self._index.pop(number)
        if body is not None:
            self._count_out(number, body)
            self.taken += 1
            self._pairs_left.add(number)
            self._dead += 1
            if self._dead > self.waiting + self.retrying + _FEW and self._sweeping is None:
                self._sweeping = self._sweep()
            if self._sweeping is not None:
                next(self._sweeping, None)
        return body

    def forget(self, number: int) -> None:
        """The message with this number, if it is lent, does not come back."""
        self._pairs_left.discard(number)

    def clear(self) -> None:
        """Forget everything: a journal has it."""
        if self._index is not None:
            self._index = Index()
        self._near, self._later, self._put_off, self.aside = Piles(), Piles(), Piles(), Piles()
        self._sweeping = None
        self._dead = self._waiting = self.retrying = 0
        for each in (self.inbox, self._pairs_left, self._overdue):
            each.clear()
        for line in self.lines.values():
            line.clear()

    def mix(self) -> None:
        """Put all there is into this order: what is new, and what stands in line, to be sorted out again."""
        self.sort_in()
        for line in self.lines.values():
            for slot in line:
                self._near.push(slot)
            line.clear()

    def set_horizon(self, horizon: float) -> None:
        """Leave to `take_later` every message due at `horizon` or after it, now and from now on."""
        self.mix()
        self.horizon = horizon
        self._later = self._near
        self._near = self._later.cut(horizon)
        self._sweeping = None  # it begins anew, in both

    def _push(self, piles: Piles, entry: Entry) -> None:
        self._count_in(entry)
        if self._index is not None:
            self._index.put(entry[1], entry[2])
        piles.push(self.slot(entry))

    def slot(self, entry: Entry) -> Slot:
        """What stands for it in the order, or in a line."""
        return entry if self._index is None else entry[:2]

    def claim(self, entries: list[Entry]) -> None:
        """These are out of the order, and somebody's: to end, or to bring back."""
        self.taken += len(entries)
        if self._index is not None:
            self._index.drop_all(list(map(_NUMBER, entries)))
        if not (self.retrying or self._overdue):
            self._waiting -= len(entries)
            return
        for _, number, body in entries:
            self._count_out(number, body)

    def _count_in(self, entry: Entry) -> None:
        due, number, body = entry
        if failures_of(body):
            self.retrying += 1
        else:
            self._waiting += 1
        execute_at = execute_at_of(due, body)
        if execute_at != due:
            self._overdue[number] = execute_at

    def _count_out(self, number: int, body: Body) -> None:
        if failures_of(body):
            self.retrying -= 1
        else:
            self._waiting -= 1
        self._overdue.pop(number, None)

    def _slots(self, number: int | None = None) -> Iterator[Slot]:
        for piles in self._all:
            yield from piles.slots(number)
        for line in self.lines.values():
            yield from line

    @property
    def _all(self) -> tuple[Piles, ...]:
        return self._near, self._later, self._put_off, self.aside

    def drops(self, slot: Slot) -> bool:
        """Whether this is dead: then whoever asks drops it."""
        if self._index is None or self._index.get(slot[1]) is not None:
            return False
        self._dead -= 1
        self._pairs_left.discard(slot[1])  # a message that is lent and comes back needs a new place
        return True

    def _drop_dead_heads(self) -> None:
        if self._dead:
            for piles in self._all:
                piles.drop_heads(self.drops)

    def _sweep(self) -> Iterator[None]:
        for piles in self._all:
            yield from piles.sweep(self.drops)
        for line in list(self.lines.values()):
            living = list(filterfalse(self.drops, line))
            line.clear()
            line.extend(living)
            yield
        self._sweeping = None


def _due(piles: Piles) -> float:
    slot = piles.first()
    return math.inf if slot is None else slot[0]
