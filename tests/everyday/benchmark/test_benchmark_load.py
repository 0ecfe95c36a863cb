"""The benchmark's load: when each message is to be put, with which delay, and the generator that does it."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from localdelay.benchmark.load import CHUNK, Delays, Generator, Pace, filling, number_in

PACES = [
    Pace(4.0, 4.0, 3.0),
    Pace(1_000.0, 1_000.0, 0.01),
    Pace(500_000.0, 500_000.0, 2.0),
    Pace(1.0, 100.0, 10.0),
    Pace(1_000.0, 100_000.0, 60.0),
    Pace(100_000.0, 1_000.0, 60.0),
    Pace(0.3, 7.7, 13.1),
]


def test_an_even_load_is_put_at_even_times() -> None:
    """Message i is to be put at i / rate."""
    pace = Pace(4.0, 4.0, 2.0)
    assert pace.total == 8
    assert [pace.offset(number) for number in range(8)] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_a_ramp_grows_evenly() -> None:
    """From 10/s to 30/s in 2 s: 40 messages, 15 of them in the first second."""
    pace = Pace(10.0, 30.0, 2.0)
    assert (pace.total, pace.highest) == (40, 30.0)
    offsets = [pace.offset(number) for number in range(pace.total)]
    assert offsets[0] == 0
    assert sum(offset < 1 for offset in offsets) == 15
    assert offsets[15] == pytest.approx(1.0, abs=1e-12)
    assert [pace.rate_at(when) for when in (-1, 0, 0.5, 1, 2, 3)] == [10, 10, 15, 20, 30, 30]


@pytest.mark.parametrize("pace", PACES, ids=str)
def test_times_rise_and_counts_are_their_inverse(pace: Pace) -> None:
    """No message is to be put before an earlier one, and counts agree with the times to within one."""
    step = max(1, pace.total // 997)
    numbers = [*range(0, pace.total, step), pace.total - 1]
    offsets = [pace.offset(number) for number in numbers]
    assert offsets == sorted(offsets)
    assert offsets[0] >= 0
    assert offsets[-1] <= pace.seconds
    for number, offset in zip(numbers, offsets, strict=True):
        assert abs(pace.put_by(offset) - (number + 1)) <= 1
    assert pace.put_by(-1.0) <= 1
    assert pace.put_by(pace.seconds * 2) == pace.total


def test_a_load_has_at_least_one_message() -> None:
    """A rate too low for the time still puts one, or there would be nothing to measure."""
    assert Pace(0.01, 0.01, 1.0).total == 1


def test_one_delay_for_all() -> None:
    """A lone delay needs a table of one, whatever it was given as."""
    for delays in (Delays((2.0,)), Delays((2.0, 2.0)), Delays((2.0, 2.0), is_range=True)):
        assert list(delays.table(seed=1)) == [2.0]
        assert (delays.shortest, delays.longest) == (2.0, 2.0)


def test_random_delays_repeat_with_their_seed() -> None:
    """A range stays within its ends, several stay among themselves, and the table is a power of two."""
    among, within = Delays((1.0, 5.0, 30.0)), Delays((0.1, 5.0), is_range=True)
    assert set(among.table(seed=7)) == {1.0, 5.0, 30.0}
    table = within.table(seed=7)
    assert table == within.table(seed=7) != within.table(seed=8)
    assert min(table) >= 0.1
    assert max(table) <= 5.0
    assert sum(table) / len(table) == pytest.approx(2.55, abs=0.1)
    assert len(table) & (len(table) - 1) == 0
    assert (among.shortest, among.longest) == (1.0, 30.0)


def test_payloads_carry_their_number() -> None:
    """The first eight bytes are the number, the rest is noise that repeats with its seed."""
    payload = (123_456).to_bytes(8, "big") + filling(500, seed=3)
    assert len(payload) == 500
    assert number_in(payload) == 123_456
    assert filling(500, seed=3) == filling(500, seed=3) != filling(500, seed=4)
    assert filling(8, seed=3) == b""
    assert len(set(filling(500, seed=3))) > 100


async def test_each_message_is_put_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """On a clock that never lags, every put is at its exact time, one by one."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    pace = Pace(draw.uniform(1, 50), draw.uniform(1, 50), draw.uniform(1, 9))
    put: list[tuple[int, float]] = []
    runs: list[tuple[int, int, float, float]] = []
    generator = Generator(pace, trio.current_time)
    await generator.offer(
        lambda first, stop: put.extend((number, trio.current_time()) for number in range(first, stop)),
        lambda *run: runs.append(run),
    )
    assert [number for number, _ in put] == list(range(pace.total))
    for number, when in put:
        assert when == pytest.approx(generator.start + pace.offset(number), abs=1e-9)
    assert generator.done == pace.total
    assert sum(stop - first for first, stop, _, _ in runs) == pace.total


async def test_a_late_generator_catches_up_in_chunks(mock_clock: trio.testing.MockClock) -> None:
    """What it has missed it puts in runs that let other tasks in, and in order."""
    runs: list[tuple[int, int]] = []

    def put_run(first: int, stop: int) -> None:
        runs.append((first, stop))
        if first == 0:
            mock_clock.jump(10.0)

    await Generator(Pace(100.0, 100.0, 10.0), trio.current_time).offer(put_run, lambda *_: None)
    assert runs[0] == (0, 1)
    assert runs[1] == (1, 1 + CHUNK)
    assert runs[-1][1] == 1_000
    assert [stop for _, stop in runs[:-1]] == [first for first, _ in runs[1:]]


async def test_it_starts_when_it_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """With a start in the past the load is late from the beginning, and does not shift its times."""
    began = trio.current_time()
    await trio.sleep(0.5)
    put: list[tuple[int, int, float]] = []
    generator = Generator(Pace(2.0, 2.0, 2.0), trio.current_time)
    await generator.offer(
        lambda first, stop: put.append((first, stop, trio.current_time() - began)), lambda *_: None, began
    )
    assert put == [(0, 2, 0.5), (2, 3, 1.0), (3, 4, 1.5)]


async def test_a_timer_that_wakes_early_puts_nothing_early(autojump_clock: trio.testing.MockClock) -> None:
    """That the timer woke says nothing: the clock decides."""
    put: list[float] = []

    async def restless(when: float) -> None:
        await trio.sleep_until(min(when, trio.current_time() + 0.1))

    generator = Generator(Pace(1.0, 1.0, 3.0), trio.current_time)
    await generator.offer(
        lambda first, stop: put.extend([trio.current_time() - generator.start] * (stop - first)),
        lambda *_: None,
        sleep_until=restless,
    )
    assert put == pytest.approx([0.0, 1.0, 2.0])
    assert put == sorted(put)
    assert all(when >= number for number, when in enumerate(put))
