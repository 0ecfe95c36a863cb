"""The rate that is found: exact in virtual time, and what holds whatever comes."""

from __future__ import annotations

import math
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from localdelay import AdaptiveLimit
from localdelay.adaptive import Finder, Lately
from localdelay.breaker import Outcome

TAKEN, THROTTLED = Outcome.TAKEN, Outcome.THROTTLED


def busy(finder: Finder, since: float, until: float, rate: float = 100.0) -> None:
    """Calls are asked for all the time and held back, so that the limit is what limits."""
    for number in range(1, round((until - since) * rate) + 1):
        finder.ask(since + number / rate)
        finder.hold_back(since + number / rate)


def limiting(rate: int = 100, at: float = 10.0) -> Finder:
    """A finder that has begun at this time: so many calls a second were taken before it."""
    finder = Finder()
    for number in range(int(at * rate)):
        finder.ask(number / rate)
        finder.taken(number / rate)
    finder.ask(at)
    finder.refused(at, at, None, 0.0)
    return finder


def settled(at: float = 12.0) -> Finder:
    """A finder that has found a ceiling of 100 a second at this time."""
    finder = limiting()
    busy(finder, 10.0, at)
    for number in range(100):
        finder.taken(at - 1.0 + number / 100)
    finder.refused(at, at, None, 0.0)
    return finder


def test_it_is_off_until_a_call_is_refused() -> None:
    """Everything goes through; then it begins with what was taken in the last second."""
    finder = Finder()
    for number in range(1000):
        assert finder.ask(number / 100) is None
        finder.taken(number / 100)
    finder.refused(9.99, 9.99, None, 0.0)
    assert finder.rate == pytest.approx(100, rel=0.02)


@pytest.mark.parametrize("passed", [0.25, 0.5, 1.0, 2.0])
def test_it_doubles_every_quarter_of_a_second_at_first(passed: float) -> None:
    """Until a call is refused again."""
    finder = limiting()
    begun = finder.rate
    assert begun is not None
    busy(finder, 10.0, 10.0 + passed, 1000.0)
    assert finder.rate == pytest.approx(begun * 2 ** (passed / 0.25))


def test_a_ceiling_is_what_was_taken_and_the_rate_a_hundredth_under_it() -> None:
    """It is back there in 0.8 s, then searches, and after 2.8 s takes the ceiling to be gone."""
    finder = settled()
    assert finder.rate == pytest.approx(99, rel=0.02)
    ceiling = finder.rate / 0.99
    busy(finder, 12.0, 12.79)
    assert finder.rate == pytest.approx(ceiling, rel=1e-3)
    busy(finder, 12.79, 14.79)
    assert finder.rate == pytest.approx(ceiling * (1 + 0.02 * 2**3), rel=1e-2)
    found = finder.rate
    busy(finder, 14.79, 16.79, 1000.0)
    assert finder.rate == pytest.approx(4 * found, rel=0.02)


def test_a_ceiling_is_never_over_the_rate() -> None:
    """What was taken before it fell says nothing about now."""
    finder = settled()
    rate = finder.rate
    assert rate is not None
    for number in range(500):
        finder.taken(12.0 + number / 500)
    finder.refused(13.0, 13.0, None, 0.0)
    assert finder.rate is not None
    assert finder.rate <= rate * 1.01


@pytest.mark.parametrize(("begun", "cuts"), [(11.9, False), (12.0, False), (12.39, False), (12.4, True)])
def test_calls_from_before_the_cut_say_nothing(begun: float, cuts: bool) -> None:
    """Nor do those of the same moment: their refusal was known."""
    finder = settled()
    busy(finder, 12.0, 12.5)
    before = finder.rate
    finder.refused(12.5, begun, None, 0.0)
    assert (finder.rate != before) is cuts


def test_it_rises_only_while_it_limits() -> None:
    """Calls that all go through find out nothing about more of them."""
    finder = settled()
    for number in range(190):  # nearly as many as the rate lets through, and none held back
        finder.ask(12.0 + number / 95)
    assert finder.rate == pytest.approx(99, rel=0.03)


