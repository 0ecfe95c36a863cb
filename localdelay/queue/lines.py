"""The line of one key: its due messages, out of the one order there is of all others."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice

from localdelay.entry import Entry

from .lanes import Slot
from .living import Living


class Line:
    """The due messages of one key, in due order. There is one as long as somebody stands in it."""

    def __init__(self, key: Hashable, living: Living, count_taken: Callable[[list[Entry]], None]) -> None:
        self.key = key
        self.slots: deque[Slot] = deque()
        self.place: tuple[float, int] | None = None
        """(when its first message may go, as was seen last, and that one's number)."""
        self.generation = 0
        """Of all its places in the heap of the lines this one counts."""
        self._living = living
        self._count_taken = count_taken

    def stand(self, entry: Entry) -> None:
        """Let a message stand where it belongs: nearly always at the end."""
        slots, slot = self.slots, self._living.slot(entry)
        at = len(slots)
        while at and slot[:2] < slots[at - 1][:2]:
            at -= 1
        slots.insert(at, slot)

    @property
    def first_number(self) -> int:
        """The number of the first."""
        return self.slots[0][1]

    def next_due(self) -> float:
        """When the first is due; infinite if there is none."""
        slots, living = self.slots, self._living
        while living.dead and slots and living.drops(slots[0]):
            slots.popleft()
        return slots[0][0] if slots else math.inf

    def count(self) -> int:
        """How many stand in it."""
        return len(self._living.of(self.slots)) if self._living.dead else len(self.slots)

    def due(self, now: float, most: int) -> list[Entry]:
        """The first of them, up to so many; who stands here is due, whatever `now` is."""
        self.next_due()  # whatever is dead before it is dropped
        return self._living.of(islice(self.slots, most))

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of those, as many as are given, and what is dead between them."""
        for _, number, _ in entries:
            while (slot := self.slots.popleft())[1] != number:
                self._living.drops(slot)
        self._count_taken(entries)

    def sweep(self) -> None:
        """Drop what is dead."""
        living = [slot for slot in self.slots if not self._living.drops(slot)]
        self.slots.clear()
        self.slots.extend(living)
