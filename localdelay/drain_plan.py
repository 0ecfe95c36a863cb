"""What a drain is going to do with what is pending. Pure."""

from __future__ import annotations

import math
from datetime import datetime

import attrs

from . import arguments
from .units import counted, format_duration, format_size

_ROUNDING = 1e-9
UNSAID = 0.5
"""Seconds: for so long a stop may wait for its messages without a word."""
_SAID_EVERY = 10.0
_OFTEN = 12
"""So many times it is said in a row; then each time after a twelfth of what was waited."""
_A_YEAR = 3e7


@attrs.frozen(kw_only=True)
class DrainPlan:
    """How many of the pending messages are expected to go where, and how long that takes."""

    pending: int
    """All of them."""
    grace: float
    """Seconds that the drain may take; infinite where it has no end."""
    send: int
    """Due within the grace, and sent in time."""
    hand_back: int
    """Due later, and taken by the primary meanwhile."""
    spool: int
    """Left in the journal."""
    remain: int
    """Left to the caller, in `DrainReport.remaining`."""
    seconds: float
    """Until the last of the sends and hand-backs has ended; `grace` where that is what ends them."""

    def __str__(self) -> str:
        within = "" if self.grace == math.inf else f" within {self.grace:.3g} s"
        parts = [f"send {self.send}"]
        parts += [f"hand back {self.hand_back}"] if self.hand_back else []
        parts += [f"spool {self.spool}"] if self.spool else []
        return f"of {self.pending} messages{within}: {', '.join(parts)}, leave {self.remain}"


def plan_drain(
    *,
    pending: int,
    due: int,
    grace: float,
    last_due_in: float = 0.0,
    senders: int = 1,
    send_seconds: float = 0.0,
    hand_backs: int = 0,
    hand_back_seconds: float = 0.0,
    rate: float | None = None,
    tokens: float = 0.0,
    journal: bool = False,
) -> DrainPlan:
    """What will become of `pending` messages, of which `due` come due within `grace` seconds.

    `last_due_in` is when the last of these does. `senders` messages can be sent at once (workers times the
    messages of a batch) in `send_seconds` each, `hand_backs` handed back at once in `hand_back_seconds` each
    (0 of them: nothing takes them). A limit lets `rate` calls a second through and has `tokens` to begin
    with; sends come first. What is left stays in the `journal`, if there is one. All times are in seconds,
    and `grace` may be infinite. Raises `TypeError` and `ValueError` for numbers that are none, or negative.
    """
    for name, value in (
        ("pending", pending),
        ("due", due),
        ("last_due_in", last_due_in),
        ("send_seconds", send_seconds),
        ("hand_backs", hand_backs),
        ("hand_back_seconds", hand_back_seconds),
    ):
        arguments.at_least(name, value, 0)
    arguments.count("senders", senders)
    if not arguments.number("grace", grace) >= 0:
        raise ValueError(f"grace must not be negative, not {grace!r}")
    if due > pending:
        raise ValueError(f"due must be at most pending, {pending}, not {due}")
    allowed = math.inf if rate is None else max(0.0, tokens) + rate * grace
    send = _most(due, senders, send_seconds, grace, allowed)
    hand_back = _most(pending - due, hand_backs, hand_back_seconds, grace, allowed - send)
    left = pending - send - hand_back
    wanted = pending if hand_backs else due
    if send + hand_back < wanted:
        seconds = grace
    else:
        paced = 0.0 if rate is None else max(0.0, send + hand_back - max(0.0, tokens)) / rate
        sending = last_due_in + send_seconds if send else 0.0
        sending = max(sending, math.ceil(send / senders) * send_seconds)
        handing = math.ceil(hand_back / hand_backs) * hand_back_seconds if hand_back else 0.0
        seconds = min(grace, max(sending, handing, paced))
    return DrainPlan(
        pending=pending,
        grace=grace,
        send=send,
        hand_back=hand_back,
        spool=left if journal else 0,
        remain=0 if journal else left,
        seconds=seconds,
    )


def wait_said(plan: DrainPlan, size: int, wall: float) -> str:
    """What a stop without an end waits for, of so many bytes, and until when; `wall` is the Unix time."""
    until = format_duration(plan.seconds)
    if plan.seconds < _A_YEAR:
        until += f", until {datetime.fromtimestamp(wall + plan.seconds).astimezone():%Y-%m-%d %H:%M:%S %z}"
    count = counted(plan.pending, "message")
    return (
        f"the queue is ending, and waits for the sends of {count} ({format_size(size)}): {until}, or longer "
        "where sends fail; `drain(grace=SECONDS)` sets an end to that"
    )


def until_said_again(waited: float) -> float:
    """Seconds until that is said again."""
    return max(_SAID_EVERY, waited / _OFTEN)


def _most(count: int, at_once: int, seconds: float, grace: float, allowed: float) -> int:
    """How many of `count` calls end within the grace, so many at once and so many allowed."""
    rounds = math.inf if not seconds or grace == math.inf else math.floor(grace / seconds + _ROUNDING)
    in_time = math.inf if at_once and rounds == math.inf else at_once * rounds if at_once else 0
    return int(min(count, in_time, max(0.0, allowed + _ROUNDING)))
