"""What "held" means, in every table, and the search for the highest rate that is. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdelay.benchmark.held import HELD_P99, best, is_held, ladder, next_rate

RUNGS = ladder(100, 2_000_000)


@pytest.mark.parametrize(
    ("p99", "sent", "early", "expected"),
    [
        (0.0099, 10, 0, True),
        (0.0100, 10, 0, False),
        (0.0001, 9, 0, False),
        (0.0001, 10, 1, False),
        (0.0001, 11, 0, False),
        (None, 0, 0, False),
    ],
)
def test_when_a_rate_is_held(p99: float | None, sent: int, early: int, expected: bool) -> None:
    """p99 under 10 ms, all sent and nothing twice, nothing early."""
    assert HELD_P99 == 0.010
    assert is_held(p99, offered=10, sent=sent, early=early) is expected


def test_the_ladder_has_five_rungs_a_decade() -> None:
    """1, 2, 3, 5 and 7 times the powers of ten, within the bounds that were asked for."""
    assert ladder(1_000, 20_000) == [1_000, 2_000, 3_000, 5_000, 7_000, 10_000, 20_000]
    assert (RUNGS[0], RUNGS[-1]) == (100, 2_000_000)


@given(st.integers(1, 3_000_000), st.floats(1, 3e6), st.integers(1, 5))
def test_the_search_finds_the_highest_rate(limit: int, first: float, stride: int) -> None:
    """Whatever was tried first, and whatever holds: the right rung, none twice, in few steps."""
    tried = {first: first <= limit}
    while (rate := next_rate(RUNGS, tried, stride)) is not None:
        assert rate in RUNGS
        assert rate not in tried
        tried[rate] = rate <= limit
        assert len(tried) <= 10
    assert best(tried) == max((rate for rate in (*RUNGS, first) if rate <= limit), default=None)


def test_a_search_that_begins_right_takes_two_loads() -> None:
    """One that is held, and the next one that is not."""
    assert next_rate(RUNGS, {30_000.0: True}) == 50_000
    assert next_rate(RUNGS, {30_000.0: True, 50_000.0: False}) is None
