"""Journals with faults, of which there is a copy from every moment: one in memory, one in a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from localdelay import JournalError
from localdelay.journal.record import Record
from tests.kit.journal_copies import Files, Reader, Watched, lay

from .marks import hit


@attrs.frozen
class Copy:
    """What a journal held, and which events had happened before and after that was looked at."""

    records: list[Record]
    before: int
    after: int
    instead: tuple[list[Record], ...] = ()
    """It was taken in the midst of a write: then it must be what one of these is."""


class Keeps(Protocol):
    """A journal of a scene."""

    fault: str | None
    closed: int
    failed: dict[bool, int]
    """Writes that have failed; those that only remove."""

    def snap(self) -> None:
        """Make a copy now."""

    def copies(self) -> Iterator[Copy]:
        """All copies, in order."""


class Disk:
    """A journal in memory."""

    largest = 1_000_000

    def __init__(self, held: Sequence[Record], event: Callable[[], int]) -> None:
        self.rows = {record.key: record for record in held}
        self.fault: str | None = None
        self.failed = {False: 0, True: 0}
        self._event = event
        self._copies: list[Copy] = []
        self.closed = 0

    def open(self) -> list[Record]:
        return list(self.rows.values())

    def write(
        self,
        kept: Sequence[Record],
        gone: Sequence[int],
        sending: Collection[int] | None = None,
        *,
        durable: bool,
    ) -> None:
        if self.fault == "all" or (self.fault is not None and kept):
            self.failed[False] += 1
            self.failed[True] += not kept
            raise JournalError("broken")
        before, old = self._event(), list(self.rows.values())
        self.rows |= {record.key: record for record in kept}
        for key in gone:
            self.rows.pop(key, None)
        new, after = list(self.rows.values()), self._event()
        self._copies += [Copy(old, before, after), Copy(new, before, after)]

    def close(self) -> None:
        self.closed += 1

    def snap(self) -> None:
        # The rows are read before the event is counted, and the other way round: a write may come between.
        before = self._event()
        rows = list(self.rows.values())
        self._copies.append(Copy(rows, before, self._event()))

    def copies(self) -> Iterator[Copy]:
        yield from self._copies


class File(Watched):
    """A journal in a file, whose copies are the bytes there, also between two writes of one statement."""

    def __init__(self, path: Path, durability: Any, seed: int, event: Callable[[], int]) -> None:
        super().__init__(path, durability, seed, event)
        self._read = Reader()
        self.closed = 0

    def close(self) -> None:
        super().close()
        self.closed += 1

    def copies(self) -> Iterator[Copy]:
        for seen in self.seen:
            instead = tuple(self._read(files) for files in seen.instead or ())
            if instead and instead[0] != instead[1]:
                hit("a copy was half of a write")
            yield Copy(self._read(seen.files), seen.before, seen.after, instead)

    def files_at(self, index: int) -> Files:
        return self.seen[index].files


def open_file(
    directory: Path, files: Files | None, durability: str, seed: int, event: Callable[[], int]
) -> File:
    """One that begins with a copy of another, or empty."""
    path = directory / "journal" if files is None else lay(directory, files)
    return File(path, durability, seed, event)