def test_it_goes_off_when_the_traffic_stays_under_it() -> None:
    """After two seconds at less than 85 % of the rate; and begins anew with the next refusal."""
    finder = settled()
    for number in range(1, 190):
        finder.ask(12.0 + number / 80)
        if number < 79:
            assert finder.rate is not None
    assert finder.rate is None
    finder.taken(14.4)
    finder.refused(14.4, 14.4, None, 0.0)
    assert finder.rate is not None
    assert finder.rate < 10


def test_where_nothing_is_taken_it_waits_longer_and_longer() -> None:
    """From the fourth refusal in a row on: 0.05 s, doubled each time, a second at most, less the jitter."""
    finder = settled()
    waits = []
    for _ in range(9):
        finder.refused(12.0, 12.0, None, 1.0)
        waits.append(finder.shut_for(12.0))
    assert waits[:2] == [-math.inf, -math.inf]
    assert waits[2:] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    finder = settled()
    for _ in range(4):
        finder.refused(12.0, 12.0, None, 0.0)
    assert finder.shut_for(12.0) == pytest.approx(0.05)


@pytest.mark.parametrize(("asked", "wait"), [(3.0, 3.0), (1e9, 30.0), (0.0, 0.1)])
def test_retry_after_is_obeyed_where_nothing_is_taken(asked: float, wait: float) -> None:
    """30 s at most, from the sixth refusal in a row on; and no primary that takes other calls is shut by it.

    Two short tries come first: a quota's next second may begin long before the primary says so.
    """
    finder = settled()
    finder.refused(12.0, 12.0, asked, 0.0)
    finder.taken(12.0)
    finder.refused(12.0, 12.0, asked, 0.0)
    assert finder.shut_for(12.0) <= 0
    waits = []
    for _ in range(5):
        finder.refused(12.0, 12.0, asked, 0.0)
        waits.append(finder.shut_for(12.0))
    assert waits[1:] == pytest.approx([-math.inf, 0.025, 0.05, max(wait, 0.1)])


def outlived(finder: Finder) -> float:
    """The rate behind a minute from 12 s on in which nothing was taken."""
    for second in range(60):
        busy(finder, 12.0 + second, 12.9 + second)
        finder.refused(12.9 + second, 12.8 + second, None, 0.0)
    finder.taken(72.0)
    assert finder.rate is not None
    return finder.rate


def test_after_an_outage_it_begins_with_what_there_was_before() -> None:
    """A minute in which nothing was taken does not hold it down: it doubles from the first that is."""
    finder = settled()
    before = finder.rate
    found = outlived(finder)
    assert found == pytest.approx(before, rel=0.03)
    busy(finder, 72.0, 72.5, 2000.0)
    assert finder.rate == pytest.approx(4 * found)


def test_what_there_was_before_an_outage_is_tried_once() -> None:
    """Where it has gone, the next one begins with what was taken since."""
    finder = settled()
    outlived(finder)
    for number in range(8):
        finder.refused(73.0 + number, 73.0 + number, None, 0.0)
    finder.taken(82.0)
    assert finder.rate is not None
    assert finder.rate < 3


def test_a_ceiling_is_measured_over_the_whole_of_a_quotas_second() -> None:
    """What was taken from one refusal to the next, and not in a second that leaves out when none was."""
    finder = settled()
    for number in range(200):  # a hundred in each second's first half
        begun = 12.0 + number // 100 + number % 100 / 200
        finder.ask(begun)
        finder.taken(begun)
        finder.hold_back(begun)
    finder.refused(13.5, 13.5, None, 0.0)
    assert finder.rate is not None
    found = finder.rate
    assert found == pytest.approx(99, rel=0.03)
    busy(finder, 13.5, 14.0)
    assert finder.rate < 1.02 * found


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "hold", "taken", "refused"]),
        st.sampled_from([0.0, 1e-6, 0.001, 0.1, 1.0, 100.0]),
        st.sampled_from([None, 0.0, 0.5, 1e300]),
    ),
    max_size=200,
)


