"""What the primary gave for the messages that it took, so that they can be cancelled there."""

from __future__ import annotations

import threading
from enum import Enum
from heapq import heapify, heappop, heappush

MOST = 100_000
"""Messages whose handles are kept, each until it is due; those that are due soonest are forgotten first."""
_FEW = 64


class Cancelled(Enum):
    """Where a message was that is not to be sent any more."""

    LOCAL = "local"
    """It was held here, and will never be sent."""
    ASKED = "asked"
    """The primary was asked to cancel it."""
    UNKNOWN = "unknown"
    """Nobody knows it: it is being sent, it has ended, or it never was."""


class Handles:
    """By id, for messages that are not due yet. In any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # as a gate's
        self._kept: dict[str, tuple[float, object]] = {}
        self._by_due: list[tuple[float, str]] = []  # a heap of these, with gone ones in it

    def remember(self, id: str, due: float, handle: object, now: float) -> None:
        """The primary has taken this message, or may have; it is due then."""
        with self._lock:
            kept, by_due = self._kept, self._by_due
            kept[id] = due, handle
            heappush(by_due, (due, id))
            # By when they are due, for with several delays what came first may be there for longest. And two
            # for one that is kept: what is due goes sooner or later, and none waits long.
            for _ in range(2):
                if by_due and (by_due[0][0] <= now or len(kept) > MOST):
                    its_due, its_id = heappop(by_due)
                    if its_id in kept and kept[its_id][0] == its_due:
                        del kept[its_id]
            if len(by_due) > 2 * len(kept) + _FEW:
                by_due[:] = [(its_due, its_id) for its_id, (its_due, _handle) in kept.items()]
                heapify(by_due)

    def get(self, id: str, now: float) -> tuple[object] | None:
        """What it gave, or None where it has not this message, or it is due."""
        with self._lock:
            kept = self._kept.get(id)
            return None if kept is None or kept[0] <= now else (kept[1],)

    def forget(self, id: str) -> None:
        """It was asked to cancel this one."""
        with self._lock:
            self._kept.pop(id, None)
