"""From one thread to the loop of another, many items at a time.

A hop costs more than what most items carry: what has gathered between two turns of the loop comes over in
one call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat
from typing import Any, Final, Generic, TypeVar

_T = TypeVar("_T")
_FIRST: Final[Callable[[deque[Any]], Any]] = deque.popleft


def for_a_thread(seconds: float) -> float | None:
    """So long a thread is to wait: None, for ever, where that is more than it can (292 years)."""
    return None if seconds > threading.TIMEOUT_MAX else seconds


class Hop(Generic[_T]):
    """Items on their way to a loop, in the order in which they were sent. In any thread.

    `post` has a function called on the loop (`TrioToken.run_sync_soon`, `loop.call_soon_threadsafe`), and
    `arrive` is called there with what has gathered, at most `most` of it in one turn of the loop.
    """

    __slots__ = ("_arrive", "_called", "_items", "_most", "_post", "add")

    def __init__(
        self,
        post: Callable[[Callable[[], object]], object],
        arrive: Callable[[list[_T]], object],
        *,
        most: int = 1_000_000,
    ) -> None:
        self._post = post
        self._arrive = arrive
        self._most = most
        self._items: deque[_T] = deque()
        self.add: Callable[[_T], object] = self._items.append  # itself: a call more would cost as much again
        """Lets an item go with the next one that is sent, or with the next `call`."""
        self._called = False  # whether the loop knows that there is something

    def __len__(self) -> int:
        return len(self._items)

    def send(self, item: _T) -> None:
        """Send an item over. Raises what `post` raises where the loop has ended; the item stays here."""
        self._items.append(item)
        if not self._called:
            self.call()

    def call(self) -> None:
        """Let the loop come for what there is."""
        if self._called:
            return
        self._called = True  # two threads may both come here: one call too many finds nothing to do
        try:
            self._post(self._come)
        except BaseException:
            self._called = False
            raise

    def take(self, most: int | None = None) -> list[_T]:
        """Take what has gathered: in any thread."""
        # Each item is taken once, whoever else takes or adds some meanwhile: `popleft` is one step for all
        # threads. Those of one who adds keep their order for one who takes; two who take share them.
        items = self._items
        taken: list[_T] = []
        count = len(items) if most is None else min(most, len(items))
        if count:
            with suppress(IndexError):  # another thread has taken the rest
                taken.extend(map(_FIRST, repeat(items, count)))  # a loop in C, for each message
        return taken

    def _come(self) -> None:
        # Before the first is taken: who adds an item after the last was taken must call again, and he
        # looks at this flag after he has added it.
        self._called = False
        taken = self.take(self._most)
        if self._items and not self._called:
            # At its end a loop runs what it was asked to, and can't be asked any more: what is left then
            # stays here, for whoever ends the loop to take.
            with suppress(RuntimeError):
                self.call()
        if taken:
            self._arrive(taken)
