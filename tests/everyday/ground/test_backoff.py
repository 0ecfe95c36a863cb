from __future__ import annotations

import pytest

from localdelay.backoff import Backoff, grown


def test_waits_grow_up_to_the_bound() -> None:
    """They double from the first to the longest, however many failures there were."""
    waits = [grown(failures, first=0.05, most=1.0) for failures in (1, 2, 3, 5, 6, 100_000)]
    assert waits == [0.05, 0.1, 0.2, 0.8, 1.0, 1.0]


def test_jitter_takes_up_to_a_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draw is between one half and the whole of the wait, and each wait has its own."""
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return (low, high)[len(drawn) % 2]

    monkeypatch.setattr("random.uniform", uniform)
    backoff = Backoff()
    assert [backoff.next() for _ in range(7)] == [0.05, 0.05, 0.2, 0.2, 0.8, 0.5, 1.0]
    assert drawn == [(0.5, 1.0)] * 7


def test_a_success_makes_the_waits_short_again() -> None:
    """After a reset the next wait is the first again."""
    backoff = Backoff(first=0.1)
    assert [backoff.next() for _ in range(5)][-1] >= 0.5
    backoff.reset()
    assert 0.05 <= backoff.next() <= 0.1
