"""What a journal holds, counted. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

import attrs

from localdelay.message import headers_size

from .record import Record

_SPANS: Final = (0.0, 60.0, 3600.0)
"""Seconds until a message is due: an instant belongs to the nearer span."""
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
    in_flight: int
    """Pending messages that were being sent when the process ended: they go last, each alone."""
    expiring: int
    """Pending messages that are worth sending for a limited time only."""
    dead: Amount
    """Messages that were given up, and are kept."""
    different_errors: int
    errors: list[tuple[str, int]]
    """What most of them were given up for, and how many of them: the ten commonest."""


def contents(held: Sequence[Record], now: float) -> Contents:
    """Count what is there; `now` is Unix time in seconds."""
    pending = [record for record in held if record.dead is None]
    dead = [record for record in held if record.dead is not None]
    spans: tuple[list[Record], ...] = ([], [], [], [])
    for record in pending:
        spans[bisect_left(_SPANS, record.due - now)].append(record)
    overdue, minute, hour, later = map(_amount, spans)
    errors = Counter(record.dead for record in dead if record.dead is not None)
    return Contents(
        pending=_amount(pending),
        overdue=overdue,
        within_minute=minute,
        within_hour=hour,
        later=later,
        oldest_due=min((record.due for record in pending), default=None),
        newest_due=max((record.due for record in pending), default=None),
        retried=sum(record.attempt > 1 for record in pending),
        highest_attempt=max((record.attempt for record in pending), default=0),
        in_flight=sum(record.sending for record in pending),
        expiring=sum(record.expires is not None for record in pending),
        dead=_amount(dead),
        different_errors=len(errors),
        errors=errors.most_common(_ERRORS),
    )


def size(record: Record) -> int:
    """Bytes of payload and headers."""
    return len(record.payload) + (headers_size(record.headers) if record.headers else 0)


def _amount(records: Sequence[Record]) -> Amount:
    return Amount(len(records), sum(map(size, records)))
