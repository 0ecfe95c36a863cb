"""What the queue says about itself: frozen objects, a line under each field."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Annotated, TypeAlias

import attrs

from .drain_plan import DrainPlan
from .lateness import LatencySummary
from .message import Message

# What a number counts is a part of its type: it is also the end of its name where it is exported.
MessagesSoFar: TypeAlias = Annotated[int, "messages_total"]
TimesSoFar: TypeAlias = Annotated[int, "total"]
MessagesNow: TypeAlias = Annotated[int, "messages"]
Rate: TypeAlias = Annotated[float | None, ""]


@attrs.frozen(kw_only=True)
class KeySends:
    """How the broker is for the due messages of one key."""

    due: int
    """Due messages that wait for a worker, for their limit, or for the broker to be there again."""
    is_shut: bool
    """Whether the broker seems to be down, and one message at a time is tried."""
    retry_in: float
    """Seconds until the next of these is tried; 0 where all go, or one is being tried now."""
    limit_rate: float | None
    """Messages a second that the limit lets go; None while it lets all go, or there is none."""


@attrs.frozen(kw_only=True)
class Statistics:
    """The queue at one instant. All times are in seconds.

    Always: accepted = sent + dead + cancelled + handed_back + spooled + pending, and
    pending = waiting + sending + retrying. Every term is counted on its own, so that a lost message
    would show.
    """

    accepted: MessagesSoFar
    """Messages that a put has taken in, or that came back from a journal."""
    recovered: MessagesSoFar
    """Accepted messages that came back from a journal."""
    sent: MessagesSoFar
    """Sends that returned: the real queue has confirmed the message."""
    dead: MessagesSoFar
    """Given up on, and through with the dead-letter hook."""
    expired: MessagesSoFar
    """Given up on because their `expires` was over; they count as dead, too."""
    cancelled: MessagesSoFar
    """Taken out by `cancel`."""
    handed_back: MessagesSoFar
    """Given back to the primary by `drain` or a `Fallback`, before they were due."""
    spooled: MessagesSoFar
    """Left in the journal when the queue was drained, or ended; or given back to Redis."""
    pending: MessagesNow
    """Accepted and not finished: what counts against `capacity`."""
    waiting: MessagesNow
    """Not due yet, or due and waiting for a worker."""
    sending: MessagesNow
    """In a send, a dead-letter hook or a hand-back at this moment."""
    retrying: MessagesNow
    """Failed, and waiting to be tried again."""
    pending_bytes: int
    """Payload and headers of all that is pending: what counts against `capacity_bytes`."""
    at_risk: MessagesNow
    """Messages that a crash right now would lose: those that no journal has."""
    at_risk_bytes: int
    """Payload and headers of what a crash right now would lose."""
    capacity: MessagesNow
    """The most messages that may be pending."""
    capacity_bytes: int | None
    """The most bytes that may be pending; None: no limit."""
    workers: int
    """Workers that the queue was told to keep."""
    workers_busy: int
    """Workers in a send or a dead-letter hook."""
    puts_waiting: int
    """Calls of `put` that wait for room."""
    committing: int
    """Calls of `put` that wait for the journal."""
    paused: bool
    """Whether sending is stopped by `pause`."""
    closed: bool
    """Whether puts are refused."""
    next_due_in: float | None
    """Until the next waiting message is to be sent; 0 if it is overdue, None if there is none."""
    oldest_overdue: float
    """How late the latest of the pending messages is by now; 0 if none is overdue."""
    limit_rate: Rate
    """Messages a second that the limit lets go; None while it lets all go, or there is none. With keys, that
    of all that are limited."""
    failures: TimesSoFar
    """Failed tries, counted for each message: sends and hand-backs, throttled ones included."""
    throttled: TimesSoFar
    """Failed tries that the broker throttled."""
    dead_letter_errors: TimesSoFar
    """Dead-letter hooks that raised or took longer than `send_timeout`."""
    journal_failures: TimesSoFar
    """Commits that failed."""
    lateness: LatencySummary
    """Start of the first send minus execute-at."""
    send_time: LatencySummary
    """Time in `send`, failed sends included; a batch counts once."""
    total: LatencySummary
    """Confirmation minus execute-at, retries included."""
    commit_time: LatencySummary
    """Time in a commit of the journal."""
    keys: Mapping[Hashable, KeySends] = attrs.field(factory=dict)
    """How it is for each key that was used lately; all else here is of all keys together."""


@attrs.frozen(kw_only=True)
class DrainReport:
    """What became of the messages that were pending when `drain` was called."""

    plan: DrainPlan
    """What was expected."""
    sent: int
    """Sent, because they came due within the grace."""
    handed_back: int
    """Taken by `hand_back`."""
    spooled: int
    """Left in the journal."""
    dead: int
    """Given up on meanwhile."""
    cancelled: int
    """Cancelled meanwhile."""
    remaining: list[Message] = attrs.field(repr=lambda messages: f"<{len(messages)} messages>")
    """What nobody took, in due order. These stay pending, and only the caller can still save them."""
