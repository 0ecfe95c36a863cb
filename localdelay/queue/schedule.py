"""The waiting messages, in due order, and what is known of each.

The order is kept by the piles. What is said of a message beyond its place in that order is kept here: how
many wait, how many of them wait to be tried again, and, while the queue drains, which of them are due
beyond its horizon and are handed back instead of sent. New messages stand in an inbox, which every method
that needs the order empties first: to sort in many at a time costs a fraction of one by one. In a queue with
keys, what is due stands in the line of its key, out of the order, and waits there as before.

What is cancelled or lent leaves a dead pair in the order (`living`). When the dead outnumber the living,
everything is swept: each cancelling does a step of that, which is a block of a lane, a line, or a heap as a
whole.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Final

import trio

from localdelay.entry import Body, Entry, attempt_of, execute_at_of, failures_of

from .alarm import Alarm
from .lanes import Piles, Slot
from .lines import Line
from .living import Living

INBOX = 256
"""So many new messages are sorted in at once, or fewer if somebody needs the order before."""
_FEW = 64
_DUE: Final = itemgetter(0)
_NUMBER: Final = itemgetter(1)


class Schedule:
    """Messages in due order. All methods are synchronous, and call nobody but the alarm."""

    def __init__(self, *, indexed: bool) -> None:
        self.alarm = Alarm()
        """Rung when a message comes in that is due before: it would be late by the rest of that."""
        self._living = Living(indexed=indexed)
        self._sweeping: Iterator[None] | None = None
        self.inbox: list[Entry] = []
        """New messages, in the order of their puts. Sorted in when there is need to, many at a time. It is
        this list for good: `DelayQueue.put_nowait` appends to it without asking for it."""
        self._waiting = 0
        self.retrying = 0
        self.taken = 0
        """How many are out of the order and have not ended: they are being sent, or lent."""
        self._execute_ats: dict[int, float] = {}  # number to execute-at, where that is not what it waits for
        self.horizon = math.inf
        self._near = Piles()
        self._later = Piles()
        self._put_off = Piles()
        self.aside = Piles()
        """What a drain leaves, and what goes after all else. Without a horizon only the latter."""
        self.lines: dict[Hashable, Line] = {}
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
        dues, numbers, bodies = map(list, zip(*inbox, strict=True))
        if (index := self._living.index) is None:
            self._near.add_all(inbox, dues)
        else:
            index.put_all(numbers, bodies)
            self._near.add_all(list(zip(dues, numbers, strict=True)), dues)
        inbox.clear()

    @property
    def waiting(self) -> int:
        """How many messages wait that have not failed yet."""
        return self._waiting + len(self.inbox)

    def put_back(self, entry: Entry) -> None:
        """Take in a message that waits for another time than its execute-at, or that was here before."""
        due = entry[0]
        if self._living.comes_back(entry):
            self._count_in(entry)
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
        """Take in a message that stands outside of the order: of a drain for good, or until `take_aside`."""
        due, number, body = entry
        self._push(self.aside, (max(due, execute_at_of(due, body)), number, body))

    def due(self, now: float, most: int) -> list[Entry]:
        """The next messages that are due, up to `most` of them and perhaps fewer. `take` takes them out."""
        if self.inbox:
            self.sort_in()
        living, index = self._living, self._living.index
        if index is None:
            return self._near.run(now, most)  # type: ignore[return-value]  # then slots are entries
        while slots := self._near.run(now, most):
            numbers = list(map(_NUMBER, slots))
            bodies = index.get_all(numbers)
            if living.dead and bodies[0] is None:
                self._near.drop_heads(living.drops)
                continue
            if living.dead and None in bodies:
                del bodies[bodies.index(None) :]  # cancelled; the next call begins after it
            return list(zip(map(_DUE, slots), numbers, bodies, strict=False))  # type: ignore[arg-type]
        return []

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of the messages that `due` has just returned, as many as are given."""
        self._near.drop(len(entries))
        self._count_taken(entries)

    def take_one(self, now: float, piles: Piles | None = None) -> Entry | None:
        """Take out the next message that is due: `due` and `take` in one; `piles` where it is not near."""
        if self.inbox:
            self.sort_in()
        piles, index = self._near if piles is None else piles, self._living.index
        while (slot := piles.pop(now)) is not None:
            if index is None:
                entry: Entry = slot  # type: ignore[assignment]  # as in `due`
            elif (body := index.pop(slot[1])) is not None:
                entry = (slot[0], slot[1], body)
            else:
                self._living.drops(slot)
                continue
            self.taken += 1
            if self.retrying or self._execute_ats:
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
        return sorted(self._living.of(self.aside.slots()), key=lambda entry: (attempt_of(entry[2]), entry))

    def take_aside(self, entry: Entry) -> None:
        """Take that out."""
        self.aside.remove(entry[1])
        self._count_taken([entry])

    def sort_out(self, entries: list[Entry]) -> None:
        """Take these, which `due` has just returned, out of the order: they stand in line from now on."""
        self._near.drop(len(entries))

    def has_later(self, now: float) -> bool:
        """Whether there is anything for `take_later`."""
        return self.next_later() <= now or bool(self._later)

    def near(self) -> tuple[int, float]:
        """How many messages are due before the horizon, and when the last of them is; -inf without any.

        Those that were cancelled and not swept yet count for the second.
        """
        self.sort_in()
        count, last = self._near.extent()
        lines = [line.slots for line in self.lines.values() if line.slots]
        last = max(last, *(slots[-1][0] for slots in lines), -math.inf)
        if self._living.dead:
            return len(self._living.of(chain(self._near.slots(), *lines))), last
        return count + sum(map(len, lines)), last

    def next_in_order(self) -> float:
        """When the next message is due that stands in no line; infinite if there is none."""
        if self.inbox:
            self.sort_in()
        self._drop_dead_heads()
        return _due(self._near)

    def next_due(self) -> float:
        """When the next message is due, in seconds on Trio's clock; infinite if there is none."""
        due = self.next_in_order()
        return min(due, *(line.next_due() for line in self.lines.values())) if self.lines else due

    def line(self, key: Hashable) -> Line:
        """The line of this key, an empty one if there was none."""
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key, self._living, self._count_taken)
        return line

    def next_later(self) -> float:
        """When the next message that was put off may be taken; infinite if there is none."""
        self._drop_dead_heads()
        return _due(self._put_off)

    def oldest(self) -> float:
        """The earliest execute-at of all, retries included; infinite if there is none."""
        overdue = min(self._execute_ats.values(), default=math.inf)  # what is put off is among these
        return min(overdue, self.next_due(), _due(self._later), _due(self.aside))

    @property
    def is_empty(self) -> bool:
        """Whether nothing within the horizon is left to take."""
        return self.next_due() == math.inf

    def find(self, number: int) -> Body | None:
        """The body of the message with this number, or None. Without an index, all is searched."""
        self.sort_in()
        if self._living.index is not None:
            return self._living.index.get(number)
        return next((entry[2] for entry in self._living.of(self._slots(number)) if entry[1] == number), None)

    def far(self, horizon: float) -> list[Slot]:
        """(due, number) of what waits for an execute-at of `horizon` or later, the latest first.

        Not what has failed, nor what is overdue and waits for its place.
        """
        far = [
            (due, number)
            for due, number, body in self.entries()
            if due >= horizon and due == execute_at_of(due, body) and not failures_of(body)
        ]
        return far[::-1]  # type: ignore[return-value]

    def entries(self) -> list[Entry]:
        """Every message, in due order."""
        self.sort_in()
        return sorted(self._living.of(self._slots()))

    def lend(self, number: int) -> Body | None:
        """Take out the message with this number, or None if it is not here. Needs an index.

        It comes back by `put_back`, to its place if it still has one, or never, by `forget`.
        """
        if self._living.index is None:
            raise RuntimeError("cancel needs a queue with cancellable=True")
        self.sort_in()
        body = self._living.lend(number)
        if body is not None:
            self._count_out(number, body)
            self.taken += 1
            if self._living.dead > self.waiting + self.retrying + _FEW and self._sweeping is None:
                self._sweeping = self._sweep()
            if self._sweeping is not None:
                next(self._sweeping, None)
        return body

    def forget(self, number: int) -> None:
        """The message with this number, if it is lent, does not come back."""
        self._living.forget(number)

    def clear(self) -> None:
        """Forget everything: a journal has it."""
        self._living.clear()
        self._near, self._later, self._put_off, self.aside = Piles(), Piles(), Piles(), Piles()
        self._sweeping = None
        self._waiting = self.retrying = 0
        self.inbox.clear()
        self._execute_ats.clear()
        for line in self.lines.values():
            line.slots.clear()

    def mix(self) -> None:
        """Put all there is into this order: what is new, and what stands in line, to be sorted out again."""
        self.sort_in()
        for line in self.lines.values():
            for slot in line.slots:
                self._near.push(slot)
            line.slots.clear()

    def set_horizon(self, horizon: float) -> None:
        """Leave to `take_later` every message due at `horizon` or after it, now and from now on."""
        self.mix()
        self.horizon = horizon
        self._later = self._near
        self._near = self._later.cut(horizon)
        self._sweeping = None  # it begins anew, in both

    def _push(self, piles: Piles, entry: Entry) -> None:
        self._count_in(entry)
        piles.push(self._living.put(entry))

    def _count_taken(self, entries: list[Entry]) -> None:
        """These are out of the order, and somebody's: to end, or to bring back."""
        self.taken += len(entries)
        if (index := self._living.index) is not None:
            index.drop_all(list(map(_NUMBER, entries)))
        if not (self.retrying or self._execute_ats):
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
            self._execute_ats[number] = execute_at

    def _count_out(self, number: int, body: Body) -> None:
        if failures_of(body):
            self.retrying -= 1
        else:
            self._waiting -= 1
        self._execute_ats.pop(number, None)

    def _slots(self, number: int | None = None) -> Iterator[Slot]:
        for piles in self._all:
            yield from piles.slots(number)
        for line in self.lines.values():
            yield from line.slots

    @property
    def _all(self) -> tuple[Piles, ...]:
        return self._near, self._later, self._put_off, self.aside

    def _drop_dead_heads(self) -> None:
        if self._living.dead:
            for piles in self._all:
                piles.drop_heads(self._living.drops)

    def _sweep(self) -> Iterator[None]:
        for piles in self._all:
            yield from piles.sweep(self._living.drops)
        for line in list(self.lines.values()):
            line.sweep()
            yield
        self._sweeping = None


def _due(piles: Piles) -> float:
    slot = piles.first()
    return math.inf if slot is None else slot[0]
