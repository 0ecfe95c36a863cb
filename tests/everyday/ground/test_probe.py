"""Whether due messages are sent: a table of what happened, and of what follows."""

from __future__ import annotations

import math
from typing import Any

import pytest

from localdelay.probe import Probe, ProbePolicy

POLICY = ProbePolicy(failures=3, wait_initial=1.0, wait_max=4.0)


def played(story: str, policy: ProbePolicy | None = POLICY) -> Probe:
    """What a probe comes to by this: digits are messages that fail, `+` is one that is sent.

    `!3`: message 3 goes out as the probe, and fails; `~3`: and is throttled; `=3`: and is refused for ever. A
    second passes after each.
    """
    probe = Probe(policy)
    now = 0.0
    for word in story.split():
        numbers = [int(digit) for digit in word if digit.isdigit()]
        if word[0] in "!~=":
            assert probe.is_shut
            probe.out = numbers[0]
        if word == "+":
            probe.sent()
        elif word[0] == "~":
            probe.throttled(now, numbers, 0.0)
        elif word[0] != "=":
            probe.failed(now, numbers, 0.0)
        now += 1.0
    return probe


@pytest.mark.parametrize(
    ("story", "next_at"),
    [
        ("", None),
        ("1 2", None),
        ("1 2 3", 3.0),  # three in a row, and a second until the first probe
        ("1 2 + 3", None),  # one was sent in between
        ("1 1 1 1 1", None),  # a poisoned message alone
        ("1 2 1 2 1 2", None),
        ("1 2 1 3", 4.0),
        ("123 456", None),  # a batch fails as one call,
        ("123 456 789", 3.0),
        ("123 145 167", None),  # and what is in all of them may be to blame
        ("1 2 3 4", 3.0),  # one that was under way when it shut is no probe
        ("1 2 3 !4", 5.0),  # the waits grow,
        ("1 2 3 !4 !5", 8.0),
        ("1 2 3 !4 !5 !6", 9.0),  # up to the maximum
        ("1 2 3 !4 !4", 8.0),
        ("1 2 3 ~4", 5.0),  # neither opens nor hastens
        ("1 2 3 =4", 3.0),  # the next probe may go at once
        ("1 2 3 +", None),
        ("1 2 3 !4 +", None),
        ("1 2 3 !4 + 5 6", None),
        ("1 2 3 !4 + 5 6 7", 8.0),  # the waits are short again
    ],
)
def test_it_shuts_by_a_row_of_different_messages_and_opens_by_one(story: str, next_at: float | None) -> None:
    """Whether it is shut in the end, and when the next probe goes."""
    probe = played(story)
    assert probe.is_shut is (next_at is not None)
    if next_at is not None:
        assert probe.next_at == next_at


def test_without_a_policy_it_never_shuts() -> None:
    """Whatever fails."""
    assert not played("1 2 3 4 5 6 7 8 9", policy=None).is_shut


def test_the_jitter_makes_waits_longer_by_a_third_at_most() -> None:
    """Instances do not come back together."""
    probe = Probe(ProbePolicy(failures=1, wait_initial=1.0))
    assert probe.failed(10.0, [1], 1.0)
    assert probe.next_at == 11.3


@pytest.mark.parametrize("name", ["failures", "wait_initial", "wait_max"])
@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ("1", TypeError)]
)
def test_wrong_arguments_are_named(name: str, value: Any, error: type[Exception]) -> None:
    """Each is an error at once."""
    if name == "failures" and isinstance(value, float):
        error = TypeError
    with pytest.raises(error, match=name):
        ProbePolicy(**{name: value})
