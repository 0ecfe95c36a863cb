"""The latency recorder, against exact percentiles of the sorted values."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given
from hypothesis import strategies as st

from localdelay import LatencySummary
from localdelay.lateness import BOUNDARIES, LONGEST, LatencyRecorder

HOUR = 3600.0
SHARES = {
    "p50": Fraction(50, 100),
    "p90": Fraction(90, 100),
    "p99": Fraction(99, 100),
    "p999": Fraction(999, 1000),
}
MICROSECONDS = st.one_of(st.integers(0, 9), st.integers(0, 5000), st.integers(0, 2 * LONGEST))


def in_microseconds(seconds: float) -> int:
    microseconds = round(seconds * 1e6)
    assert seconds == microseconds / 1e6
    return microseconds


def check(summary: LatencySummary, values: list[int]) -> None:
    """Check a summary against the values themselves, in microseconds."""
    ordered = sorted(values)
    assert summary.count == len(ordered)
    assert in_microseconds(summary.max) == ordered[-1]
    assert summary.clipped == sum(value > LONGEST for value in ordered)
    for name, share in SHARES.items():
        exact = min(ordered[math.ceil(share * len(ordered)) - 1], LONGEST)
        shown = in_microseconds(getattr(summary, name))
        assert exact <= shown <= min(exact * 1.001, ordered[-1]), name
        assert shown <= LONGEST, name
    exact_sum = sum(min(value, LONGEST) for value in ordered)
    assert exact_sum <= round(summary.sum * 1e6) <= exact_sum * 1.001
    assert tuple(boundary for boundary, _ in summary.buckets) == BOUNDARIES
    for boundary, count in summary.buckets:
        within = round(boundary * 1e6)
        surely = sum(value * 1.001 <= within or value == within == LONGEST for value in ordered)
        assert surely <= count <= sum(value <= within for value in ordered), boundary


@example(values=[(0, 1)])
@example(values=[(LONGEST, 1)])
@example(values=[(LONGEST + 1, 1)])
@example(values=[(LONGEST - 1, 500), (LONGEST * 2, 501)])
@example(values=[(1, 999), (1000, 1)])
@example(values=[(1, 998), (1000, 2)])
@given(st.lists(st.tuples(MICROSECONDS, st.integers(1, 1000)), min_size=1, max_size=50))
def test_percentiles_are_those_of_the_sorted_values(values: list[tuple[int, int]]) -> None:
    """Every percentile is the exact one or up to a thousandth above it, and never above the maximum."""
    recorder = LatencyRecorder()
    for value, count in values:
        recorder.record(value / 1e6, count)
    check(recorder.summary(), [value for value, count in values for _ in range(count)])


@given(st.lists(st.lists(MICROSECONDS, max_size=20), min_size=1, max_size=5))
def test_a_summary_changes_nothing(rounds: list[list[int]]) -> None:
    """Recording goes on after a summary, and the next one holds all values once."""
    recorder = LatencyRecorder()
    values: list[int] = []
    for group in rounds:
        for value in group:
            recorder.record(value / 1e6)
            values.append(value)
        first = recorder.summary()
        assert recorder.summary() == first
        if values:
            check(first, values)
        else:
            assert first == LatencySummary()


def test_what_is_kept_aside_is_bounded() -> None:
    """Between two summaries the recorder grows by no more than the counters of the histogram."""
    recorder = LatencyRecorder()
    kept = 0
    values = [*range(10_000), *range(10_000, 3_600_000_000, 99_991)]
    for value in values:
        recorder.record(value / 1e6)
        kept = max(kept, len(recorder._counts))
    assert kept <= HdrHistogram(1, LONGEST, 3).counts_len
    check(recorder.summary(), values)


def test_the_counters_are_those_of_the_histogram() -> None:
    """The index that is computed for each latency is the one that `hdrh` would count it under."""
    histogram = HdrHistogram(1, 3_600_000_000, 3)
    edges = {2**power + offset for power in range(32) for offset in (-1, 0, 1)}
    for value in [*range(10_000), *edges, *range(10_000, 3_600_000_000, 999_983), 3_600_000_000]:
        if value <= 3_600_000_000:
            recorder = LatencyRecorder()
            recorder.record(value / 1e6)
            assert list(recorder._counts) == [histogram._counts_index_for(value)], value


@pytest.mark.parametrize(
    ("seconds", "microseconds"), [(0.4e-6, 0), (0.6e-6, 1), (1.4e-6, 1), (1.6e-6, 2), (999.6e-6, 1000)]
)
def test_a_value_is_recorded_to_the_nearest_microsecond(seconds: float, microseconds: int) -> None:
    """The resolution is the microsecond, rounded and not cut."""
    recorder = LatencyRecorder()
    recorder.record(seconds)
    assert in_microseconds(recorder.summary().max) == microseconds


@pytest.mark.parametrize("seconds", [-1.2e-6, -2e-6, -0.001, -1.0, -1e6])
def test_a_negative_value_counts_as_nothing(seconds: float) -> None:
    """A clock that steps back a little ends nothing that measures by it."""
    recorder = LatencyRecorder()
    recorder.record(0.001, 3)
    recorder.record(seconds)
    recorder.record_each([0.002, seconds])
    check(recorder.summary(), [0, 0, 1000, 1000, 1000, 2000])


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_time_raises(seconds: float) -> None:
    """NaN and infinity are refused at once."""
    with pytest.raises((ValueError, OverflowError)):
        LatencyRecorder().record(seconds)


def test_nothing_recorded_is_in_no_bucket() -> None:
    """An empty summary has all the buckets, so that a sum over queues finds each of them."""
    assert LatencySummary().buckets == tuple((boundary, 0) for boundary in BOUNDARIES)
    assert tuple(sorted(set(BOUNDARIES))) == BOUNDARIES
    assert (BOUNDARIES[0], BOUNDARIES[-1]) == (0.0005, HOUR)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_what_is_over_a_boundary_is_never_below_it(boundary: float) -> None:
    """A counter that a boundary goes through is counted above; up to 2 ms they are exact, and at an hour."""
    below, above = LatencyRecorder(), LatencyRecorder()
    below.record(boundary * 0.999)
    above.record(boundary + 1e-6)
    assert dict(below.summary().buckets)[boundary] == 1
    assert dict(above.summary().buckets)[boundary] == 0
    if boundary <= 0.002 or boundary == HOUR:
        exact = LatencyRecorder()
        exact.record(boundary)
        assert dict(exact.summary().buckets)[boundary] == 1


def test_a_summary_costs_no_long_walk() -> None:
    """Over a histogram that has something everywhere it runs some hundred lines, and no loop over all."""
    recorder = LatencyRecorder()
    values = [highest for shift in range(22) for highest in range(1024 << shift, 2048 << shift, 1 << shift)]
    for value in values:
        recorder.record(min(value, LONGEST) / 1e6)
    lines = 0

    def count(*_: object) -> Any:
        nonlocal lines
        lines += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        summary = recorder.summary()
    finally:
        sys.settrace(before)
    assert summary.count == len(values) > 20_000
    assert lines < 1000
