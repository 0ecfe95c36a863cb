"""The waiting messages, in due order, and what is known of each.

The order is kept by the piles. What is said of a message beyond its place in that order is kept here: how
many wait, how many of them wait to be tried again, and, while the queue drains, which of them are due
beyond its horizon and are handed back instead of sent. New messages stand in an inbox, which every method
that needs the order empties first: to sort in many at a time costs a fraction of one by one.

Cancelling. With an index, the piles carry only (due, number), and the index owns what the number stands
for: cancelling takes it out there, which frees the payload at once, and leaves a dead pair behind. When the
dead outnumber the living, everything is swept: each cancelling does a step of that, which is a block of a
lane, or the heap as a whole. A message that is lent leaves such a pair, too, and may come back under its
number. If the pair is still there the message is there again; a second one would be sent a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import filterfalse
from operator import itemgetter
from typing import Final

import trio

from localdelay.entry import Body, Entry, attempt_of, execute_at_of, failures_of

from .bodies import Index
from .lanes import Piles, Slot

INBOX = 256
"""So many new messages are sorted in at once, or fewer if somebody needs the order before."""
_FEW = 64
_DUE: Final = itemgetter(0)
_NUMBER: Final = itemgetter(1)
_BODY: Final = itemgetter(2)


class Schedule:
    """Messages in due order. All methods are synchronous, and call nobody but `on_earlier`."""

    def __init__(self, *, indexed: bool) -> None:
        self._near = Piles()
        self._index = Index() if indexed else None
        self._dead = 0
        self._sweeping: Iterator[int] | None = None
        self.inbox: list[Entry] = []
        """New messages, in the order of their puts. Sorted in when there is need to, many at a time."""
        self._waiting = 0
        self.retrying = 0
        self.taken = 0
        """How many are out of the order and have not ended: they are being sent, or lent."""
        self._overdue: dict[int, float] = {}  # number to execute-at, where that is not what it waits for
        self._oldest_overdue: list[tuple[float, int]] = []  # a heap of these, with gone ones in it
        self.horizon = math.inf
        self._later = Piles()
        self._pairs_left: set[int] = set()  # in the order, by number, of what is lent
        self._put_off: list[Slot] = []  # heaps
        self.aside: list[Slot] = []
        """A heap: what a drain leaves, and what goes after all else. Without a horizon only the latter."""
        self.later_arrived = trio.lowlevel.ParkingLot()
        """Unparked when a message arrives beyond the horizon."""
        self.alarm = -math.inf
        """Until when whoever takes the next message sleeps, in seconds on Trio's clock."""
        self.on_earlier: Callable[[], None] = _nobody_sleeps
        """Called when a message comes in that is due before the alarm: it would be late by the rest of it."""

    def put(self, entry: Entry) -> None:
        """Take in a new message."""
        self.inbox.append(entry)
        if len(self.inbox) >= INBOX:
            self.sort_in()
        if entry[0] < self.alarm:
            self.on_earlier()

    def put_all(self, entries: Sequence[Entry]) -> None:
        """Take in many new messages, at once."""
        for begin in range(0, len(entries), INBOX):
            self.inbox += entries[begin : begin + INBOX]
            self.sort_in()
        if self.next_due() < self.alarm:
            self.on_earlier()

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
        self._count_in(entry)
        if number in self._pairs_left:
            # It has its place still, by the time with which it left. One that has another time when it comes
            # back has another number, too (`Pending.reschedule`), or no place any more (`wall.move_all`).
            assert self._index is not None  # noqa: S101 (or it could not have been lent)
            self._pairs_left.discard(number)
            self._index.put(number, body)
            self._dead -= 1
        else:
            (self._later if due >= self.horizon else self._near).push(self._slot(due, number, body))
        if due >= self.horizon:
            self.later_arrived.unpark()
        elif due < self.alarm:
            self.on_earlier()

    def put_off(self, entry: Entry) -> None:
        """Take in a message for `take_later` again, when it is due and not before."""
        self._count_in(entry)
        heappush(self._put_off, self._slot(*entry))

    def set_aside(self, entry: Entry) -> None:
        """Take in a message that nobody here is going to take out again; it stays pending."""
        due, number, body = entry
        self._count_in(entry)
        heappush(self.aside, self._slot(max(due, execute_at_of(due, body)), number, body))

    def due(self, now: float, most: int) -> list[Entry]:
        """The next messages that are due, up to `most` of them and perhaps fewer. `take` takes them out."""
        if self.inbox:
            self.sort_in()
        if self._dead:
            self._drop_dead_heads()
        slots = self._near.run(now, most)
        if self._index is None:
            return slots  # type: ignore[return-value]  # without an index, slots are entries
        if not slots:
            return []
        numbers = list(map(_NUMBER, slots))
        bodies = self._index.get_all(numbers)
        if self._dead and None in bodies:
            del bodies[bodies.index(None) :]  # cancelled; the next call begins after it
        return list(zip(map(_DUE, slots), numbers, bodies, strict=False))  # type: ignore[arg-type]

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of the messages that `due` has just returned, as many as are given."""
        self._near.drop(len(entries))
        self._claim(entries)

    def take_one(self, now: float) -> Entry | None:
        """Take out the next message if it is due: `due` and `take` in one, where there are no batches."""
        if self.inbox:
            self.sort_in()
        if self._dead:
            self._drop_dead_heads()
        entry: Entry | None = self._near.pop(now)  # type: ignore[assignment]  # as in `due`
        if entry is None:
            return None
        self.taken += 1
        if self._index is not None:
            body = self._index.pop(entry[1])
            assert body is not None  # noqa: S101 (dead heads were dropped)
            entry = (entry[0], entry[1], body)
        if self.retrying or self._overdue:
            self._count_out(entry[1], entry[2])
        else:
            self._waiting -= 1
        return entry

    def take_later(self, now: float) -> Entry | None:
        """Take out a message from beyond the horizon, or one whose time to be tried again has come."""
        self._drop_dead_heads()
        if self._put_off and self._put_off[0][0] <= now:
            slot = heappop(self._put_off)
        elif slots := self._later.run(math.inf, 1):
            slot = slots[0]
            self._later.drop(1)
        else:
            return None
        entries = self.living([slot])
        self._claim(entries)
        return entries[0]

    def aside_in_turn(self) -> list[Entry]:
        """What is set aside: that which was tried least comes first."""
        before = len(self.aside)
        self.aside[:] = filterfalse(self._drops, self.aside)
        heapify(self.aside)
        self._dead -= before - len(self.aside)
        return sorted(self.living(self.aside), key=lambda entry: (attempt_of(entry[2]), entry))

    def take_aside(self, entry: Entry) -> None:
        """Take that out."""
        self.aside[:] = [slot for slot in self.aside if slot[1] != entry[1]]
        heapify(self.aside)
        self._claim([entry])

    def has_later(self, now: float) -> bool:
        """Whether there is anything for `take_later`."""
        self._drop_dead_heads()
        return self._later.first() is not None or (bool(self._put_off) and self._put_off[0][0] <= now)

    def near(self) -> tuple[int, float]:
        """How many messages are due before the horizon, and when the last of them is; -inf without any.

        Those that were cancelled and not swept yet count for the second.
        """
        self.mix()
        count, last = self._near.extent()
        if self._dead:
            count = len(self.living(self._near.slots()))
        return count, last

    def next_due(self) -> float:
        """When the next message is due, in seconds on Trio's clock; infinite if there is none."""
        if self.inbox:
            self.sort_in()
        self._drop_dead_heads()
        return _due(self._near.first())

    def next_later(self) -> float:
        """When the next message that was put off may be taken; infinite if there is none."""
        self._drop_dead_heads()
        return self._put_off[0][0] if self._put_off else math.inf

    def oldest(self) -> float:
        """The earliest execute-at of all, retries included; infinite if there is none."""
        overdue = self._oldest_overdue
        while overdue and overdue[0][1] not in self._overdue:
            heappop(overdue)
        next_due = self.next_due()
        heads = (heap[0][0] for heap in (overdue, self.aside) if heap)  # what is put off is a retry
        return min(next_due, _due(self._later.first()), *heads)

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
                self._dead -= next(self._sweeping, 0)
        return body

    def forget(self, number: int) -> None:
        """The message with this number, if it is lent, does not come back."""
        self._pairs_left.discard(number)

    def far(self, horizon: float) -> list[Slot]:
        """(due, number) of what waits until `horizon` or longer and has not failed, the latest first."""
        far = [entry[:2] for entry in self.entries() if entry[0] >= horizon and not failures_of(entry[2])]
        far.reverse()
        return far  # type: ignore[return-value]

    def entries(self) -> list[Entry]:
        """Every message, in due order."""
        self.sort_in()
        return sorted(self.living(self._slots()))

    def clear(self) -> None:
        """Forget everything: a journal has it."""
        if self._index is not None:
            self._index = Index()
        self._near, self._later = Piles(), Piles()
        self._sweeping = None
        self._dead = self._waiting = self.retrying = 0
        for each in (self.inbox, self._pairs_left, self._overdue, self._oldest_overdue, self._put_off):
            each.clear()
        self.aside.clear()

    def mix(self) -> None:
        """Put all there is into this order: what is new, and what was sorted out of it."""
        self.sort_in()

    def set_horizon(self, horizon: float) -> None:
        """Leave to `take_later` every message due at `horizon` or after it, now and from now on."""
        self.mix()
        self.horizon = horizon
        self._later = self._near
        self._near = self._later.cut(horizon)

    def _slot(self, due: float, number: int, body: Body) -> Slot:
        if self._index is None:
            return (due, number, body)
        self._index.put(number, body)
        return (due, number)

    def living(self, slots: Iterable[Slot]) -> list[Entry]:
        """The messages that these stand for, as far as they are still there."""
        index = self._index
        if index is None:
            return list(slots)  # type: ignore[arg-type]  # as in `due`
        return [(slot[0], slot[1], body) for slot in slots if (body := index.get(slot[1])) is not None]

    def _claim(self, entries: list[Entry]) -> None:
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
        if execute_at == due:
            return
        self._overdue[number] = execute_at
        heappush(self._oldest_overdue, (execute_at, number))
        if len(self._oldest_overdue) > 2 * len(self._overdue) + _FEW:
            self._oldest_overdue = [(execute_at, key) for key, execute_at in self._overdue.items()]
            heapify(self._oldest_overdue)

    def _count_out(self, number: int, body: Body) -> None:
        if failures_of(body):
            self.retrying -= 1
        else:
            self._waiting -= 1
        self._overdue.pop(number, None)

    def _slots(self, number: int | None = None) -> Iterator[Slot]:
        yield from self._near.slots(number)
        yield from self._later.slots(number)
        yield from self._put_off
        yield from self.aside

    def _drops(self, slot: Slot) -> bool:
        if self._index is None or self._index.get(slot[1]) is not None:
            return False
        # Whoever asks drops what is dead: a message that is lent and comes back needs a new place.
        self._pairs_left.discard(slot[1])
        return True

    def _drop_dead_heads(self) -> None:
        if not self._dead:
            return
        self._dead -= self._near.drop_heads(self._drops) + self._later.drop_heads(self._drops)
        for heap in (self._put_off, self.aside):
            while heap and self._drops(heap[0]):
                heappop(heap)
                self._dead -= 1

    def _sweep(self) -> Iterator[int]:
        yield from self._near.sweep(self._drops)
        yield from self._later.sweep(self._drops)
        for heap in (self._put_off, self.aside):
            before = len(heap)
            heap[:] = filterfalse(self._drops, heap)
            heapify(heap)
            yield before - len(heap)
        self._sweeping = None


def _nobody_sleeps() -> None:
    pass


def _due(slot: Slot | None) -> float:
    return math.inf if slot is None else slot[0]
