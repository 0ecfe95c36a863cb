"""Where a message goes: to the primary, into memory, or back to the caller as an error. Pure.

`decide` is asked up to twice about a message: before the primary is called, and after a call that failed.
It is told what is so, by whoever asked the breaker and the limit, and says what is to be done.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, TypeAlias, get_args

import attrs
import trio

from localdelay.listening import Reason

Mode: TypeAlias = Literal["active", "shadow", "forced"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Route(Enum):
    """Where a message went."""

    PRIMARY = "primary"
    """The real queue's own delayed publish has taken it."""
    LOCAL = "local"
    """It is held in memory, and sent when it is due."""


class Action(Enum):
    """What is to be done with a message."""

    CALL = "call"
    """Call the primary."""
    HOLD = "hold"
    """Hold it in memory."""
    RAISE = "raise"
    """Tell the caller."""


class Failure(Enum):
    """What a failed call of the primary says."""

    REFUSED = "refused"
    """It was not taken: `degrade_on` names the error."""
    AMBIGUOUS = "ambiguous"
    """It may have been taken."""
    OTHER = "other"
    """Something else is wrong, which memory would not help."""


@attrs.frozen
class Situation:
    """All that decides where a message goes."""

    mode: Mode = "active"
    may_degrade: bool = True
    """Whether this message may be held in memory at all."""
    breaker_permits: bool = True
    within_limit: bool = True
    """Whether the limit that is known of the primary has a call left."""
    degrade_ambiguous: bool = False
    failure: Failure | None = None
    """What the call came to; None: it has not been made."""


@attrs.frozen
class Decision:
    """What is to be done, and why where it is not the primary."""

    action: Action
    reason: Reason | None = None


_CALL = Decision(Action.CALL)


def decide(situation: Situation) -> Decision:
    """Say what is to be done with a message. In shadow mode, what would be done if the mode were active."""
    reason = _reason(situation)
    if reason is None:
        return _CALL if situation.failure is None else Decision(Action.RAISE)
    return Decision(Action.HOLD if situation.may_degrade else Action.RAISE, reason)


def _reason(situation: Situation) -> Reason | None:
    if situation.failure is Failure.REFUSED:
        return Reason.THROTTLED
    if situation.failure is Failure.AMBIGUOUS:
        return Reason.AMBIGUOUS if situation.degrade_ambiguous else None
    if situation.failure is not None:
        return None
    if situation.mode == "forced":
        return Reason.FORCED
    if not situation.breaker_permits:
        return Reason.BREAKER_OPEN
    return None if situation.within_limit else Reason.RATE_LIMITED


def failure_of(error: Exception, *, refused: bool) -> Failure:
    """What an error of the primary's says; `refused` is the answer of `degrade_on`.

    A time-out or a lost connection leaves open whether the message was taken.
    """
    if refused:
        return Failure.REFUSED
    if isinstance(error, TimeoutError | trio.TooSlowError | ConnectionError):
        return Failure.AMBIGUOUS
    return Failure.OTHER
