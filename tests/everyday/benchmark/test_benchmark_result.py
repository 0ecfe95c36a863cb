"""The benchmark's settings and figures: what is refused, what is derived, and when a rate is held. Pure."""

from __future__ import annotations

import math
from typing import Any

import pytest

from localdelay.benchmark.load import Delays
from localdelay.benchmark.result import Distribution, Settings, held_up_to
from localdelay.lateness import Latencies, LatencyRecorder, LatencySummary


def latencies(*seconds: float) -> Latencies:
    recorder = LatencyRecorder()
    for value in seconds:
        recorder.record(value)
    return recorder.take()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": (0.0, 0.0)}, "rate must be over 0"),
        ({"rate": (1.0, 2e8)}, "rate must be over 0 and at most 100,000,000"),
        ({"rate": (math.nan, 1.0)}, "rate must be over 0"),
        ({"seconds": 0.0}, "seconds must be finite and at least 0.001"),
        ({"seconds": math.inf}, "seconds must be finite"),
        ({"seconds": 1e6}, "seconds must be at most 86,400, not 1,000,000"),
        ({"delays": Delays((-1.0,))}, "delay must be finite and at least 0"),
        ({"delays": Delays((1.0, math.inf))}, "delay must be finite and at least 0"),
        ({"delays": Delays((1e6,))}, "delay must be at most 86,400 seconds"),
        ({"delays": Delays((2.0, 1.0), is_range=True)}, "delay must be a range from the shorter"),
        ({"size": 7}, "size must be finite and at least 8"),
        ({"size": 10**9}, "size must be at most 100,000,000"),
        ({"workers": 0}, "workers must be finite and at least 1"),
        ({"workers": 10**6}, "workers must be at most 100,000"),
        ({"batch": 0}, "batch must be finite and at least 1"),
        ({"batch": 10**7}, "batch must be at most 1,000,000"),
        ({"warmup": -1.0}, "warmup must be finite and at least 0"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], said: str) -> None:
    """Each is a ValueError that begins with the name of the option."""
    with pytest.raises(ValueError, match=said):
        Settings(**options)


def test_the_warm_up_is_a_load_of_its_own() -> None:
    """It has the rate at the beginning, hardly a delay, and no warm-up itself; or there is none."""
    settings = Settings(rate=(10.0, 500.0), delays=Delays((2.0, 7.0)), warmup=3.0, workers=5, batch=9)
    warm_up = settings.warm_up
    assert warm_up is not None
    assert (warm_up.rate, warm_up.seconds, warm_up.warm_up) == ((10.0, 10.0), 3.0, None)
    assert warm_up.delays.longest <= 0.01
    assert (warm_up.workers, warm_up.batch) == (5, 9)
    assert Settings(warmup=0.0).warm_up is None


def test_capacity_has_room_for_what_waits_and_for_a_backlog() -> None:
    """The highest rate for the longest delay and ten seconds more, the whole load at most, and the memory."""
    settings = Settings(rate=(10.0, 100.0), seconds=1_000.0, delays=Delays((1.0, 5.0)), size=800)
    assert settings.expected_pending == 501
    assert settings.expected_bytes == 501_000
    assert settings.capacity(None) == 501 + 1_001
    assert settings.capacity(10**12) == 501 + 1_001
    assert settings.capacity(1_000_000) == 750
    assert Settings(rate=(10.0, 10.0), seconds=3.0).capacity(None) == 30


def test_a_distribution_of_what_was_recorded() -> None:
    """Count, percentiles to p99.99 and the maximum; of nothing, None and no zeros."""
    found = Distribution.of(latencies(*[0.001] * 9_999, 0.5))
    assert found == Distribution(10_000, 0.001, 0.001, 0.001, 0.001, 0.001, 0.5)
    assert Distribution.of(Latencies()) == Distribution(0, None, None, None, None, None, None)
    summary = LatencySummary(3, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert Distribution.of_summary(summary) == Distribution(3, 0.1, 0.2, 0.3, 0.4, None, 0.5)
    assert Distribution.of_summary(LatencySummary()) == Distribution()


def test_how_far_a_ramp_was_held() -> None:
    """Up to the end of the last second before the first with a p99 of 10 ms; for an even load, None."""
    fine, bad = latencies(0.001), latencies(0.02)
    ramp = Settings(rate=(0.5, 100.5), seconds=10.0)
    assert held_up_to(ramp, [fine] * 10) == 100.5
    assert held_up_to(ramp, [fine, fine, Latencies(), bad, fine]) == 30.5
    assert held_up_to(ramp, [bad, fine]) == 0.0
    assert held_up_to(Settings(), [fine]) is None
