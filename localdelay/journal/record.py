"""What a journal keeps of a message, and what the queue needs of a journal. Pure."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias


class Record(NamedTuple):
    """A message as it is kept. Its time is on the wall clock: no other means anything to the next process."""

    key: int
    """Unique in the journal."""
    due: float
    """Execute-at, in seconds since 1970 (Unix time)."""
    attempt: int
    """The number of its next send."""
    id: str
    headers: dict[str, str] | None
    payload: bytes
    dead: str | None = None
    """What it was given up for; None while it is pending."""


Kept: TypeAlias = tuple[int, float, int, str, dict[str, str] | None, bytes, str | None]
"""What a `Record` is underneath. A million of them are read at once, and exact tuples the garbage collector
soon looks at no more: see `entry`."""


class Journal(Protocol):
    """Keeps messages across the end of the process. All of it is called in one thread, which may block."""

    largest: int
    """The most bytes of payload and headers that a message may have."""

    def open(self) -> Sequence[Kept]:
        """Take hold of it, and return what it holds. Raises `JournalError`."""

    def write(self, kept: Sequence[Record], gone: Sequence[int], *, durable: bool) -> None:
        """Keep these, each in the place of one with its key, and forget those: all or nothing.

        What `durable` is written is to survive what the journal promises to survive; the rest must survive
        the end of the process. Raises `JournalError`, and may be called again then.
        """

    def close(self) -> None:
        """Let go of it."""


def check_journal(journal: object) -> None:
    """Raise a `TypeError` unless this is a journal, or None."""
    methods = ("open", "write", "close")
    if journal is not None and not all(callable(getattr(journal, name, None)) for name in methods):
        raise TypeError(f"journal must be a SqliteJournal, not {type(journal).__name__}")


Row: TypeAlias = tuple[int, float, int, str, bytes | None, bytes, str | None, int]
"""A record as a database holds it, and a checksum over all of it."""


def encode(record: Record) -> Row:
    """The row of a record. Headers become JSON, in UTF-8."""
    key, due, attempt, name, headers, payload, dead = record
    packed = None if headers is None else json.dumps(headers, ensure_ascii=False).encode()
    checksum = _checksum(key, due, attempt, name, packed, payload, dead)
    return key, due, attempt, name, packed, payload, dead, checksum


def decode(row: Sequence[Any]) -> Kept:
    """The record of a row. Raises `ValueError` for a row that `encode` cannot have made."""
    key, due, attempt, name, packed, payload, dead, checksum = row
    try:
        is_sound = checksum == _checksum(key, due, attempt, name, packed, payload, dead)
    except (TypeError, AttributeError, ValueError, struct.error):  # something of another type
        is_sound = False
    if not is_sound:
        raise ValueError(f"row {key!r} is damaged")
    return key, due, attempt, name, None if packed is None else json.loads(packed), payload, dead


def _checksum(
    key: int, due: float, attempt: int, name: str, packed: bytes | None, payload: bytes, dead: str | None
) -> int:
    # With the lengths in it, no byte can go over from one part to the next.
    text = name.encode()
    if packed is None and dead is None:
        head = _NUMBERS.pack(key, due, attempt, len(text), -1, -1, len(payload)) + text
    else:
        told = b"" if dead is None else dead.encode()
        lengths = (-1 if packed is None else len(packed), -1 if dead is None else len(told))
        head = (
            _NUMBERS.pack(key, due, attempt, len(text), *lengths, len(payload))
            + text
            + (packed or b"")
            + told
        )
    return zlib.crc32(payload, zlib.crc32(head))


_NUMBERS = struct.Struct("<qdqqqqq")
