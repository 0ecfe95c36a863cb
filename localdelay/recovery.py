"""What a journal held, as messages of this process. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .entry import Entry
from .journal import Kept

RECOVERED: Final = 1 << 62
"""The numbers of recovered messages lie so far below their keys: no other message has such a number."""


def recovered(
    held: Sequence[Kept], *, wall: float, now: float, rate: float | None, before: int = 0
) -> list[Entry]:
    """These messages, with the delay that is left by the wall clock.

    `wall` is its time and `now` that of Trio's clock at the same instant, in seconds; to be never early,
    `wall` must have been read before `now`. What is overdue is sent at once, or so many a second where there
    is a `rate`, as if so many had come `before`; its execute-at stays what it was, so that its lateness tells
    for how long nobody was there.
    """
    entries: list[Entry] = []
    offset = now - wall
    for position, (key, due, attempt, name, headers, payload, _) in enumerate(held, before):
        execute_at = when = due + offset
        if rate is not None and when <= now:
            when = now + position / rate
        entries.append((when, key - RECOVERED, (payload, headers, name, attempt, 0, execute_at, False)))
    return entries
