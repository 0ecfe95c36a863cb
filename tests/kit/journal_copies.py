"""Copies of a journal's files, taken at any moment: between two statements, or two writes of one."""

from __future__ import annotations

import random
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import attrs

import localdelay.journal.layout
from localdelay import DelayQueue, JournalError, SqliteJournal, Statistics
from localdelay.journal.record import Kept, Record, encode
from localdelay.journal.reserve import Reserve

EPOCH = 2.0**30
"""Of the wall clock. Like all other times a multiple of a tick, so that no sum is rounded."""
Conserved: TypeAlias = Callable[[DelayQueue], Statistics]
Files: TypeAlias = tuple[bytes, bytes]
"""The database, and its log."""


def files_of(path: Path) -> Files:
    log = Path(f"{path}-wal")
    return path.read_bytes(), log.read_bytes() if log.exists() else b""


def lay(directory: Path, files: Files) -> Path:
    """Put a copy of a journal there."""
    path = directory / "journal"
    path.write_bytes(files[0])
    if files[1]:
        Path(f"{path}-wal").write_bytes(files[1])
    return path


class Reader:
    """Reads copies, each content once."""

    def __init__(self) -> None:
        self._known: dict[Files, list[Record]] = {}

    def __call__(self, files: Files) -> list[Record]:
        if files not in self._known:
            with tempfile.TemporaryDirectory() as directory:
                self._known[files] = SqliteJournal(lay(Path(directory), files)).read()
        return self._known[files]


@attrs.frozen
class Seen:
    """A copy, and which events had happened before and after it was taken."""

    files: Files
    before: int
    after: int
    instead: tuple[Files, Files] | None = None
    """What it holds must be what one of these holds, for it was taken in between."""


class Watched(SqliteJournal):
    """Copies its files before and after whatever it does to them, and some of the states in between."""

    def __init__(self, path: Path, durability: Any, seed: int, event: Callable[[], int]) -> None:
        super().__init__(path, durability)
        self._reserve = WatchedReserve(self)
        self.seen: list[Seen] = []
        self.fault: str | None = None
        self.failed = {False: 0, True: 0}  # writes; those that only remove
        self._event = event
        self._random = random.Random(seed)
        self.busy = threading.RLock()

    def open(self) -> list[Kept]:
        with self.busy:
            records = super().open()
            assert self._connection is not None
            self._connection.execute("PRAGMA wal_autocheckpoint = 4")  # pages, so that it happens
            self._connection = cast(sqlite3.Connection, Spy(self._connection, self))
        return records

    def write(
        self,
        kept: Sequence[Record],
        gone: Sequence[int],
        sending: Collection[int] | None = None,
        *,
        durable: bool,
    ) -> None:
        with self.busy:
            try:
                self._fail(kept)
                super().write(kept, gone, sending, durable=durable)
            except BaseException:
                self.failed[False] += 1
                self.failed[True] += not kept
                raise

    def close(self) -> None:
        with self.busy:
            super().close()

    def snap(self) -> None:
        with self.busy:
            event = self._event()
            self.seen.append(Seen(files_of(self.path), event, event))

    @contextmanager
    def around(self) -> Iterator[None]:
        first, old = self._event(), files_of(self.path)
        try:
            yield
        finally:
            new, last = files_of(self.path), self._event()
            self.seen += [Seen(files, first, last) for files in (old, new)]
            if old != new:
                middle = [
                    (old[0], self._half(old[1], new[1])),
                    (self._half(*_even(old[0], new[0])), new[1] or old[1]),
                ]
                self.seen += [Seen(files, first, last, (old, new)) for files in middle]

    def _half(self, old: bytes, new: bytes) -> bytes:
        """As the file is when not all of it is written yet."""
        cut = self._random.randint(0, len(new))
        return new[:cut] + old[cut:] if new else old

    def _fail(self, kept: Sequence[Record]) -> None:
        connection = self._connection
        assert connection is not None
        if self.fault == "full":
            connection.execute("PRAGMA max_page_count = 1")  # that is, of those there are
        else:
            connection.execute("PRAGMA max_page_count = 1000000")
        if self.fault == "all" or (self.fault == "refuses" and kept):
            raise JournalError("broken")
        if self.fault == "half" and kept:
            connection.execute("BEGIN IMMEDIATE")
            localdelay.journal.layout.insert(connection, list(map(encode, kept[: 1 + len(kept) // 2])))
            connection.execute("ROLLBACK")
            raise JournalError("broken")


class WatchedReserve(Reserve):
    """Finds no room while its journal has a fault."""

    def __init__(self, journal: Watched) -> None:
        super().__init__()
        self._journal = journal

    def make(self, path: Path) -> None:
        if self._journal.fault is not None:
            raise OSError(28, "No space left on device")
        super().make(path)


def _even(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    return old.ljust(len(new), b"\0"), new.ljust(len(old), b"\0")


class Watches(Protocol):
    """Is told of every statement."""

    def around(self) -> AbstractContextManager[None]: ...


class Spy:
    """A connection."""

    def __init__(self, connection: sqlite3.Connection, journal: Watches) -> None:
        self._connection = connection
        self._journal = journal

    def execute(self, *args: Any) -> sqlite3.Cursor:
        with self._journal.around():
            return self._connection.execute(*args)

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def close(self) -> None:
        with self._journal.around():
            self._connection.close()
