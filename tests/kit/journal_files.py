"""Journals that no queue uses, for the tests of the command that looks at them."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from localdelay import SqliteJournal
from localdelay.journal.record import Record

NOW = 1_700_000_000.0


def record(key: int, due: float = NOW, payload: bytes = b"secret", dead: str | None = None) -> Record:
    return Record(key, due, 1, f"m{key}", None, payload, dead)


def made(path: Path, *records: Record) -> Path:
    """A journal that holds these."""
    with closing(SqliteJournal(path, "os")) as journal:
        journal.open()
        journal.write(records, [], durable=True)
    return path


def filled(path: Path) -> Path:
    """A journal with something of everything."""
    now = time.time()
    return made(
        path,
        Record(1, now - 60, 3, "tried", {"k": "v"}, b"secret", None),
        record(2, now + 30),
        record(3, now + 1800),
        record(4, now + 7200, b"\xff\xfe"),
        record(5, now - 900, dead="PermanentSendError('refused')"),
        record(6, now - 900, dead="PermanentSendError('refused')"),
        record(7, now - 900, dead="ValueError('\x1b[31m')"),
    )


def held(path: Path) -> list[str]:
    """The ids of what it holds."""
    return [record.id for record in SqliteJournal(path).read()]
