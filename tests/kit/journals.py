"""A journal in memory, and waiting for what happens in real time beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import trio

from localdelay import JournalError
from localdelay.journal.record import Record


class Disk:
    """A journal in memory that can fail and be slow: what it holds outlives the queue."""

    largest = 1_000_000

    def __init__(self) -> None:
        self.rows: dict[int, Record] = {}
        self.sending: Collection[int] = ()
        self.error: Exception | None = None
        self.writes: list[tuple[list[str], list[int], bool]] = []
        self.closed = 0

    def open(self) -> list[Record]:
        return [record._replace(sending=key in self.sending) for key, record in self.rows.items()]

    def writing(self) -> None:
        """Called before each write, for whoever makes it wait or fail."""

    def removed(self, count: int) -> None:
        """Called after each write."""

    def write(
        self,
        kept: Sequence[Record],
        gone: Sequence[int],
        sending: Collection[int] | None = None,
        *,
        durable: bool,
    ) -> None:
        self.writing()
        if kept or gone:
            self.writes.append(([record.id for record in kept], list(gone), durable))
        if self.error is not None and kept:
            raise self.error
        self.rows |= {record.key: record for record in kept}
        for key in gone:
            self.rows.pop(key, None)
        # Last: a test that waits for it looks at the rows then.
        self.sending = self.sending if sending is None else set(sending)
        self.removed(len(gone))

    def close(self) -> None:
        self.closed += 1

    @property
    def ids(self) -> list[str]:
        return [self.rows[key].id for key in sorted(self.rows)]


class Gated(Disk):
    """A disk whose writes wait for a gate; the first of them may fail then."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.begun, self.gate = threading.Event(), threading.Event()
        self._fails = fails

    def writing(self) -> None:
        self.begun.set()
        assert self.gate.wait(20)
        fails, self._fails = self._fails, False
        if fails:
            raise JournalError("once")


def content_of(directory: Path) -> dict[str, bytes]:
    """All but the reserve, which is large and empty, and the lock."""
    return {
        file.name: file.read_bytes()
        for file in directory.iterdir()
        if not file.name.endswith(("-reserve", "-lock"))
    }


async def nothing(*_: object) -> None:
    pass


async def until(done: Callable[[], object]) -> None:
    """Wait in real time: a journal is written in a thread."""
    with trio.fail_after(20):
        while not done():  # noqa: ASYNC110 (nobody tells)
            await trio.sleep(0.001)
