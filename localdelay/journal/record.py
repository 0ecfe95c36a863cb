"""What a journal keeps of a message, and what the queue needs of a journal; records and messages. Pure."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from localdelay.entry import Entry
from localdelay.errors import JournalError
from localdelay.message import render_id


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
    expires: float | None = None
    """Seconds past its execute-at after which it is not worth sending."""
    at: float | None = None
    """The Unix time that it was put for; None where a delay was given."""
    sending: bool = False
    """Whether it was being sent when the journal was written last: that may be what has ended the process."""


Kept: TypeAlias = tuple[
    int, float, int, str, dict[str, str] | None, bytes, str | None, float | None, float | None, bool
]
"""What a `Record` is underneath. A million of them are read at once, and exact tuples the garbage collector
soon looks at no more: see `entry`."""
DUE: Final = 1
DEAD: Final = 6
SENDING: Final = 9


class Gone(JournalError):
    """What was written before is not there any more, either: the file was removed or replaced, say."""


class Journal(Protocol):
    """Keeps messages across the end of the process. All of it is called in one thread, which may block."""

    largest: int
    """The most bytes of payload and headers that a message may have."""

    def open(self) -> Sequence[Kept]:
        """Take hold of it, and return what it holds. Raises `JournalError`."""

    def write(
        self,
        kept: Sequence[Record],
        gone: Sequence[int],
        sending: Collection[int] | None = None,
        *,
        durable: bool,
    ) -> None:
        """Keep these, each in the place of one with its key, and forget those: all or nothing.

        `sending` are the keys of all that is being sent from now on; None: no change. What is
        written `durable` is to survive what the journal promises to survive; the rest must survive the end of
        the process. With nothing at all it only looks. Raises `JournalError`, and may be called again then;
        a `Gone` where what it has written is lost.
        """

    def close(self) -> None:
        """Let go of it."""


RECOVERED: Final = 1 << 62
"""The numbers of recovered messages lie so far below their keys: no other message has such a number."""


def recovered(held: Sequence[Kept], *, wall: float, now: float) -> list[Entry]:
    """These messages, with the delay that is left by the wall clock.

    `wall` is its time and `now` that of Trio's clock at the same instant, in seconds; to be never early,
    `wall` must have been read before `now`. The execute-at of what is overdue stays what it was, so that its
    lateness tells for how long nobody was there. What was being sent was tried, and goes alone from now on.
    """
    offset = now - wall
    entries: list[Entry] = []
    for key, wall_due, attempt, name, headers, payload, _, expires, at, sending in held:
        due = wall_due + offset
        details = (payload, headers, name, attempt + sending, 0, due, sending, expires, at)
        entries.append((due, key - RECOVERED, details))
    return entries


def record_of(entry: Entry, key: int, due: float, dead: str | None) -> Record:
    """This message under that key, due then on the wall clock; `dead` is what it was given up for."""
    _, number, body = entry
    if isinstance(body, bytes):
        return Record(key, due, 1, render_id(number), None, body, dead)
    payload, headers, chosen, attempt, _, _, _, expires, at = body
    name = render_id(number) if chosen is None else chosen
    return Record(key, due, attempt, name, headers, payload, dead, expires, at)


Row: TypeAlias = tuple[int, float, int, str, bytes | None, bytes, str | None, int, float | None, float | None]
"""A record as a database holds it, with a checksum over all of it before what only version 2 has."""
_COLUMNS_1: Final = 8
"""So many has a row of version 1."""


def encode(record: Record) -> Row:
    """The row of a record. Headers become JSON, in UTF-8."""
    key, due, attempt, name, headers, payload, dead, expires, at, _ = record
    packed = None if headers is None else json.dumps(headers, ensure_ascii=False).encode()
    checksum = _checksum((key, due, attempt, name, packed, payload, dead, None, expires, at))
    return key, due, attempt, name, packed, payload, dead, checksum, expires, at


def decode(row: tuple[Any, ...]) -> Kept:
    """The record of a row, of either version. Raises `ValueError` for one that is damaged."""
    if len(row) == _COLUMNS_1:
        row = (*row, None, None)
    key, due, attempt, name, packed, payload, dead, checksum, expires, at = row
    try:
        is_sound = checksum == _checksum(row)
    except (TypeError, AttributeError, ValueError, struct.error):  # something of another type
        is_sound = False
    if not is_sound:
        raise ValueError(f"row {key!r} is damaged")
    headers = None if packed is None else json.loads(packed)
    return key, due, attempt, name, headers, payload, dead, expires, at, False


def encode_keys(keys: Collection[int]) -> bytes:
    """The keys of what is being sent, and a checksum."""
    packed = struct.pack(f"<{len(keys)}q", *keys)
    return _CHECKSUM.pack(zlib.crc32(packed)) + packed


def decode_keys(packed: Any) -> frozenset[int]:
    """The same keys. Raises `ValueError` for what `encode_keys` cannot have made."""
    if type(packed) is bytes:  # SQLite keeps anything in any column
        head, keys = packed[: _CHECKSUM.size], packed[_CHECKSUM.size :]
        if not len(keys) % 8 and head == _CHECKSUM.pack(zlib.crc32(keys)):
            return frozenset(struct.unpack(f"<{len(keys) // 8}q", keys))
    raise ValueError("what was being sent is damaged")


def _checksum(row: tuple[Any, ...]) -> int:
    """Over all that a row has beside it."""
    key, due, attempt, name, packed, payload, dead, _, expires, at = row
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
    checksum = zlib.crc32(payload, zlib.crc32(head))
    if expires is None and at is None:
        return checksum  # that of version 1, whose rows stay as they are
    # Added, for what is no number not to pass: an empty text is not 0.0, and -0.0 is.
    terms = _TERMS.pack(
        expires is not None,
        0.0 if expires is None else expires + 0.0,
        at is not None,
        0.0 if at is None else at + 0.0,
    )
    return zlib.crc32(terms, checksum)


_NUMBERS = struct.Struct("<qdqqqqq")
_TERMS = struct.Struct("<?d?d")
_CHECKSUM = struct.Struct("<L")
