"""A message as Redis holds it, and what Redis is told of it. Pure.

    8 bytes  execute-at in microseconds of Redis's clock, a double, written by the script that puts it
    4 bytes  number of the next send
    4 bytes  how often it has failed; the highest bit: it is to go alone
    4 bytes  length of the headers
    headers  JSON
    payload

All numbers are big-endian. The scripts read and write the first 16 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import TypeAlias

import attrs

_HEAD = struct.Struct(">dIII")
_NOTE = struct.Struct(">II")
_LENGTH = struct.Struct(">I")
_INSTANT = struct.Struct(">d")
_ALONE = 1 << 31
_MOST = _ALONE - 1

OVERHEAD = _HEAD.size
"""Bytes that a message takes besides its headers and its payload."""

Told: TypeAlias = tuple[str, bytes]
"""An id, and what Redis is to be told of it; see the script TAKE."""
CANCEL = b"x"
KEEP = b"=" + bytes(_INSTANT.size)


def finished(due: int) -> bytes:
    """It has ended. `due` is its execute-at on Redis's clock, for the id may be that of another by now."""
    return b"-" + _INSTANT.pack(due)


def returned(due: int) -> bytes:
    """Somebody else may claim it, for then."""
    return b"+" + _INSTANT.pack(due)


@attrs.frozen
class Stored:
    """What Redis holds of a message besides its id."""

    due: int
    """Execute-at, microseconds on Redis's clock."""
    payload: bytes = attrs.field(repr=lambda payload: f"<{len(payload)} bytes>")
    headers: dict[str, str] | None = None
    attempt: int = 1
    failures: int = 0
    alone: bool = False


def note(attempt: int, failures: int, *, alone: bool) -> bytes:
    """What the scripts write into a message that has failed."""
    return _NOTE.pack(min(attempt, _MOST), min(failures, _MOST) | (_ALONE if alone else 0))


def encode(payload: bytes, headers: Mapping[str, str] | None, attempt: int) -> bytes:
    """A new message, without its execute-at."""
    text = json.dumps(dict(headers), ensure_ascii=False).encode() if headers else b""
    return b"".join((note(attempt, 0, alone=False), _LENGTH.pack(len(text)), text, payload))


def dated(due: int, body: bytes) -> bytes:
    """The message, with its execute-at."""
    return _INSTANT.pack(due) + body


def decode(value: bytes) -> Stored:
    """A message as Redis holds it. Raises `ValueError` for what is none."""
    if len(value) < OVERHEAD:
        raise ValueError("this is no message of localdelay's")
    due, attempt, failures, length = _HEAD.unpack_from(value)
    end = OVERHEAD + length
    if end > len(value):
        raise ValueError("this message is cut off")
    headers = json.loads(value[OVERHEAD:end]) if length else None
    return Stored(int(due), value[end:], headers, attempt, failures & _MOST, bool(failures & _ALONE))
