"""The benchmark's meter: every message once, from when its send should have begun."""

from __future__ import annotations

import pytest

from localdelay import Message, PartialSendError
from localdelay.benchmark.load import Delays, Pace
from localdelay.benchmark.meter import GROUP, INTERVAL, Meter
from localdelay.lateness import Latencies

START = 1_000.0


class Clock:
    """A clock that stands until it is told the time, in seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return START + self.now


def message(number: int, execute_at: float = 0.0) -> Message:
    return Message(id=str(number), payload=number.to_bytes(8, "big") + b"...", execute_at=START + execute_at)


def meter_of(pace: Pace, *delays: float) -> tuple[Meter, Clock]:
    clock = Clock()
    meter = Meter(pace, Delays(delays), 1, clock)
    meter.start(START)
    return meter, clock


def values(latencies: Latencies) -> list[tuple[float, int]]:
    """(seconds, how many up to it), without what the histogram's three digits may add."""
    return [(round(seconds, 5 if seconds < 0.01 else 2), reached) for seconds, reached in latencies.steps()]


def test_a_latency_counts_from_when_the_message_was_to_be_put() -> None:
    """Put a second late and sent at its execute-at, a message is a second late, and not in time."""
    meter, clock = meter_of(Pace(2.0, 2.0, 5.0), 3.0)
    clock.now = 4.5
    meter.begin(message(1, execute_at=4.5))
    meter.finish()
    assert values(meter.intervals[-1]) == [(1.0, 1)]
    assert meter.early == 0


def test_delays_are_told_from_the_number() -> None:
    """With several delays, each message is due its own delay after its own time."""
    pace = Pace(10.0, 10.0, 10.0)
    meter, clock = meter_of(pace, 1.0, 5.0)
    table = Delays((1.0, 5.0)).table(1)
    late = [0.001 * number for number in range(8)]
    for number in range(8):
        due = number / 10 + table[number]
        clock.now = due + late[number]
        meter.begin(message(number, execute_at=due))
    meter.finish()
    assert values(Latencies.together(meter.intervals)) == [
        (value, number + 1) for number, value in enumerate(late)
    ]


def test_intervals_begin_with_the_first_message_that_is_due() -> None:
    """Latencies are kept apart by the second in which the send began; a silent second stays empty."""
    meter, clock = meter_of(Pace(1.0, 1.0, 10.0), 7.0)
    assert meter.begins == START + 7.0
    for number, now in enumerate([7.0, 8.5, 10.25, 10.5]):
        clock.now = now
        meter.begin(message(number, execute_at=7.0 + number if now >= 7 + number else now))
    clock.now = 10.9
    meter.finish()
    assert [interval.count for interval in meter.intervals] == [1, 1, 0, 2]


def test_an_interval_that_has_hardly_begun_joins_the_one_before() -> None:
    """The last message's lateness makes no interval of its own."""
    meter, clock = meter_of(Pace(1.0, 1.0, 2.0), 0.0)
    for number, now in enumerate([0.5, INTERVAL + 0.001]):
        clock.now = now
        meter.begin(message(number))
    meter.finish()
    assert [interval.count for interval in meter.intervals] == [2]


def test_a_batch_is_recorded_as_its_messages_are() -> None:
    """Consecutive messages of a batch are recorded in groups, by their first: GROUP is added at most."""
    pace = Pace(100_000.0, 100_000.0, 10.0)
    batch = [message(number, execute_at=number / 100_000) for number in range(1_000)]
    alone, clock = meter_of(pace, 0.0)
    clock.now = 0.0125
    for one in batch:
        alone.begin(one)
    grouped, clock = meter_of(pace, 0.0)
    clock.now = 0.0125
    grouped.begin_batch(batch)
    for meter in (alone, grouped):
        meter.finish()
    exact, found = alone.intervals[0], grouped.intervals[0]
    assert exact.count == found.count == 1_000
    assert exact.longest == found.longest
    for share in (0.01, 0.3, 0.5, 0.9):
        assert exact.at(share)[0] <= found.at(share)[0] <= exact.at(share)[0] + GROUP + 2e-5
    assert len(found.counts) < len(exact.counts) / 3


