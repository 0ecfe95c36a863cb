"""The journal after a crash at any moment.

A crash is a copy of the files: of what they are between two steps of the program, between two statements of
the committing thread, or between two writes of one statement. What is in each copy is compared with what had
been promised by then. LOCALDELAY_FUZZ_EXAMPLES multiplies the examples, which are then others in each run.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

import localdelay.journal.commits
from localdelay import Message, SqliteJournal, open_delay_queue
from localdelay.journal.record import Record
from tests.kit.journal_copies import Conserved, Spy
from tests.kit.journals import Gated, content_of, nothing, until


class Noting(SqliteJournal):
    """Lays a copy of its directory down at every statement."""

    copies: list[dict[str, bytes]]

    def _connect(self, mode: str, path: Path | None = None) -> sqlite3.Connection:
        return cast(sqlite3.Connection, Spy(super()._connect(mode, path), self))

    @contextmanager
    def around(self) -> Iterator[None]:
        yield
        self.copies.append(content_of(self.path.parent))


def test_a_crash_while_it_is_made(tmp_path: Path) -> None:
    """Whatever is left of a journal that was not ready yet is in no one's way."""
    journal = Noting(tmp_path / "journal")
    journal.copies = []
    journal.open()
    journal.close()
    assert sum("journal-new" in copy for copy in journal.copies) > 5
    for copy in journal.copies:
        with tempfile.TemporaryDirectory() as directory:
            for name, content in copy.items():
                (Path(directory) / name).write_bytes(content)
            again = SqliteJournal(Path(directory) / "journal")
            assert again.open() == []
            again.write([Record(1, 2.0, 3, "four", None, b"five")], [], durable=True)
            again.close()
            assert again.read() == [Record(1, 2.0, 3, "four", None, b"five")]
            assert [*content_of(Path(directory))] == ["journal"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("changes", [False, True])
async def test_what_is_cancelled_while_it_is_written(
    conserved: Conserved, fails: bool, changes: bool
) -> None:
    """However that write ends, and whatever else there was to write of it, it does not come back."""
    disk = Gated(fails=fails)
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=disk) as queue:
        message = queue.put_nowait(b"", delay=100.0)
        await until(disk.begun.is_set)
        assert not changes or queue.reschedule(message.id, delay=200.0)
        assert queue.cancel(message.id)
        disk.gate.set()
        await queue.flush()
        assert disk.rows == {}
    assert conserved(queue).cancelled == 1


async def test_what_could_not_be_written_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself, though nothing else happens."""
    monkeypatch.setattr(localdelay.journal.commits, "RETRY_EVERY", 0.001)
    disk = Gated(fails=True)
    disk.gate.set()

    async def send(_: Message) -> None:
        pass

    async with open_delay_queue(send, capacity=1, workers=1, journal=disk) as queue:
        queue.put_nowait(b"", delay=100.0, id="a")
        await until(lambda: disk.ids == ["a"] and not queue.statistics().at_risk)
        assert queue.statistics().journal_failures == 1
        await queue.drain(0.0)