@given(STEPS)
def test_whatever_comes_the_rate_is_a_number(steps: list[tuple[str, float, float | None]]) -> None:
    """Never NaN, infinite or so low that it would never try again; and shut for 30 s at most."""
    finder, now = Finder(), 0.0
    for kind, passed, retry_after in steps:
        now += passed
        if kind == "ask":
            finder.ask(now)
        elif kind == "hold":
            finder.hold_back(now)
        elif kind == "taken":
            finder.taken(now)
        else:
            finder.refused(now, max(0.0, now - passed), retry_after, 0.5)
        assert finder.rate is None or 0.1 <= finder.rate < math.inf
        assert finder.shut_for(now) <= 30.001


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 2.0, 10.0, 14.0]))
def test_what_happened_lately_is_counted_in_tenths(gaps: list[int], seconds: float) -> None:
    """As counting one by one would find it, over the same tenths of a second."""
    lately, times, tenth = Lately(), [], 0
    for gap in gaps:
        tenth += gap
        times.append(tenth)
        lately.add(tenth / 10 + 0.05)
    recent = [one for one in times if one >= tenth - round(seconds * 10)]
    assert lately.rate(tenth / 10 + 0.05, seconds) == pytest.approx(len(recent) / (seconds + 0.05))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_limit_lets_through_what_was_found() -> None:
    """Paced, with two calls at once, and no more; what was not made comes back."""
    clock, limit = Clock(), AdaptiveLimit()
    limit.use_clock(clock)
    assert limit.limit_rate is None
    assert limit.wait == 0
    for _ in range(100):
        assert limit.try_acquire()
        limit.record(TAKEN, 0.0, None, 0.0)
        clock.now += 0.1
    assert limit.try_acquire()
    limit.record(THROTTLED, 0.0, None, 0.0)
    assert limit.limit_rate == pytest.approx(10, rel=0.1)
    assert not limit.try_acquire()
    assert 0 < limit.wait <= 0.12
    clock.now += 0.25
    assert [limit.try_acquire() for _ in range(4)] == [True, True, False, False]
    limit.give_back()
    assert limit.try_acquire()


def test_the_clock_of_another_run_begins_anew() -> None:
    """What was found in one run is not held against the next, whose clock may stand far behind."""
    clock, limit = Clock(), AdaptiveLimit()
    limit.use_clock(clock)
    for _ in range(9):
        limit.try_acquire()
        limit.record(THROTTLED, 0.0, 30.0, 0.0)
    assert not limit.try_acquire()
    clock.now = 0.0
    assert limit.try_acquire()
    assert limit.limit_rate is None


@pytest.mark.parametrize("offered", [1.1, 2.0, 5.0, 20.0])
def test_a_quota_of_whole_seconds_is_found_however_soon_it_is_used_up(offered: float) -> None:
    """What was taken in the second that has begun is measured, and not the rest of it, when nothing is."""
    now, limit = 0.0, AdaptiveLimit()
    limit.use_clock(lambda: now)
    second, left, taken, refused = -1, 0, 0, 0
    for number in range(round(30 * 100 * offered)):
        now = number / (100 * offered)
        if int(now) != second:
            second, left = int(now), 100
        if limit.try_acquire():
            takes = left > 0
            left, taken, refused = left - takes, taken + takes, refused + (not takes)
            limit.record(TAKEN if takes else THROTTLED, 0.0, None, 0.5)
    assert taken >= 0.95 * 3000
    assert refused <= 0.03 * taken


def test_nothing_taken_is_no_ceiling_to_be_careful_about() -> None:
    """Whoever was refused all, and asks when it is told to, calls again within two seconds."""
    now, limit, calls = 0.0, AdaptiveLimit(), [0.0]
    limit.use_clock(lambda: now)
    limit.record(THROTTLED, 0.0, None, 0.5)
    while now < 20:
        now += limit.wait
        if limit.try_acquire():
            calls.append(now)
            limit.record(THROTTLED, 0.0, None, 0.5)
    assert max(after - before for before, after in pairwise(calls)) <= 2
    assert len(calls) <= 22


def test_who_is_told_to_slow_down_makes_no_call_for_so_long() -> None:
    """Though none was refused; and no longer than `retry_after_max`."""
    now, limit = 0.0, AdaptiveLimit(retry_after_max=10.0)
    limit.use_clock(lambda: now)
    limit.slow_down(5.0)
    assert limit.wait == 5
    limit.slow_down(50.0)
    now = 9.9
    assert not limit.try_acquire()
    assert limit.wait == pytest.approx(0.1)
