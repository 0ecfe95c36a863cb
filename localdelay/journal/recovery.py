"""What a journal holds, as messages of this process, and these as its records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from localdelay.entry import Entry
from localdelay.message import render_id

from .record import Kept, Record

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
