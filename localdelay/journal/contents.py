"""What a journal holds, counted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import attrs

from localdelay.message import headers_size

from .record import Record

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_ERRORS: Final = 10


@attrs.frozen
class Amount:
    """So many messages, and their payloads and headers."""

    messages: int = 0
    bytes: int = 0


@attrs.frozen(kw_only=True)
class Contents:
    """What a journal holds. Times are Unix time, in seconds."""

    pending: Amount
    """All that is to be sent; it is the sum of the next four."""
    overdue: Amount
    within_minute: Amount
    """Due in a minute at the latest."""
    within_hour: Amount
    """Due after that, in an hour at the latest."""
    later: Amount
    oldest_due: float | None
    """The first execute-at of what is pending; None where nothing is."""
    newest_due: float | None
    retried: int
    """Pending messages whose next send is not the first."""
    highest_attempt: int
    """The number of the next send of the one that was tried most; 0 where nothing is pending."""
    dead: Amount
    """Messages that were given up, and are kept."""
    different_errors: int
    errors: list[tuple[str, int]]
    """What most of them were given up for, and how many of them: the ten commonest."""


def contents(held: Iterable[Record], now: float) -> Contents:
    """Count what is there; `now` is Unix time in seconds."""
    counts, sizes = [0] * 5, [0] * 5
    retried, highest = 0, 0
    oldest = newest = None
    errors: Counter[str] = Counter()
    for record in held:
        if record.dead is not None:
            errors[record.dead] += 1
            kind = 4
        else:
            due, attempt = record.due, record.attempt
            left = due - now
            kind = 0 if left <= 0 else 1 if left <= _MINUTE else 2 if left <= _HOUR else 3
            oldest = due if oldest is None else min(oldest, due)
            newest = due if newest is None else max(newest, due)
            retried += attempt > 1
            highest = max(highest, attempt)
        counts[kind] += 1
        sizes[kind] += size(record)
    overdue, minute, hour, later, dead = map(Amount, counts, sizes)
    return Contents(
        pending=Amount(sum(counts[:4]), sum(sizes[:4])),
        overdue=overdue,
        within_minute=minute,
        within_hour=hour,
        later=later,
        oldest_due=oldest,
        newest_due=newest,
        retried=retried,
        highest_attempt=highest,
        dead=dead,
        different_errors=len(errors),
        errors=errors.most_common(_ERRORS),
    )


def size(record: Record) -> int:
    """Bytes of payload and headers."""
    return len(record.payload) + (headers_size(record.headers) if record.headers else 0)
