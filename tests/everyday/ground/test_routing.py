"""Where a message goes: the whole table, and what holds for all of it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from localdelay import PermanentSendError, Reason, Throttled
from localdelay.breaker import Outcome
from localdelay.fallback.routing import MODES, Action, Decision, Failure, decide, failure_of, outcome_of

CALL, HOLD, RAISE = Action.CALL, Action.HOLD, Action.RAISE
OPEN, LIMITED = Reason.BREAKER_OPEN, Reason.RATE_LIMITED
REFUSED, AMBIGUOUS, OTHER = Failure.REFUSED, Failure.AMBIGUOUS, Failure.OTHER
ORDINARY: dict[str, Any] = {"mode": "active", "may_degrade": True}


@pytest.mark.parametrize(
    ("situation", "action", "reason"),
    [
        # before the primary is called
        ({}, CALL, None),
        ({"may_degrade": False}, CALL, None),
        ({"refusal": OPEN}, HOLD, OPEN),
        ({"refusal": LIMITED}, HOLD, LIMITED),
        ({"refusal": OPEN, "may_degrade": False}, RAISE, OPEN),
        ({"refusal": LIMITED, "may_degrade": False}, RAISE, LIMITED),
        ({"mode": "forced"}, HOLD, Reason.FORCED),
        ({"mode": "forced", "refusal": OPEN}, HOLD, Reason.FORCED),
        ({"mode": "forced", "may_degrade": False}, RAISE, Reason.FORCED),
        ({"mode": "shadow"}, CALL, None),
        ({"mode": "shadow", "refusal": OPEN}, CALL, OPEN),
        ({"mode": "shadow", "refusal": OPEN, "may_degrade": False}, CALL, OPEN),
        # after a call that failed
        ({"failure": REFUSED}, HOLD, Reason.THROTTLED),
        ({"failure": REFUSED, "may_degrade": False}, RAISE, Reason.THROTTLED),
        ({"failure": REFUSED, "mode": "shadow"}, RAISE, Reason.THROTTLED),
        ({"failure": AMBIGUOUS}, RAISE, None),
        ({"failure": AMBIGUOUS, "degrade_ambiguous": True}, HOLD, Reason.AMBIGUOUS),
        ({"failure": AMBIGUOUS, "degrade_ambiguous": True, "may_degrade": False}, RAISE, Reason.AMBIGUOUS),
        ({"failure": OTHER}, RAISE, None),
        ({"failure": OTHER, "degrade_ambiguous": True}, RAISE, None),
    ],
)
def test_the_table(situation: dict[str, Any], action: Action, reason: Reason | None) -> None:
    """Each line: what is so, what is to be done, and why; what has a reason degrades if it may."""
    may_degrade = situation.get("may_degrade", True)
    degrades = may_degrade and reason is not None
    assert decide(**ORDINARY | situation) == Decision(action, reason, degrades)


SITUATIONS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(MODES),
        "may_degrade": st.booleans(),
        "refusal": st.sampled_from([None, OPEN, LIMITED]),
        "degrade_ambiguous": st.booleans(),
        "failure": st.sampled_from([None, *Failure]),
    }
)


@given(SITUATIONS)
def test_what_holds_for_every_situation(situation: dict[str, Any]) -> None:
    """What may not degrade is never held; a failed call is not repeated; what is held has a reason."""
    decision = decide(**situation)
    if not situation["may_degrade"]:
        assert decision.action is not HOLD
    if situation["failure"] is not None:
        assert decision.action is not CALL
    if decision.action is HOLD:
        assert decision.reason is not None
        assert decision.degrades
    if decision.action is CALL and situation["mode"] != "shadow":
        assert decision.reason is None
    if situation["failure"] is OTHER:
        assert decision == Decision(RAISE)
    if situation["mode"] == "forced" and situation["failure"] is None:
        assert decision.action is not CALL


@given(SITUATIONS)
def test_shadow_says_what_active_would_do(situation: dict[str, Any]) -> None:
    """So that what it counts is what would happen; and it calls, and raises what the call raises."""
    active, shadow = (decide(**situation | {"mode": mode}) for mode in ("active", "shadow"))
    assert (shadow.reason, shadow.degrades) == (active.reason, active.action is HOLD)
    assert shadow.action is (CALL if situation["failure"] is None else RAISE)


@pytest.mark.parametrize(
    ("error", "refused", "failure"),
    [
        (Throttled(), True, REFUSED),
        (TimeoutError(), True, REFUSED),
        (TimeoutError(), False, AMBIGUOUS),
        (trio.TooSlowError(), False, AMBIGUOUS),
        (ConnectionResetError(), False, AMBIGUOUS),
        (Throttled(), False, OTHER),
        (ValueError(), False, OTHER),
        (OSError(), False, OTHER),
    ],
)
def test_what_an_error_says(error: Exception, refused: bool, failure: Failure) -> None:
    """What `degrade_on` names is a refusal; a time-out or a lost connection leaves it open."""
    assert failure_of(error, refused=refused) is failure


@pytest.mark.parametrize(
    ("error", "failure", "outcome"),
    [
        (Throttled(), REFUSED, Outcome.THROTTLED),
        (Throttled(), OTHER, Outcome.THROTTLED),
        (ValueError(), REFUSED, Outcome.THROTTLED),
        (TimeoutError(), REFUSED, Outcome.DOWN),
        (trio.TooSlowError(), AMBIGUOUS, Outcome.DOWN),
        (ConnectionResetError(), AMBIGUOUS, Outcome.DOWN),
        (OSError(), OTHER, Outcome.OTHER),
        (PermanentSendError(), OTHER, Outcome.OTHER),
    ],
)
def test_what_a_failure_says_to_the_breaker_and_the_limit(
    error: Exception, failure: Failure, outcome: Outcome
) -> None:
    """A refusal is the limit's business, no answer the breaker's, degrade or not; all else neither."""
    assert outcome_of(error, failure) is outcome
