"""What the primary gave for the messages that it took, so that they can be cancelled there."""

from __future__ import annotations

import threading
from collections import OrderedDict
from enum import Enum

MOST = 100_000
"""Messages whose handles are kept, each until it is due; the oldest are forgotten first."""


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
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, object]] = OrderedDict()

    def keep(self, id: str, due: float, handle: object, now: float) -> None:
        """The primary has taken this message, or may have; it is due then."""
        with self._lock:
            self._kept.pop(id, None)
            self._kept[id] = due, handle
            for _ in range(2):  # for one that is kept: what is due goes sooner or later, and none waits long
                oldest, (due, _handle) = next(iter(self._kept.items()))
                if due > now and len(self._kept) <= MOST:
                    break
                del self._kept[oldest]
                if not self._kept:
                    break

    def get(self, id: str, now: float) -> tuple[object] | None:
        """What it gave, or None where it has not this message, or it is due."""
        with self._lock:
            kept = self._kept.get(id)
            return None if kept is None or kept[0] <= now else (kept[1],)

    def forget(self, id: str) -> None:
        """It was asked to cancel this one."""
        with self._lock:
            self._kept.pop(id, None)
