"""What travels with a message."""

from __future__ import annotations

import math
import random
import time
from datetime import UTC, datetime, timedelta

import pytest

from localdelay.brokers.wire import rfc3339, wall_clock


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000+00:00"),
        (1.5, "1970-01-01T00:00:01.500000+00:00"),
        (0.0000001, "1970-01-01T00:00:00.000001+00:00"),
        (1_000_000_000.0, "2001-09-09T01:46:40.000000+00:00"),
    ],
)
def test_a_time_is_written_with_microseconds_and_never_earlier(timestamp: float, text: str) -> None:
    """RFC 3339 in UTC, the last digit rounded up."""
    assert rfc3339(timestamp) == text


async def test_an_instant_on_trios_clock_is_one_on_the_wall() -> None:
    """Ten seconds from now on the one is ten seconds from now on the other."""
    assert wall_clock(17.0, 7.0) == pytest.approx(time.time() + 10, abs=0.5)


def test_a_time_that_no_calendar_has_is_an_error() -> None:
    """The year 10000 can't be written."""
    with pytest.raises(OverflowError):
        rfc3339(1e12)


def test_a_time_is_written_as_the_standard_library_would() -> None:
    """Whatever the second and its fraction."""
    seed = 20261121
    print("seed", seed)
    chance = random.Random(seed)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for timestamp in [0.0, 1.5, 1e9, 1_795_280_160.999_999_9, *(chance.uniform(0, 4e9) for _ in range(1000))]:
        exact = epoch + timedelta(microseconds=math.ceil(timestamp * 1e6))
        assert rfc3339(timestamp) == exact.isoformat(timespec="microseconds")
