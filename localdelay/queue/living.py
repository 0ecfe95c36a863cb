"""Which of what stands in the order still stands for a message.

With an index, the order carries only (due, number), and the index owns what the number stands for: to cancel
a message takes it out there, which frees the payload at once, and leaves a dead pair behind, which whoever
comes upon it drops. A message that is lent leaves such a pair, too, and may come back under its number. If
the pair is still there the message is there again; a second one would be sent a second time.
"""

from __future__ import annotations

from collections.abc import Iterable

from localdelay.entry import Body, Entry

from .bodies import Index
from .lanes import Slot


class Living:
    """The living, by number. Without an index all are, for nothing can be taken out of the midst."""

    __slots__ = ("_left", "dead", "index")

    def __init__(self, *, indexed: bool) -> None:
        self.index = Index() if indexed else None
        """The bodies; None where each stands in the order itself."""
        self.dead = 0
        """Pairs in the order that stand for nothing."""
        self._left: set[int] = set()  # of these, by number, what is lent

    def slot(self, entry: Entry) -> Slot:
        """What stands for it in the order, or in a line."""
        return entry if self.index is None else entry[:2]

    def of(self, slots: Iterable[Slot]) -> list[Entry]:
        """The messages that these stand for."""
        index = self.index
        if index is None:
            return list(slots)  # type: ignore[arg-type]  # then slots are entries
        return [(slot[0], slot[1], body) for slot in slots if (body := index.get(slot[1])) is not None]

    def drops(self, slot: Slot) -> bool:
        """Whether this is dead: then whoever asks drops it."""
        if self.index is None or self.index.get(slot[1]) is not None:
            return False
        self.dead -= 1
        self._left.discard(slot[1])  # a message that is lent and comes back needs a new place
        return True

    def put(self, entry: Entry) -> Slot:
        """Keep its body; what is returned is to stand in the order."""
        if self.index is not None:
            self.index.put(entry[1], entry[2])
        return self.slot(entry)

    def lend(self, number: int) -> Body | None:
        """Take out the body with this number, if it is here: its pair is dead until it comes back."""
        body = None if self.index is None else self.index.pop(number)
        if body is not None:
            self._left.add(number)
            self.dead += 1
        return body

    def comes_back(self, entry: Entry) -> bool:
        """Whether a message that was lent has its place still: then it is there again."""
        # By the time with which it left. One that has another time when it comes back has another number, too
        # (`Pending.reschedule`), or no place any more (`wall.move_all`).
        _, number, body = entry
        if number not in self._left or self.index is None:
            return False
        self._left.discard(number)
        self.index.put(number, body)
        self.dead -= 1
        return True

    def forget(self, number: int) -> None:
        """The message with this number, if it is lent, does not come back."""
        self._left.discard(number)

    def clear(self) -> None:
        """Nothing stands in the order any more."""
        if self.index is not None:
            self.index = Index()
        self.dead = 0
        self._left.clear()
