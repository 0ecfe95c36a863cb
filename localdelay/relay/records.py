"""A message into a JSON line that `relay --format jsonl` reads back. Pure."""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Any

from localdelay.brokers.wire import rfc3339
from localdelay.journal.record import Record
from localdelay.message import NO_HEADERS, Message, add_terms
from localdelay.relay.lines import CUT_OFF

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def record(message: Message, clock: float, wall: float, error: str | None = None) -> bytes:
    """The line of a message, with its line break; `clock` and `wall` are now, on both clocks.

    `at` is rounded up to the microsecond, so that nothing is early for having been written down.
    """
    found: dict[str, Any] = _as_text("payload", message.payload)
    left = message.execute_at - clock
    try:
        found["at"] = rfc3339(wall + left)
    except OverflowError:  # past the year 9999, or long before the first
        found["delay"] = max(0.0, left)
    found["id"] = message.id
    if message.headers:
        found["headers"] = dict(message.headers)
    if message.expires is not None:
        found["expires"] = message.expires
    if error is not None:
        found["error"] = error
    return _line(found)


def of_journal(kept: Record, now: float) -> bytes:
    """The line of what a journal holds, with its line break; `now` is Unix time in seconds.

    It says when the message is due and not how long that is from now, so that nothing is early or late for
    when and where the line is read. Only past the year 9999, which has no such text, is it the delay that is
    left. The attempt has no place in a line.
    """
    message = Message(kept.id, kept.payload, kept.due, kept.headers or NO_HEADERS, attempt=kept.attempt)
    add_terms(message, (kept.expires, kept.at))
    return record(message, now, now, kept.dead)


def cut_off(half: bytes) -> bytes:
    """The line of half a line: to be read back it must be made whole, and until then it is refused."""
    return _line(_as_text(CUT_OFF, half))


def _as_text(name: str, content: bytes) -> dict[str, str]:
    try:
        return {name: content.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": binascii.b2a_base64(content, newline=False).decode()}


def _line(found: Mapping[str, Any]) -> bytes:
    # What is text here is UTF-8 but for an error, which may quote anything.
    return _encode(found).encode(errors="backslashreplace") + b"\n"
