"""Where a message goes: to the primary, into the local queue, or back to the caller as an error. Pure.

`decide` is asked up to twice about a message: before the primary is called, and after a call that failed.
It gets what the breaker and the limit say, or what the call came to; nothing decides beside it.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Literal, TypeAlias, get_args

import attrs
import trio

from localdelay.breaker import DOWN, OTHER, THROTTLED, Outcome
from localdelay.errors import Throttled
from localdelay.listening import Reason

Mode: TypeAlias = Literal["active", "shadow", "forced"]
Ambiguous: TypeAlias = Literal["raise", "degrade"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Route(Enum):
    """Where a message went."""

    PRIMARY = "primary"
    """The real queue's own delayed publish has taken it."""
    LOCAL = "local"
    """It is held in memory, and sent when it is due."""


PRIMARY, LOCAL = Route


class Action(Enum):
    """What is to be done with a message."""

    CALL = "call"
    """Call the primary."""
    HOLD = "hold"
    """Hold it in the local queue."""
    RAISE = "raise"
    """Tell the caller."""


CALL, HOLD, RAISE = Action  # by themselves: on CPython 3.11 `Action.CALL` costs more than a decision


@attrs.frozen
class Decision:
    """What is to be done, and why where it is not simply to call the primary."""

    action: Action
    reason: Reason | None = None
    degrades: bool = False
    """Whether the message is to be held; in shadow mode, whether it would be."""


CALL_IT = Decision(CALL)

NO_ANSWER = (TimeoutError, trio.TooSlowError, ConnectionError)
"""Errors of a primary that is down, or can't be reached."""


@cache  # there are a few dozen answers, and to make one takes longer than to decide
def decide(mode: Mode, may_degrade: bool, reason: Reason | None, *, has_failed: bool = False) -> Decision:
    """Say what is to be done with a message.

    `may_degrade` says whether this one may be held at all. `reason` is what the breaker or the limit says
    against a call, or, where one `has_failed`, what that is a reason to hold the message for; None: there is
    none. In shadow mode the primary is called whatever they say, and every error is the caller's.
    """
    if mode == "forced" and not has_failed:
        reason = Reason.FORCED
    if reason is None:
        return Decision(RAISE) if has_failed else CALL_IT
    if mode == "shadow":
        return Decision(RAISE if has_failed else CALL, reason, may_degrade)
    return Decision(HOLD if may_degrade else RAISE, reason, may_degrade)


def reason_of(error: Exception, *, refused: bool, degrade_ambiguous: bool) -> Reason | None:
    """What an error of the primary's is a reason to hold its message for; `refused`: `degrade_on` names it.

    A time-out or a lost connection leaves open whether the message was taken. What else is wrong holding it
    would not help.
    """
    if refused:
        return Reason.THROTTLED
    return Reason.AMBIGUOUS if degrade_ambiguous and isinstance(error, NO_ANSWER) else None


def outcome_of(error: Exception, *, refused: bool) -> Outcome:
    """What a failed call says to the breaker (down) and to the limit (refused); all else says nothing.

    A `Throttled` is refused also where `degrade_on` leaves it out; no answer is no refusal, though it may
    degrade: a primary that does not answer is down.
    """
    if isinstance(error, NO_ANSWER):
        return DOWN
    return THROTTLED if refused or isinstance(error, Throttled) else OTHER
