"""The circuit breaker: a table of states, without a clock."""

from __future__ import annotations

import math

import attrs
import hypothesis.strategies as st
import pytest
from hypothesis import given

from localdelay import BreakerPolicy
from localdelay.breaker import Breaker, BreakerState, Outcome

TAKEN, THROTTLED, DOWN, OTHER = Outcome
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
FORCED_OPEN, DISABLED = BreakerState.FORCED_OPEN, BreakerState.DISABLED
POLICY = BreakerPolicy(
    failure_rate=0.5, window=10, minimum_calls=4, consecutive=3, wait_initial=1.0, wait_max=5.0, trial_calls=2
)


def breaker(**changes: object) -> Breaker:
    return Breaker(attrs.evolve(POLICY, **changes), 0.0)


def call(breaker: Breaker, outcome: Outcome, now: float = 0.0) -> BreakerState:
    """One call from beginning to end; the state after it."""
    ticket = breaker.ask(now)
    assert ticket is not None
    breaker.record(now, ticket, outcome)
    return breaker.state


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ([DOWN, DOWN], CLOSED),
        ([DOWN, DOWN, DOWN], OPEN),
        ([DOWN, DOWN, OTHER, DOWN], OPEN),
        ([DOWN, DOWN, TAKEN], CLOSED),
        ([TAKEN, DOWN, TAKEN, DOWN], OPEN),
        ([DOWN, TAKEN, OTHER, OTHER, DOWN], CLOSED),
        ([TAKEN] * 10 + [DOWN, DOWN] + [TAKEN] * 2 + [DOWN, DOWN], CLOSED),
        ([TAKEN] * 10 + [DOWN, TAKEN] * 4 + [DOWN], OPEN),
        ([OTHER] * 20, CLOSED),
        ([THROTTLED] * 20, CLOSED),
        ([DOWN, DOWN, THROTTLED, DOWN], OPEN),
        ([THROTTLED] * 5 + [DOWN, DOWN], CLOSED),
    ],
)
def test_when_it_opens(outcomes: list[Outcome], state: BreakerState) -> None:
    """Three in a row, or half of the last ten once there are four; a refusal is an answer."""
    tested = breaker()
    for outcome in outcomes:
        assert tested.state is CLOSED
        call(tested, outcome)
    assert tested.state is state


def test_without_a_limit_in_a_row_only_the_share_counts() -> None:
    """`consecutive=None` leaves it to the window."""
    tested = breaker(consecutive=None, minimum_calls=6)
    for _ in range(5):
        assert call(tested, DOWN) is CLOSED
    assert call(tested, DOWN) is OPEN


def test_a_window_smaller_than_the_minimum_is_enough_when_it_is_full() -> None:
    """Else it would never open."""
    tested = breaker(consecutive=None, window=2, minimum_calls=4)
    assert call(tested, DOWN) is CLOSED
    assert call(tested, DOWN) is OPEN


def opened(now: float = 0.0, **changes: object) -> Breaker:
    tested = breaker(**changes)
    for _ in range(3):
        call(tested, DOWN, now)
    assert tested.state is OPEN
    return tested


def test_open_it_lets_no_call_through_until_the_wait_is_over() -> None:
    """Then it is half-open: a few calls, and no more of them at a time."""
    tested = opened(10.0)
    assert (tested.since, tested.retry_at) == (10.0, 11.0)
    assert tested.ask(10.999) is None
    first, second = tested.ask(11.0), tested.ask(11.0)
    assert tested.state is HALF_OPEN
    assert None not in (first, second)
    assert tested.ask(11.0) is None
    assert tested.retry_at == math.inf


def test_trials_that_never_end_do_not_use_up_the_trials() -> None:
    """After the patience they have failed: it opens for longer, and what comes of them is too late."""
    tested = Breaker(POLICY, 0.0, patience=30.0)
    for _ in range(3):
        call(tested, DOWN)
    hanging = [tested.ask(1.0), tested.ask(2.0)]
    assert tested.ask(31.999) is None
    assert tested.state is HALF_OPEN
    assert tested.ask(32.0) is None
    assert (tested.state, tested.retry_at) == (OPEN, 34.0)
    for ticket in hanging:
        assert ticket is not None
        tested.record(33.0, ticket, DOWN)
    assert call(tested, TAKEN, 34.0) is HALF_OPEN
    assert call(tested, TAKEN, 34.0) is CLOSED


def test_a_forced_closing_keeps_the_long_wait_and_a_reset_does_not() -> None:
    """Closed by hand it opens for the next longer wait; a reset forgets how often it has opened."""
    for forget, wait in ((False, 2.0), (True, 1.0)):
        tested = opened()
        if forget:
            tested.reset(0.5)
        else:
            tested.force_closed(0.5)
        for _ in range(3):
            call(tested, DOWN, 1.0)
        assert tested.retry_at == 1.0 + wait


NUMBERS = ["failure_rate", "wait_initial", "wait_max", "wait_exp_base", "wait_jitter"]
WHOLE = ["window", "minimum_calls", "consecutive", "trial_calls"]


def test_a_wrong_policy_is_refused_by_name() -> None:
    """Each argument says which it is."""
    wrong = [(name, value, ValueError) for name in NUMBERS for value in (-0.1, math.nan, math.inf)]
    wrong += [
        ("failure_rate", 0, ValueError),
        ("failure_rate", 1.1, ValueError),
        ("wait_exp_base", 0.5, ValueError),
    ]
    wrong += [(name, 0, ValueError) for name in WHOLE]
    wrong += [(name, "1", TypeError) for name in NUMBERS + WHOLE] + [(name, 1.5, TypeError) for name in WHOLE]
    for name, value, error in wrong:
        with pytest.raises(error, match=name):
            BreakerPolicy(**{name: value})  # type: ignore[arg-type]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "taken", "failed", "other", "force", "close", "disable", "reset"]),
        st.floats(0, 3),
        st.floats(0, 1),
    ),
    max_size=80,
)


@given(STEPS)
def test_whatever_happens_its_rules_hold(steps: list[tuple[str, float, float]]) -> None:
    """No ticket while it is open; never more trials under way than allowed; time only goes on."""
    tested = breaker()
    now = 0.0
    out: list[int] = []
    for step, wait, jitter in steps:
        now += wait
        if step == "ask":
            before = (tested.state, tested.retry_at)
            ticket = tested.ask(now)
            if before[0] is FORCED_OPEN or (before[0] is OPEN and now < before[1]):
                assert ticket is None
            if before[0] in (CLOSED, DISABLED):
                assert ticket is not None
            if ticket is not None:
                out.append(ticket)
                trials = [one for one in out if one == ticket]
                if tested.state is HALF_OPEN:
                    assert len(trials) <= POLICY.trial_calls
        elif step in ("force", "close", "disable", "reset"):
            {
                "force": tested.force_open,
                "close": tested.force_closed,
                "disable": tested.disable,
                "reset": tested.reset,
            }[step](now)
        elif out:
            outcome = {"taken": TAKEN, "other": OTHER}.get(step, DOWN)
            ticket = out.pop(int(jitter * (len(out) - 1)))
            state = tested.state
            tested.record(now, ticket, outcome, jitter)
            if state in (FORCED_OPEN, DISABLED):
                assert tested.state is state
            if tested.state is OPEN and state is not OPEN:
                assert tested.retry_at >= now + POLICY.wait_initial
        assert tested.since <= now
        assert (tested.retry_at < math.inf) == (tested.state is OPEN)
