"""What the primary gave for its messages is there until they are due, whatever their delays."""

from __future__ import annotations

import pytest

from localdelay.fallback import handles
from localdelay.fallback.handles import Handles


def test_one_that_is_due_late_is_not_forgotten_for_many_that_are_due_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands before them, and no more than a hundred are kept at a time."""
    monkeypatch.setattr(handles, "MOST", 100)
    kept = Handles()
    kept.remember("late", 86_400.0, "its handle", 0.0)
    for number in range(10_000):
        kept.remember(f"m{number}", number / 10 + 5.0, number, number / 10)
    assert kept.get("late", 1000.0) == ("its handle",)
    assert kept.get("m9999", 1000.0) == (9999,)
    assert kept.get("m9000", 1000.0) is None
    assert len(kept._by_due) < 100


def test_what_is_due_soonest_is_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound holds whatever is kept twice or forgotten."""
    monkeypatch.setattr(handles, "MOST", 100)
    kept = Handles()
    for number in range(1_000):
        kept.remember(f"m{number}", 2_000.0 - number, number, 0.0)
        kept.remember("again", 5_000.0 + number, number, 0.0)
        if number % 2:
            kept.forget(f"m{number - 1}")
        assert len(kept._kept) <= 101
        assert len(kept._by_due) <= 2 * len(kept._kept) + 100
    assert kept.get("again", 0.0) == (999,)
    assert kept.get("again", 5_999.0) is None
    assert kept.get("m1", 0.0) == (1,)
