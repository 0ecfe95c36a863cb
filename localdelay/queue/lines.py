"""The lines in which due messages stand, one for each key: parts of the schedule, out of its order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import filterfalse, islice
from typing import Final

from localdelay.entry import Entry

from .lanes import Slot
from .schedule import Schedule

NOWHERE: Final = False, -math.inf, 0


class Line:
    """The due messages of one key, in due order. There is one as long as somebody stands in it."""

    aside: Final = ()
    alarm = -math.inf

    def __init__(self, key: Hashable, schedule: KeyedSchedule) -> None:
        self.key = key
        self.slots: deque[Slot] = deque()
        self._schedule = schedule
        self.place: tuple[bool, float, int] = NOWHERE
        """(whether it is ready, when its first message is due, or else until when it sleeps, that one's
        number)"""
        self.turn = 0
        """Of all its places in the heaps this one counts."""

    def add(self, slot: Slot) -> None:
        """Let a message stand where it belongs: nearly always at the end."""
        slots = self.slots
        at = len(slots)
        while at and slot[:2] < slots[at - 1][:2]:
            at -= 1
        slots.insert(at, slot)

    def __len__(self) -> int:
        return self._schedule.count(self.slots)

    def next_due(self) -> float:
        """When the first is due; infinite if there is none."""
        self._schedule.drop_dead(self.slots)
        return self.slots[0][0] if self.slots else math.inf

    def due(self, now: float, most: int) -> list[Entry]:
        """The first of them, up to so many."""
        self._schedule.drop_dead(self.slots)
        return self._schedule.living(islice(self.slots, most))

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of those, as many as are given."""
        self._schedule.take_from(self.slots, entries)


class KeyedSchedule(Schedule):
    """A schedule from which what is due goes to the line of its key, and waits there as before."""

    def __init__(self, *, indexed: bool) -> None:
        super().__init__(indexed=indexed)
        self.lines: dict[Hashable, Line] = {}

    def next_unsorted(self) -> float:
        """When the next message is due that stands in no line."""
        return super().next_due()

    def sort_out(self, now: float, most: int) -> list[Entry]:
        """Take some of what is due out of the order: it is to stand in a line at once."""
        entries = self.due(now, most)
        self._near.drop(len(entries))
        return entries

    def stand(self, entry: Entry, key: Hashable) -> Line:
        """Let it stand in the line of this key."""
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key, self)
        line.add(entry if self._index is None else entry[:2])
        return line

    def count(self, slots: deque[Slot]) -> int:
        """How many these are."""
        return len(self.living(slots)) if self._dead else len(slots)

    def drop_dead(self, slots: deque[Slot]) -> None:
        """Drop what is dead and in front."""
        while self._dead and slots and self._drops(slots[0]):
            slots.popleft()
            self._dead -= 1

    def take_from(self, slots: deque[Slot], entries: list[Entry]) -> None:
        """Take these out of a line of which they are the first, but for what is dead between them."""
        for entry in entries:
            while (slot := slots.popleft())[1] != entry[1]:
                self._dead -= self._drops(slot)
        self._claim(entries)

    def next_due(self) -> float:
        """When the next message is due, in a line or not."""
        return min([super().next_due(), *(line.next_due() for line in self.lines.values())])

    def mix(self) -> None:
        """Put all there is into this order: also what stands in lines, to be sorted out again."""
        super().mix()
        for line in self.lines.values():
            for slot in line.slots:
                self._near.push(slot)
            line.slots.clear()

    def clear(self) -> None:
        """Forget everything: a journal has it."""
        super().clear()
        for line in self.lines.values():
            line.slots.clear()

    def _slots(self, number: int | None = None) -> Iterator[Slot]:
        yield from super()._slots(number)
        for line in self.lines.values():
            yield from line.slots

    def _sweep(self) -> Iterator[int]:
        for line in list(self.lines.values()):
            before = len(line.slots)
            line.slots = deque(filterfalse(self._drops, line.slots))
            yield before - len(line.slots)
        yield from super()._sweep()
