"""What a journal holds, as messages of this process, and these as its records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from localdelay.entry import Entry
from localdelay.message import render_id

from .record import Kept, Record

RECOVERED: Final = 1 << 62
"""The numbers of recovered messages lie so far below their keys: no other message has such a number."""


def recovered(
    held: Sequence[Kept], *, wall: float, now: float, rate: float | None, before: int = 0
) -> tuple[list[Entry], list[Entry]]:
    """These messages, with the delay that is left by the wall clock: on time, and paced.

    `wall` is its time and `now` that of Trio's clock at the same instant, in seconds; to be never early,
    `wall` must have been read before `now`. What is overdue is sent at once, or so many a second where there
    is a `rate`, as if so many had come `before`; its execute-at stays what it was, so that its lateness tells
    for how long nobody was there.
    """
    offset = now - wall
    on_time: list[Entry] = []
    paced: list[Entry] = []
    for position, (key, wall_due, attempt, name, headers, payload, _, expires, at, _) in enumerate(
        held, before
    ):
        due = wall_due + offset
        details = (payload, headers, name, attempt, 0, due, False, expires, at)
        if rate is None or due > now:
            on_time.append((due, key - RECOVERED, details))
        else:
            paced.append((now + position / rate, key - RECOVERED, details))
    return on_time, paced


def record_of(entry: Entry, key: int, due: float, dead: str | None) -> Record:
    """This message under that key, due then on the wall clock; `dead` is what it was given up for."""
    _, number, body = entry
    if isinstance(body, bytes):
        return Record(key, due, 1, render_id(number), None, body, dead)
    payload, headers, chosen, attempt, _, _, _, expires, at = body
    name = render_id(number) if chosen is None else chosen
    return Record(key, due, attempt, name, headers, payload, dead, expires, at)
