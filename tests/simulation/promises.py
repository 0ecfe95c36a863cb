"""What has happened, in order, and what a task does not go on before it is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from .disk import Keeps

_Note: TypeAlias = Callable[[int], None]


@attrs.frozen
class _Owed:
    note: _Note
    removal: bool
    failed: int
    sure: bool
    """Whether it has happened, whatever else did at that instant."""


class Promises:
    """Counts events, and notes from which of them on something must be in the journal."""

    def __init__(self) -> None:
        self._count = 0
        self._owed: dict[trio.lowlevel.Task | None, list[_Owed]] = {}
        self.journal: Keeps | None = None
        self.rested = 0
        """When nothing was under way last."""
        self._failed_at_rest = {False: 0, True: 0}

    def rest(self) -> None:
        """Nothing is under way: what is noticed from now on has begun after this."""
        self.rested = self.event()
        if self.journal is not None:
            self._failed_at_rest = self.journal.failed.copy()

    def event(self) -> int:
        self._count += 1
        return self._count

    def owe(
        self, note: _Note, *, removal: bool, sure: bool = True, anybody: bool = False, begun: bool = False
    ) -> None:
        """This task (or nobody) goes on only when it is written, if that does not fail.

        Its writing may have `begun`, and failed, before this was noticed.
        """
        if self.journal is None:
            return
        task = None if anybody else trio.lowlevel.current_task()
        failed = self._failed_at_rest if begun else self.journal.failed
        self._owed.setdefault(task, []).append(_Owed(note, removal, failed[removal], sure))

    def goes_on(self) -> None:
        """This task does: what it owed is written."""
        self._keep(self._owed.pop(trio.lowlevel.current_task(), []), surely=False)

    def forgive(self) -> None:
        """This task owes nothing any more: what it noted last did not come about."""
        self._owed.pop(trio.lowlevel.current_task(), None)

    def owed(self) -> list[_Owed]:
        return [owed for all_of_task in self._owed.values() for owed in all_of_task]

    def kept(self, all_owed: list[_Owed]) -> None:
        """All this is written, says a flush or the end."""
        self._keep([owed for owed in all_owed if owed.sure], surely=True)

    def _keep(self, all_owed: list[_Owed], *, surely: bool) -> None:
        event = self.event()
        for owed in all_owed:
            if surely or (self.journal is not None and self.journal.failed[owed.removal] == owed.failed):
                owed.note(event)
