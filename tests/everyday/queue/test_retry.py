"""When to try again and when to give up, without a clock."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localdelay import PermanentSendError, RetryPolicy, Throttled
from localdelay.queue.retry import Retry, after_failure, wait_after

SECONDS = st.floats(0, 1e9)


def test_the_defaults_retry_for_ever() -> None:
    """The pinned defaults: nothing is given up that nobody asked to give up."""
    assert RetryPolicy() == RetryPolicy(
        attempts=None, wait_initial=0.1, wait_max=30.0, wait_jitter=1.0, wait_exp_base=2.0
    )
    for attempt in (1, 2, 1000, 10**9):
        retry = after_failure(RetryPolicy(), OSError(), attempt=attempt, failures=attempt, jitter=0.5)
        assert retry is not None
        assert retry.attempt == attempt + 1


@pytest.mark.parametrize(
    ("failures", "jitter", "wait"),
    [
        (1, 0.0, 0.1),
        (2, 0.0, 0.2),
        (9, 0.0, 25.6),
        (10, 0.0, 30.0),
        (1, 1.0, 1.1),
        (3, 0.5, 0.9),
        (10**7, 0.5, 30.0),
    ],
)
def test_the_default_waits(failures: int, jitter: float, wait: float) -> None:
    """0.1 s, then twice as long each time, plus up to 1 s of jitter, at most 30 s."""
    assert RetryPolicy().wait(failures, jitter) == pytest.approx(wait, rel=1e-12)


@given(
    initial=SECONDS,
    longest=SECONDS,
    spread=SECONDS,
    base=st.floats(1, 10),
    failures=st.integers(1, 200),
    jitter=st.floats(0, 1),
)
def test_the_wait_is_the_documented_formula(
    initial: float, longest: float, spread: float, base: float, failures: int, jitter: float
) -> None:
    """min(wait_max, wait_initial · wait_exp_base^(n-1) + jitter), in exact arithmetic."""
    policy = RetryPolicy(wait_initial=initial, wait_max=longest, wait_jitter=spread, wait_exp_base=base)
    exact = Fraction(initial) * Fraction(base) ** (failures - 1) + Fraction(spread) * Fraction(jitter)
    assert policy.wait(failures, jitter) == pytest.approx(float(min(Fraction(longest), exact)), rel=1e-9)


@example(initial=0.0, failures=10**6, jitter=0.25, base=2.0)
@given(
    initial=st.sampled_from([0.0, 0.1]),
    failures=st.integers(1, 10**12),
    jitter=st.floats(0, 1),
    base=st.floats(1, 1e300),
)
def test_the_wait_stays_within_its_bounds(initial: float, failures: int, jitter: float, base: float) -> None:
    """However often it failed there is no overflow; of nothing the double is nothing, and jitter remains."""
    wait = RetryPolicy(wait_initial=initial, wait_exp_base=base).wait(failures, jitter)
    assert min(30.0, initial + jitter) - 1e-9 <= wait <= 30.0
    assert initial or wait == jitter


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_are_sends_in_all(attempts: int) -> None:
    """`attempts` counts the first send too: after that many it is given up."""
    policy = RetryPolicy(attempts=attempts, wait_jitter=0)
    for attempt in range(1, attempts):
        expected = Retry(0.1 * 2.0 ** (attempt - 1), attempt + 1)
        assert after_failure(policy, OSError(), attempt=attempt, failures=attempt, jitter=0.0) == expected
    for attempt in (attempts, attempts + 1):
        assert after_failure(policy, OSError(), attempt=attempt, failures=attempt, jitter=0.0) is None


def test_a_permanent_error_is_given_up_at_once() -> None:
    """`PermanentSendError` and its children end the message whatever the policy says."""

    class TooLarge(PermanentSendError):
        pass

    for error in (PermanentSendError(), TooLarge()):
        for attempts in (None, 1, 100):
            policy = RetryPolicy(attempts=attempts)
            assert after_failure(policy, error, attempt=1, failures=1, jitter=0.0) is None


def test_throttling_uses_up_no_attempt() -> None:
    """A throttled send is tried again as the same attempt, also where it was the last one."""
    policy = RetryPolicy(attempts=1, wait_jitter=0)
    for failures, wait in ((1, 0.1), (2, 0.2), (3, 0.4), (50, 30.0)):
        retry = after_failure(policy, Throttled("429"), attempt=1, failures=failures, jitter=0.0)
        assert retry == Retry(wait, 1)


@pytest.mark.parametrize("asked", [0, 0.0, 0.5, 7])
def test_throttling_waits_as_long_as_the_broker_asked(asked: float) -> None:
    """`retry_after` takes the place of the policy's wait, up to `wait_max`: no jitter, and 0 is one too."""
    policy = RetryPolicy(attempts=1)
    retry = after_failure(policy, Throttled(asked), attempt=1, failures=9, jitter=1.0)
    assert retry == Retry(asked, 1)
    assert wait_after(policy, Throttled("429", retry_after=asked), failures=9, jitter=1.0) == asked
    assert wait_after(policy, Throttled(1e19), failures=9, jitter=1.0) == policy.wait_max


def test_only_throttling_has_a_say_in_the_wait() -> None:
    """A `retry_after` on another exception means nothing here."""

    class Busy(Exception):
        retry_after = 99.0

    assert wait_after(RetryPolicy(wait_jitter=0), Busy(), failures=1, jitter=0.0) == 0.1


@pytest.mark.parametrize("name", ["wait_initial", "wait_max", "wait_jitter", "wait_exp_base"])
def test_a_wait_that_is_none_is_refused(name: str) -> None:
    """A negative, infinite or foreign number of seconds is refused by its name when the policy is made."""
    no_waits = [-0.001, -math.inf, math.inf, math.nan, 10**400, -(10**400)]
    for error, values in ((ValueError, no_waits), (TypeError, ["1", None, True, 1j, Decimal(1)])):
        for value in values:
            with pytest.raises(error, match=name):
                RetryPolicy(**{name: value})
            with pytest.raises(error, match=name):
                attrs.evolve(RetryPolicy(), **{name: value})


def test_attempts_and_a_base_that_are_none_are_refused() -> None:
    """`attempts` is a whole number of at least 1, or None; waits that shrink are no back-off."""
    wrong = {ValueError: [0, -1], TypeError: [1.0, math.inf, "3", True]}
    for error, values in wrong.items():
        for value in values:
            with pytest.raises(error, match="attempts"):
                RetryPolicy(attempts=value)
    with pytest.raises(ValueError, match="wait_exp_base"):
        RetryPolicy(wait_exp_base=0.999)


def test_a_policy_cannot_be_changed() -> None:
    """One policy may be shared by many queues, for nobody can change it."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().wait_max = 1.0  # type: ignore[misc]
