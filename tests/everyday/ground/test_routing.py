"""Where a message goes: the whole table, and what holds for all of it."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from localdelay import PermanentSendError, Reason, Throttled
from localdelay.breaker import Outcome
from localdelay.fallback.routing import MODES, Action, Decision, decide, outcome_of, reason_of

CALL, HOLD, RAISE = Action.CALL, Action.HOLD, Action.RAISE
OPEN, LIMITED = Reason.BREAKER_OPEN, Reason.RATE_LIMITED
REFUSED, AMBIGUOUS = Reason.THROTTLED, Reason.AMBIGUOUS
ORDINARY: dict[str, Any] = {"mode": "active", "may_degrade": True, "reason": None}


@pytest.mark.parametrize(
    ("situation", "action", "reason"),
    [
        # before the primary is called
        ({}, CALL, None),
        ({"may_degrade": False}, CALL, None),
        ({"reason": OPEN}, HOLD, OPEN),
        ({"reason": LIMITED}, HOLD, LIMITED),
        ({"reason": OPEN, "may_degrade": False}, RAISE, OPEN),
        ({"reason": LIMITED, "may_degrade": False}, RAISE, LIMITED),
        ({"mode": "forced"}, HOLD, Reason.FORCED),
        ({"mode": "forced", "reason": OPEN}, HOLD, Reason.FORCED),
        ({"mode": "forced", "may_degrade": False}, RAISE, Reason.FORCED),
        ({"mode": "shadow"}, CALL, None),
        ({"mode": "shadow", "reason": OPEN}, CALL, OPEN),
        ({"mode": "shadow", "reason": OPEN, "may_degrade": False}, CALL, OPEN),
        # after a call that failed
        ({"has_failed": True, "reason": REFUSED}, HOLD, REFUSED),
        ({"has_failed": True, "reason": REFUSED, "may_degrade": False}, RAISE, REFUSED),
        ({"has_failed": True, "reason": REFUSED, "mode": "shadow"}, RAISE, REFUSED),
        ({"has_failed": True}, RAISE, None),
        ({"has_failed": True, "mode": "shadow"}, RAISE, None),
        ({"has_failed": True, "reason": AMBIGUOUS}, HOLD, AMBIGUOUS),
        ({"has_failed": True, "reason": AMBIGUOUS, "may_degrade": False}, RAISE, AMBIGUOUS),
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
        "has_failed": st.booleans(),
    }
).flatmap(
    lambda situation: st.sampled_from(
        [None, REFUSED, AMBIGUOUS] if situation["has_failed"] else [None, OPEN, LIMITED]
    ).map(lambda reason: situation | {"reason": reason})
)


@given(SITUATIONS)
def test_what_holds_for_every_situation(situation: dict[str, Any]) -> None:
    """What may not degrade is never held; a failed call is not repeated; what is held has a reason."""
    decision = decide(**situation)
    if not situation["may_degrade"]:
        assert decision.action is not HOLD
    if situation["has_failed"]:
        assert decision.action is not CALL
    if decision.action is HOLD:
        assert decision.reason is not None
        assert decision.degrades
    if decision.action is CALL and situation["mode"] != "shadow":
        assert decision.reason is None
    if situation["has_failed"] and situation["reason"] is None:
        assert decision == Decision(RAISE)
    if situation["mode"] == "forced" and not situation["has_failed"]:
        assert decision.action is not CALL


@given(SITUATIONS)
def test_shadow_says_what_active_would_do(situation: dict[str, Any]) -> None:
    """So that what it counts is what would happen; and it calls, and raises what the call raises."""
    active, shadow = (decide(**situation | {"mode": mode}) for mode in ("active", "shadow"))
    assert (shadow.reason, shadow.degrades) == (active.reason, active.action is HOLD)
    assert shadow.action is (RAISE if situation["has_failed"] else CALL)


@pytest.mark.parametrize(
    ("error", "refused", "reason"),
    [
        (Throttled(), True, REFUSED),
        (TimeoutError(), True, REFUSED),
        (TimeoutError(), False, AMBIGUOUS),
        (trio.TooSlowError(), False, AMBIGUOUS),
        (ConnectionResetError(), False, AMBIGUOUS),
        (Throttled(), False, None),
        (ValueError(), False, None),
        (OSError(), False, None),
    ],
)
def test_what_an_error_is_a_reason_for(error: Exception, refused: bool, reason: Reason | None) -> None:
    """What `degrade_on` names is a refusal; a time-out or a lost connection leaves it open."""
    assert reason_of(error, refused=refused, degrade_ambiguous=True) is reason
    without = None if reason is AMBIGUOUS else reason
    assert reason_of(error, refused=refused, degrade_ambiguous=False) is without


@pytest.mark.parametrize(
    ("error", "refused", "outcome"),
    [
        (Throttled(), True, Outcome.THROTTLED),
        (Throttled(), False, Outcome.THROTTLED),
        (ValueError(), True, Outcome.THROTTLED),
        (TimeoutError(), True, Outcome.DOWN),
        (trio.TooSlowError(), False, Outcome.DOWN),
        (ConnectionResetError(), False, Outcome.DOWN),
        (OSError(), False, Outcome.OTHER),
        (PermanentSendError(), False, Outcome.OTHER),
    ],
)
def test_what_a_failure_says_to_the_breaker_and_the_limit(
    error: Exception, refused: bool, outcome: Outcome
) -> None:
    """A refusal is the limit's business, no answer the breaker's, degrade or not; all else neither."""
    assert outcome_of(error, refused=refused) is outcome
