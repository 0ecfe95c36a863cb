"""A message of a journal that no queue uses, as the line that the relay reads. Pure."""

from __future__ import annotations

from localdelay.journal.record import Record
from localdelay.message import NO_HEADERS, Message

from . import records


def line(record: Record, now: float) -> bytes:
    """The line that `relay --format jsonl` reads, with its line break; `now` is Unix time in seconds.

    It says when the message is due and not how long that is from now, so that nothing is early or late for
    when and where the line is read. Only past the year 9999, which has no such text, is it the delay that is
    left. The attempt has no place in a line.
    """
    message = Message(
        record.id, record.payload, record.due, record.headers or NO_HEADERS, attempt=record.attempt
    )
    return records.record(message, records.Instant(clock=now, wall=now), record.dead)
