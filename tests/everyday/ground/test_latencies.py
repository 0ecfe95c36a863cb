"""Latencies that are taken out of a recorder: added up, walked through, and in HdrHistogram's encoding."""

from __future__ import annotations

import base64
import random

import pytest
from hdrh.histogram import HdrHistogram

from localdelay import LatencySummary
from localdelay.lateness import LONGEST, Latencies, LatencyRecorder

HOUR = LONGEST / 1e6


def recorded(*microseconds: int) -> Latencies:
    recorder = LatencyRecorder()
    for value in microseconds:
        recorder.record(value / 1e6)
    return recorder.take()


def drawn(count: int) -> list[int]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    return [int(10 ** draw.uniform(0, 9.5)) for _ in range(count)]


def test_what_is_taken_is_what_was_recorded_since() -> None:
    """Each take has the latencies since the one before, with their own maximum, and nothing of the others."""
    recorder = LatencyRecorder()
    recorder.record(0.005, 3)
    first = recorder.take()
    recorder.record(0.001, 2)
    second = recorder.take()
    assert (first.count, first.longest) == (3, 0.005)
    assert (second.count, second.longest, second.at(0.5)) == (2, 0.001, [0.001])
    assert recorder.take() == Latencies()
    recorder.record(2 * HOUR)
    assert recorder.take().clipped == 1
    assert recorder.summary() == LatencySummary()


def test_together_they_are_as_if_recorded_together() -> None:
    """Adding parts up gives the counts, the maximum and the clipped ones of all; nothing gives nothing."""
    values = drawn(1_000)
    parts = [recorded(*values[:400]), Latencies(), recorded(*values[400:], LONGEST + 5)]
    together = Latencies.together(parts)
    whole = recorded(*values, LONGEST + 5)
    assert together == whole
    assert (together.count, together.clipped) == (1_001, 1)
    assert Latencies.together([]) == Latencies()


def test_steps_rise_to_the_maximum() -> None:
    """Each value stands once, with the number of latencies up to it; the last is the exact maximum."""
    steps = list(recorded(3, 1, 3, 5_001).steps())
    assert steps == [(1e-6, 1), (3e-6, 3), (5_001e-6, 4)]
    assert list(Latencies().steps()) == []


def test_no_percentile_is_over_the_maximum() -> None:
    """A counter of several microseconds says no more than what was the longest."""
    assert recorded(1_000_001).at(0.5, 1.0) == [1.000001, 1.000001]
    assert recorded(LONGEST + 10).at(0.0, 1.0) == [HOUR, HOUR]
    assert Latencies().at(0.5) == [0.0]


def test_they_come_back_from_their_encoding() -> None:
    """Every count and every percentile survives, and the library itself reads the same."""
    taken = recorded(*drawn(3_000), 0, LONGEST)
    text = taken.encoded()
    assert text.startswith("HIST")
    back = Latencies.decoded(text)
    assert back.counts == taken.counts
    assert Latencies.decoded(Latencies().encoded()) == Latencies()
    assert back.at(0.1, 0.5, 0.99, 0.9999, 1.0) == taken.at(0.1, 0.5, 0.99, 0.9999, 1.0)
    histogram = HdrHistogram.decode(text)
    assert histogram.get_total_count() == taken.count
    assert histogram.get_value_at_percentile(50) == round(taken.at(0.5)[0] * 1e6)


def test_what_is_no_histogram_is_refused() -> None:
    """Whatever the library raises for it, it is a ValueError here."""
    outside = base64.b64encode(bytes.fromhex("1c849314") + (4).to_bytes(4, "big") + b"nope").decode()
    for text in ("", "HIST", "HISTFAAAABx4nJNpmSzMgADMUJoRRFybvITB", "!!!!", outside):
        with pytest.raises(ValueError, match="no histogram that can be decoded"):
            Latencies.decoded(text)


@pytest.mark.parametrize("shape", [(1, LONGEST, 2), (1000, LONGEST, 3), (1, LONGEST * 1000, 3)])
def test_a_histogram_of_another_shape_is_refused(shape: tuple[int, int, int]) -> None:
    """One with another unit, range or precision can't be added to ours, and is not."""
    histogram = HdrHistogram(*shape)
    histogram.record_value(5_000)
    with pytest.raises(ValueError, match="microseconds up to an hour with 3 digits"):
        Latencies.decoded(str(histogram.encode(), "ascii"))
