"""Where a message goes: the whole table, and what holds for all of it."""

from __future__ import annotations

import attrs
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given

from localdelay import Reason, Throttled
from localdelay.fallback.routing import MODES, Action, Decision, Failure, Situation, decide, failure_of

CALL, HOLD, RAISE = Action.CALL, Action.HOLD, Action.RAISE
REFUSED, AMBIGUOUS, OTHER = Failure.REFUSED, Failure.AMBIGUOUS, Failure.OTHER


@pytest.mark.parametrize(
    ("situation", "decision"),
    [
        # before the primary is called
        ({}, (CALL, None)),
        ({"may_degrade": False}, (CALL, None)),
        ({"breaker_permits": False}, (HOLD, Reason.BREAKER_OPEN)),
        ({"within_limit": False}, (HOLD, Reason.RATE_LIMITED)),
        ({"breaker_permits": False, "within_limit": False}, (HOLD, Reason.BREAKER_OPEN)),
        ({"breaker_permits": False, "may_degrade": False}, (RAISE, Reason.BREAKER_OPEN)),
        ({"within_limit": False, "may_degrade": False}, (RAISE, Reason.RATE_LIMITED)),
        ({"mode": "forced"}, (HOLD, Reason.FORCED)),
        ({"mode": "forced", "breaker_permits": False}, (HOLD, Reason.FORCED)),
        ({"mode": "forced", "may_degrade": False}, (RAISE, Reason.FORCED)),
        ({"mode": "shadow"}, (CALL, None)),
        ({"mode": "shadow", "breaker_permits": False}, (HOLD, Reason.BREAKER_OPEN)),
        # after a call that failed
        ({"failure": REFUSED}, (HOLD, Reason.THROTTLED)),
        ({"failure": REFUSED, "may_degrade": False}, (RAISE, Reason.THROTTLED)),
        ({"failure": REFUSED, "mode": "shadow"}, (HOLD, Reason.THROTTLED)),
        ({"failure": AMBIGUOUS}, (RAISE, None)),
        ({"failure": AMBIGUOUS, "degrade_ambiguous": True}, (HOLD, Reason.AMBIGUOUS)),
        ({"failure": AMBIGUOUS, "degrade_ambiguous": True, "may_degrade": False}, (RAISE, Reason.AMBIGUOUS)),
        ({"failure": OTHER}, (RAISE, None)),
        ({"failure": OTHER, "degrade_ambiguous": True}, (RAISE, None)),
    ],
)
def test_the_table(situation: dict[str, object], decision: tuple[Action, Reason | None]) -> None:
    """Each line: what is so, what is to be done, and why."""
    assert decide(Situation(**situation)) == Decision(*decision)  # type: ignore[arg-type]


SITUATIONS = st.builds(
    Situation,
    st.sampled_from(MODES),
    st.booleans(),
    breaker_permits=st.booleans(),
    within_limit=st.booleans(),
    degrade_ambiguous=st.booleans(),
    failure=st.sampled_from([None, *Failure]),
)


@given(SITUATIONS)
def test_what_holds_for_every_situation(situation: Situation) -> None:
    """What may not degrade is never held; a failed call is not repeated; what is held has a reason."""
    decision = decide(situation)
    if not situation.may_degrade:
        assert decision.action is not HOLD
    if situation.failure is not None:
        assert decision.action is not CALL
    if decision.action is HOLD:
        assert decision.reason is not None
    if decision.action is CALL:
        assert decision.reason is None
    if situation.failure is OTHER:
        assert decision == Decision(RAISE)
    if situation.mode == "forced" and situation.failure is None:
        assert decision.action is not CALL


@given(SITUATIONS)
def test_shadow_decides_as_active_would(situation: Situation) -> None:
    """So that what it counts is what would happen."""
    if situation.mode != "forced":
        modes = [decide(attrs.evolve(situation, mode=mode)) for mode in ("active", "shadow")]
        assert modes[0] == modes[1]


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
