"""The load and its meter: when a message is to be put and sent, how late it was, when a rate is held."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from localdelay import Message, PartialSendError
from localdelay.benchmark.load import CHUNK, Delays, Pace, TrioLoop, filling, number_in, offer
from localdelay.benchmark.meter import GROUP, Meter
from localdelay.benchmark.result import HELD_P99, best, is_held, ladder, next_rate
from localdelay.lateness import Latencies

PACES = [
    Pace(4.0, 4.0, 3.0),
    Pace(500_000.0, 500_000.0, 2.0),
    Pace(1.0, 100.0, 10.0),
    Pace(100_000.0, 1_000.0, 60.0),
    Pace(0.3, 7.7, 13.1),
]
RUNGS = ladder(100, 2_000_000)


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_times_rise_and_counts_are_their_inverse(pace: Pace) -> None:
    """No message is to be put before an earlier one, and counts agree with the times to within one."""
    numbers = [*range(0, pace.total, max(1, pace.total // 997)), pace.total - 1]
    offsets = [pace.offset(number) for number in numbers]
    assert offsets == sorted(offsets)
    assert 0 <= offsets[0] <= offsets[-1] <= pace.seconds
    for number, offset in zip(numbers, offsets, strict=True):
        assert abs(pace.put_by(offset) - (number + 1)) <= 1
    assert pace.put_by(pace.seconds * 2) == pace.total


def test_a_ramp_grows_evenly() -> None:
    """From 10/s to 30/s in 2 s: 40 messages, 15 of them in the first second; any load has one at least."""
    pace = Pace(10.0, 30.0, 2.0)
    assert sum(pace.offset(number) < 1 for number in range(pace.total)) == 15
    assert [pace.rate_at(when) for when in (-1, 0, 0.5, 1, 2, 3)] == [10, 10, 15, 20, 30, 30]
    assert (pace.total, Pace(0.01, 0.01, 1.0).total) == (40, 1)


def test_random_delays_repeat_with_their_seed() -> None:
    """A range stays within its ends, several stay among themselves; one delay needs a table of one."""
    among, within = Delays((1.0, 5.0, 30.0)), Delays((0.1, 5.0), is_range=True)
    assert set(among.table(seed=7)) == {1.0, 5.0, 30.0}
    table = within.table(seed=7)
    assert table == within.table(seed=7) != within.table(seed=8)
    assert 0.1 <= min(table) <= max(table) <= 5.0
    assert len(table) & (len(table) - 1) == 0
    assert list(Delays((2.0, 2.0), is_range=True).table(seed=1)) == [2.0]


def test_payloads_carry_their_number() -> None:
    """The first eight bytes are the number, the rest is noise that repeats with its seed."""
    payload = (123_456).to_bytes(8, "big") + filling(500, seed=3)
    assert (len(payload), number_in(payload)) == (500, 123_456)
    assert filling(500, seed=3) == filling(500, seed=3) != filling(500, seed=4)
    assert len(set(filling(500, seed=3))) > 100


async def test_each_message_is_put_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """On a clock that never lags every put is at its exact time, also where the timer wakes too early."""
    draw = random.Random(11)
    pace = Pace(draw.uniform(1, 50), draw.uniform(1, 50), draw.uniform(1, 9))
    put: list[tuple[int, float]] = []

    async def restless(when: float) -> None:
        await trio.sleep_until(min(when, trio.current_time() + 0.01))

    def put_run(first: int, stop: int) -> None:
        put.extend((number, trio.current_time()) for number in range(first, stop))

    start = trio.current_time()
    await offer(pace, TrioLoop(restless), start, put_run, lambda *_: None)
    assert [number for number, _ in put] == list(range(pace.total))
    assert all(when == pytest.approx(start + pace.offset(number), abs=1e-9) for number, when in put)


async def test_a_late_load_catches_up_in_chunks(mock_clock: trio.testing.MockClock) -> None:
    """What it has missed it puts in runs that let other tasks in, and in order; its times do not shift."""
    runs: list[tuple[int, int]] = []

    def put_run(first: int, stop: int) -> None:
        runs.append((first, stop))
        if first == 0:
            mock_clock.jump(10.0)

    await offer(Pace(100.0, 100.0, 10.0), TrioLoop(), trio.current_time(), put_run, lambda *_: None)
    assert runs[:2] == [(0, 1), (1, 1 + CHUNK)]
    assert runs[-1][1] == 1_000
    assert [stop for _, stop in runs[:-1]] == [first for first, _ in runs[1:]]


class Metered:
    """A meter whose clock stands until it is told the time, in seconds since the start of the load."""

    def __init__(self, rate: float, *delays: float) -> None:
        self.now = 0.0
        self.meter = Meter(Pace(rate, rate, 10.0), Delays(delays), 1, lambda: self.now)
        self.meter.start(0.0)

    def begin(self, now: float, *messages: Message, batch: bool = False) -> None:
        self.now = now
        if batch:
            self.meter.begin_batch(messages)
        for message in () if batch else messages:
            self.meter.begin(message.execute_at, message.payload)

    def values(self) -> list[tuple[float, int]]:
        """(seconds, how many up to it), without what the histogram's three digits may add."""
        self.meter.finish()
        steps = self.meter.total.steps()
        return [(round(seconds, 5 if seconds < 0.01 else 2), reached) for seconds, reached in steps]


def message(number: int, execute_at: float = 0.0) -> Message:
    return Message(id=str(number), payload=number.to_bytes(8, "big") + b"...", execute_at=execute_at)


def test_a_latency_counts_from_when_the_message_was_to_be_put() -> None:
    """Put a second late and sent at its execute-at, a message is a second late, and not in time."""
    one = Metered(2.0, 3.0)
    one.begin(4.5, message(1, execute_at=4.5))
    assert one.values() == [(1.0, 1)]
    assert (one.meter.early, one.meter.p99) == (0, 1.0)


