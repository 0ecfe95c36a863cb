"""What a journal held, as messages of this process. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .entry import Entry
from .journal import Record


def recovered(
    records: Sequence[Record],
    number_of: Callable[[Record], int],
    *,
    wall: float,
    now: float,
    rate: float | None,
    before: int = 0,
) -> list[Entry]:
    """These messages, with the delay that is left by the wall clock.

    `wall` is its time and `now` that of Trio's clock at the same instant, in seconds; to be never early,
    `wall` must have been read before `now`. What is overdue is sent at once, or so many a second where there
    is a `rate`, as if so many had come `before`; its execute-at stays what it was, so that its lateness tells
    for how long nobody was there.
    """
    entries: list[Entry] = []
    offset = now - wall
    for position, record in enumerate(records, before):
        execute_at = due = record.due + offset
        if rate is not None and due <= now:
            due = now + position / rate
        body = (record.payload, record.headers, record.id, record.attempt, 0, execute_at, False)
        entries.append((due, number_of(record), body))
    return entries
