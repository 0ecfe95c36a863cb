"""How a message ends, and who else knows what is pending: nobody, a journal, or Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import IntEnum
from typing import Protocol, TypeAlias

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


class Keeper(Protocol):
    """Who else knows what is pending.

    It is told in the same step in which the queue's own books change, so that a cancellation finds both
    changed or neither. None of what it is told with awaits anything: what takes time is returned.
    """

    lapses: bool
    """Whether a message may become somebody else's while it is here: only then `owns` is asked."""
    writes: bool
    """Whether what it is told takes time to be written: until then a crash would undo it."""
    committing: int
    """Puts that wait until it has their message."""
    failures: int
    """How often it could not write."""
    commit_time: LatencyRecorder
    """How long it takes to write, in seconds."""

    @property
    def at_risk(self) -> tuple[int, int]:
        """Messages, and their bytes, that a crash right now would lose."""

    def entering(self, entry: Entry, enter: Callable[[], None]) -> Wait | None:
        """A message has room and is to be pending. None: now, and the caller does it by `enter`.

        Else the caller awaits what is returned: that calls `enter` in the very step in which the message is
        known to be kept, or raises `JournalError` and does not call it.
        """

    def entered(self, entry: Entry) -> None:
        """A message is pending, and nobody waits until it is kept: until then it is at risk."""

    def failed(self, entry: Entry, again: Entry) -> bool:
        """A send of this message has failed, and `again` is what is to be tried again.

        False: it has taken the message back, which ends here as spooled.
        """

    def moved(self, entry: Entry, again: Entry) -> None:
        """This message is `again` from now on: it has another time, and another number."""

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait | None:
        """These have ended. `why` is what a dead one was given up for, where nobody but the keeper has it."""

    def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """Those of them that are still this queue's to send."""

    def unkept(self) -> Sequence[Entry] | None:
        """What is pending and not kept: that stays when the queue ends. None: nothing is kept, all stays."""

    async def written(self) -> None:
        """Wait until what it was told so far is written, or could not be."""

    async def flush(self) -> None:
        """Wait until all that is pending is kept. Raises `JournalError` if it can't be."""

    async def close(self) -> None:
        """Let it know what it does not know yet, for a limited time; it is told nothing more."""


class NoKeeper:
    """Nobody: all that is pending is at risk."""

    lapses = False
    writes = False
    committing = 0
    failures = 0

    def __init__(self, pending: Callable[[], tuple[int, int]]) -> None:
        """`pending` says how many messages and bytes are."""
        self._all = pending
        self.commit_time = LatencyRecorder()

    @property
    def at_risk(self) -> tuple[int, int]:
        """All."""
        return self._all()

    def entering(self, entry: Entry, enter: Callable[[], None]) -> Wait | None:
        """At once."""
        return None

    def entered(self, entry: Entry) -> None:
        """Nobody is told."""

    def failed(self, entry: Entry, again: Entry) -> bool:
        """It is tried again here."""
        return True

    def moved(self, entry: Entry, again: Entry) -> None:
        """Nobody is told."""

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait | None:
        """Nobody is told."""
        return None

    def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
        """All."""
        return list(entries)

    def unkept(self) -> Sequence[Entry] | None:
        """All."""
        return None

    async def written(self) -> None:
        """There is nothing to wait for, and this does not let others run either."""

    async def flush(self) -> None:
        """There is nothing to wait for."""
        await trio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Nobody is told."""
