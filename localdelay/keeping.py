"""How a message ends, and who else knows what is pending: nobody, a journal, or Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import TypeAlias

import trio

from .entry import Entry
from .lateness import LatencyRecorder

Wait: TypeAlias = Callable[[], Awaitable[None]]
"""What is to be awaited until the keeper knows; None stands for no wait at all."""


class End(IntEnum):
    """What becomes of a message in the end; each is a term of the conservation equation."""

    SENT = 0
    DEAD = 1
    CANCELLED = 2
    HANDED_BACK = 3
    SPOOLED = 4


class Keeper:
    """Who else knows what is pending. This one is nobody: all of it is at risk.

    Another is told in the same step in which the queue's own books change, so that a cancellation finds both
    changed or neither. None of what it is told with awaits anything: what takes time is returned.
    """

    lapses = False
    """Whether a message may become somebody else's while it is here: only then `owns` is asked."""
    writes = False
    """Whether what it is told takes time to be written: until then a crash would undo it."""
    committing = 0
    """Puts that wait until it has their message."""
    failures = 0
    """How often it could not write."""

    def __init__(self, at_risk: Callable[[], tuple[int, int]]) -> None:
        self._at_risk = at_risk
        self.commit_time = LatencyRecorder()
        """How long it takes to write, in seconds."""
        self.minds_sends = self.lapses or self.writes
        """Whether it is asked before a send (`owns`), and told of it (`begins`)."""

    @property
    def at_risk(self) -> tuple[int, int]:
        """Messages, and their bytes, that a crash right now would lose."""
        return self._at_risk()

    def entering(self, entry: Entry, enter: Callable[[], None]) -> Wait | None:
        """A message has room and is to be pending. None: now, and the caller does it by `enter`.

        Else the caller awaits what is returned: that calls `enter` in the very step in which the message is
        known to be kept, or raises `JournalError` and does not call it.
        """
        return None

    def entered(self, entry: Entry) -> None:
        """A message is pending, and nobody waits until it is kept: until then it is at risk."""

    def failed(self, entry: Entry, again: Entry) -> bool:
        """A send of this message has failed, and `again` is what is to be tried again.

        False: it has taken the message back, which ends here as spooled.
        """
        return True

    def begins(self, entries: Sequence[Entry]) -> Wait | None:
        """These are to be sent, which may end this process. None: at once.

        Else what is returned waits until that is written, and all that it was told before; or could not be.
        """
        return None

    def moved(self, entry: Entry, again: Entry) -> None:
        """This message is `again` from now on: it has another time, and another number."""

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait | None:
        """These have ended. `why` is what a dead one was given up for, where nobody but the keeper has it."""
        return None

    def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """Those of them that are still this queue's to send."""
        return list(entries)

    def unkept(self) -> Sequence[Entry] | None:
        """What is pending and not kept: that stays when the queue ends. None: nothing is kept, all stays."""
        return None

    async def written(self) -> None:
        """Wait until what it was told so far is written, or could not be; here without letting others run."""

    async def flush(self) -> None:
        """Wait until all that is pending is kept. Raises `JournalError` if it can't be."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Let it know what it does not know yet, for a limited time; it is told nothing more."""
