"""Who is told what happens."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable
from enum import Enum
from typing import Protocol

import attrs

from .logs import log
from .message import Message

_LINES_EVERY = 60.0
"""Seconds between two lines of the log that the same thing begins."""


class Reason(Enum):
    """Why a message is not left to the primary."""

    THROTTLED = "throttled"
    """The primary was called, and refused it in a way that `degrade_on` names."""
    AMBIGUOUS = "ambiguous"
    """The primary was called, and nobody can tell whether it took it."""
    BREAKER_OPEN = "breaker_open"
    """The primary was not called: it refused others just now."""
    RATE_LIMITED = "rate_limited"
    """The primary was not called: its limit is reached."""
    FORCED = "forced"
    """The primary was not called: the mode is "forced"."""

    __hash__ = object.__hash__
    """Of a member there is only one. What `Enum` has instead is in Python, and takes longer than to count."""


class Event:
    """Something that has happened. What there is: `localdelay.events`."""

    __slots__ = ()


@attrs.frozen
class Opened(Event):
    """The breaker has opened: the primary is not called any more."""

    retry_in: float
    """Seconds until it lets a few calls through; infinite where it was forced open."""


@attrs.frozen
class HalfOpened(Event):
    """The breaker lets a few calls through, to see how the primary is."""


@attrs.frozen
class Closed(Event):
    """The breaker has closed: the primary is called again."""

    open_for: float
    """Seconds since it opened."""


@attrs.frozen
class LimitBegan(Event):
    """The primary refuses calls because of a rate, and gets no more than it takes from now on."""

    rate: float
    """Calls a second that it gets at first."""


@attrs.frozen
class LimitEnded(Event):
    """Calls are so few again that none needs to be held back."""

    limited_for: float
    """Seconds since it began."""


@attrs.frozen
class SendingShut(Event):
    """Sends of different messages have failed in a row: one at a time is tried from now on."""

    error: Exception
    """What the last of them failed with."""
    key: Hashable = None
    """Of which key they are, where the queue has keys."""


@attrs.frozen
class SendingOpened(Event):
    """A message was sent again: all that is due goes out."""

    shut_for: float
    """Seconds."""
    key: Hashable = None
    """Of which key it is, where the queue has keys."""


@attrs.frozen
class DeadLetter(Event):
    """A message was given up on, and its dead-letter hook has ended."""

    message: Message
    error: Exception


@attrs.frozen
class Degraded(Event):
    """A message is held in memory that the primary did not take."""

    message: Message
    reason: Reason
    error: Exception
    at_risk: int
    """Messages that a crash now would lose."""


@attrs.frozen
class Full(Event):
    """A message was refused: the primary did not take it, and the local queue has no room."""

    message: Message
    reason: Reason
    error: Exception


@attrs.frozen
class HandedBack(Event):
    """A message that was held has been taken by the primary, before it was due."""

    message: Message
    remaining: float
    """Seconds of its delay that were left."""


class Listener(Protocol):
    """Is told what happens, in the thread in which it does: it must not block.

    With a queue on Trio that is the loop's own thread; with `localdelay.threads` and `localdelay.aio` any
    thread that publishes, and the queue's.
    """

    def on_event(self, event: Event) -> None:
        """Take note of an event."""


def check_listener(listener: object) -> None:
    """Raise a `TypeError` unless this is a listener, or None."""
    if listener is not None and not callable(getattr(listener, "on_event", None)):
        raise TypeError(f"listener must have a method on_event, which {type(listener).__name__} has not")


def tell(listener: Listener | None, event: Event) -> None:
    """Tell the listener, if there is one. What it raises is logged, and harms nobody else."""
    if listener is None:
        return
    try:
        listener.on_event(event)
    except Exception as error:  # noqa: BLE001 (it is a stranger's)
        line = "the listener failed at %s: %s"
        log(logging.ERROR, line, type(event).__name__, type(error).__name__)


class Lines:
    """How loudly to say that something begins, or is over again: once a minute, for it may flap."""

    def __init__(self) -> None:
        self._next = -math.inf
        self._count = 0
        self._is_open = False  # whether a beginning was said whose end was not

    def begin(self, now: float) -> tuple[int, str]:
        """The level of the line, and what it says of those that were not said."""
        self._count += 1
        if now < self._next:
            return logging.DEBUG, ""
        self._next = now + _LINES_EVERY
        count, self._count = self._count, 0
        self._is_open = True
        return logging.WARNING, f" ({count} times since the last such line)" if count > 1 else ""

    def end(self) -> int:
        """The level: no end is said without its beginning, and no beginning without an end."""
        is_open, self._is_open = self._is_open, False
        return logging.INFO if is_open else logging.DEBUG