@pytest.mark.parametrize("batch", [False, True])
def test_delays_are_told_from_the_number(batch: bool) -> None:
    """With several delays each message is due its own delay after its own time, in a batch as alone."""
    table = Delays((1.0, 5.0)).table(1)
    one = Metered(10.0, 1.0, 5.0)
    one.begin(9.5, *(message(number) for number in range(4)), batch=batch)
    late = sorted(round(9.5 - number / 10 - table[number], 2) for number in range(4))
    assert [value for value, _ in one.values()] == sorted(set(late))


def test_intervals_are_seconds_from_the_first_that_is_due() -> None:
    """A silent second stays empty, and what has hardly begun joins the one before."""
    one = Metered(1.0, 7.0)
    for number, now in enumerate([7.0, 8.5, 10.25, 10.5, 11.001]):
        one.begin(now, message(number, execute_at=7.0))
    one.meter.finish()
    assert [interval.count for interval in one.meter.intervals] == [1, 1, 0, 3]
    assert one.meter.total == Latencies.together(one.meter.intervals)


def test_a_batch_is_recorded_as_its_messages_are() -> None:
    """Consecutive messages of a batch are recorded in groups, by their first: GROUP is added at most."""
    found = []
    for batch in (False, True):
        one = Metered(100_000.0, 0.0)
        messages = [message(number, execute_at=number / 100_000) for number in range(1_000)]
        one.begin(0.0125, *messages, batch=batch)
        one.meter.finish()
        found.append(one.meter.total)
    exact, grouped = found
    assert (exact.count, exact.longest) == (grouped.count, grouped.longest)
    for share in (0.01, 0.3, 0.5, 0.9):
        assert exact.at(share)[0] <= grouped.at(share)[0] <= exact.at(share)[0] + GROUP + 2e-5
    assert len(grouped.counts) < len(exact.counts) / 3


@pytest.mark.parametrize("numbers", [[3, 5], [4, 3], [7], [0, 1, 3]])
def test_a_batch_that_is_not_consecutive_is_recorded_one_by_one(numbers: list[int]) -> None:
    """Whatever comes together, each counts from its own time."""
    one = Metered(10.0, 0.0)
    one.begin(1.0, *map(message, numbers), batch=True)
    expected = sorted(round(1.0 - number / 10, 2) for number in numbers)
    assert one.values() == [(value, rank + 1) for rank, value in enumerate(expected)]


def test_an_early_send_is_counted() -> None:
    """A send before the execute-at shows, alone and in a batch, and counts as no negative latency."""
    one = Metered(1.0, 1.0)
    one.begin(1.0, message(0, execute_at=1.5))
    one.begin(1.0, message(0, execute_at=0.5), message(1, execute_at=2.0), batch=True)
    assert one.values() == [(0.0, 3)]
    assert one.meter.early == 2


def test_only_the_first_send_of_a_message_is_recorded() -> None:
    """What failed or was cut off comes again, also out of a batch of which the rest was sent."""
    one = Metered(10.0, 0.0)
    batch = [message(0), message(1), message(2)]
    one.begin(0.5, *batch, batch=True)
    one.meter.fail(batch, PartialSendError({"1": ConnectionError()}))
    assert (one.meter.sent, type(one.meter.failure), one.meter.failed_at) == (2, ConnectionError, 0.5)
    one.begin(0.6, message(1))
    one.meter.fail([message(1)], KeyboardInterrupt())
    one.begin(0.7, message(1), message(3), batch=True)
    one.meter.end([message(1), message(3)])
    assert one.values()[-1][1] == one.meter.sent == 4
    assert isinstance(one.meter.failure, ConnectionError), "a cancelled send is no failure"


def test_the_puts_own_lateness() -> None:
    """A run of puts that began late is late by that, message by message, over the time that it took."""
    one = Metered(10.0, 0.0)
    one.meter.put(0, 1, 0.0, 0.0)
    one.meter.put(1, 4, 0.3, 0.3)
    late = [(round(seconds, 2), reached) for seconds, reached in one.meter.puts.take().steps()]
    assert late == [(0.0, 2), (0.1, 3), (0.2, 4)]
    slow = Metered(1e6, 0.0)
    slow.meter.put(0, 1_000, 0.0, 0.5)
    assert slow.meter.puts.take().at(0.5)[0] == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("p99", "sent", "early", "expected"),
    [
        (0.0099, 10, 0, True),
        (0.0100, 10, 0, False),
        (0.0001, 9, 0, False),
        (0.0001, 11, 0, False),
        (0.0001, 10, 1, False),
        (None, 0, 0, False),
    ],
)
def test_when_a_rate_is_held(p99: float | None, sent: int, early: int, expected: bool) -> None:
    """p99 under 10 ms, all sent and nothing twice, nothing early."""
    assert HELD_P99 == 0.010
    assert is_held(p99, offered=10, sent=sent, early=early) is expected


@given(st.integers(1, 3_000_000), st.floats(1, 3e6), st.integers(1, 5))
def test_the_search_finds_the_highest_rate(limit: int, first: float, stride: int) -> None:
    """Whatever was tried first, and whatever holds: the right rung, none twice, in few steps."""
    assert ladder(1_000, 20_000) == [1_000, 2_000, 3_000, 5_000, 7_000, 10_000, 20_000]
    tried = {first: first <= limit}
    while (rate := next_rate(RUNGS, tried, stride)) is not None:
        assert rate in RUNGS
        assert rate not in tried
        tried[rate] = rate <= limit
        assert len(tried) <= 10
    assert best(tried) == max((rate for rate in (*RUNGS, first) if rate <= limit), default=None)