@pytest.mark.parametrize("numbers", [[3, 5], [4, 3], [7], [0, 1, 3]])
def test_a_batch_that_is_not_consecutive_is_recorded_one_by_one(numbers: list[int]) -> None:
    """Whatever comes together, each counts from its own time."""
    meter, clock = meter_of(Pace(10.0, 10.0, 10.0), 0.0)
    clock.now = 1.0
    meter.begin_batch([message(number) for number in numbers])
    meter.finish()
    expected = sorted(round(1.0 - number / 10, 2) for number in numbers)
    assert values(meter.intervals[-1]) == [(value, rank + 1) for rank, value in enumerate(expected)]


def test_a_batch_with_several_delays_is_recorded_one_by_one() -> None:
    """Without one delay for all, being consecutive says nothing."""
    meter, clock = meter_of(Pace(10.0, 10.0, 10.0), 1.0, 2.0)
    table = Delays((1.0, 2.0)).table(1)
    clock.now = 9.5
    meter.begin_batch([message(number) for number in range(4)])
    meter.finish()
    expected = sorted(round(9.5 - number / 10 - table[number], 2) for number in range(4))
    assert [value for value, _ in values(meter.intervals[-1])] == sorted(set(expected))


def test_an_early_send_is_counted() -> None:
    """A send before the execute-at shows, alone and in a batch, and counts as no negative latency."""
    meter, clock = meter_of(Pace(1.0, 1.0, 10.0), 1.0)
    clock.now = 1.0
    meter.begin(message(0, execute_at=1.5))
    meter.begin_batch([message(0, execute_at=0.5), message(1, execute_at=2.0)])
    meter.finish()
    assert meter.early == 2
    assert values(meter.intervals[0]) == [(0.0, 3)]


def test_a_retry_is_not_recorded_again() -> None:
    """Only the first send of a message counts, also where the message says that it is the first try."""
    meter, clock = meter_of(Pace(1.0, 1.0, 10.0), 0.0)
    for now, error in ((0.5, ConnectionError()), (0.6, TimeoutError()), (0.7, None)):
        clock.now = now
        meter.begin(message(0))
        if error is None:
            meter.end([message(0)])
        else:
            meter.fail([message(0)], error)
    meter.finish()
    assert values(meter.intervals[0]) == [(0.5, 1)]
    assert meter.sent == 1
    assert isinstance(meter.failure, TimeoutError)
    assert meter.failed_at == START + 0.5


def test_what_a_partly_failed_batch_has_sent_is_sent() -> None:
    """A PartialSendError names the failed ones: these come again, and are not recorded again."""
    meter, clock = meter_of(Pace(10.0, 10.0, 10.0), 0.0)
    batch = [message(0), message(1), message(2)]
    clock.now = 0.5
    meter.begin_batch(batch)
    meter.fail(batch, PartialSendError({"1": ValueError()}))
    assert meter.sent == 2
    clock.now = 0.6
    meter.begin_batch([message(1), message(2)])
    meter.finish()
    assert Latencies.together(meter.intervals).count == 4


def test_a_send_that_was_cut_off_is_no_failure() -> None:
    """A cancelled send is repeated without counting twice, and is no error to report."""
    meter, clock = meter_of(Pace(1.0, 1.0, 10.0), 0.0)
    clock.now = 0.25
    meter.begin(message(0))
    meter.fail([message(0)], KeyboardInterrupt())
    meter.begin(message(0))
    meter.finish()
    assert meter.intervals[0].count == 1
    assert meter.failure is None
    assert meter.sent == 0


def test_the_puts_own_lateness() -> None:
    """A run of puts that began late is late by that, message by message."""
    meter, _ = meter_of(Pace(10.0, 10.0, 10.0), 0.0)
    meter.put(0, 1, START, START)
    meter.put(1, 4, START + 0.3, START + 0.3)
    taken = meter.puts.take()
    assert values(taken) == [(0.0, 2), (0.1, 3), (0.2, 4)]


def test_puts_in_a_row_are_spread_over_the_time_they_took() -> None:
    """The last of a slow run was put later than the first."""
    meter, _ = meter_of(Pace(1e6, 1e6, 10.0), 0.0)
    meter.put(0, 1_000, START, START + 0.5)
    taken = meter.puts.take()
    assert taken.count == 1_000
    assert taken.longest == pytest.approx(0.5, abs=0.002)
    assert taken.at(0.5)[0] == pytest.approx(0.25, abs=0.03)
