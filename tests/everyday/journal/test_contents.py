"""What a journal holds, counted."""

from __future__ import annotations

from localdelay.journal.contents import Amount, contents
from localdelay.journal.record import Record

NOW = 1_700_000_000.0


def record(key: int, due: float = NOW, payload: bytes = b"secret", dead: str | None = None) -> Record:
    return Record(key, due, 1, f"m{key}", None, payload, dead)


def test_what_is_counted() -> None:
    """An instant belongs to the nearer span; headers count; a dead letter is not pending."""
    found = contents(
        [
            record(1, NOW),
            record(2, NOW + 60),
            record(3, NOW + 3600),
            record(4, NOW + 3600.5),
            Record(5, NOW - 5, 4, "x", {"ä": "b"}, b"12", None),
            record(6, NOW - 10, dead="E"),
        ],
        NOW,
    )
    assert found.pending == Amount(5, 29)
    assert (found.overdue, found.within_minute) == (Amount(2, 11), Amount(1, 6))
    assert (found.within_hour, found.later, found.dead) == (Amount(1, 6), Amount(1, 6), Amount(1, 6))
    assert (found.oldest_due, found.newest_due) == (NOW - 5, NOW + 3600.5)
    assert (found.retried, found.highest_attempt) == (1, 4)
    assert (found.errors, found.different_errors) == ([("E", 1)], 1)


def test_an_empty_journal_is_counted() -> None:
    """There is no oldest and no newest of nothing."""
    found = contents([], NOW)
    assert (found.pending, found.oldest_due, found.newest_due) == (Amount(), None, None)
