"""What happens, as frozen objects for a listener."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Protocol, TypeAlias

import attrs

from .message import Message
from .routing import Reason

logger = logging.getLogger("localdelay")


@attrs.frozen
class Degraded:
    """A message is held in memory that the primary did not take."""

    message: Message
    reason: Reason
    error: Exception
    at_risk: int
    """Messages that a crash now would lose."""


@attrs.frozen
class Full:
    """A message was refused: the primary did not take it, and the local queue has no room."""

    message: Message
    reason: Reason
    error: Exception


@attrs.frozen
class Opened:
    """The breaker has opened: the primary is not called any more."""

    retry_in: float
    """Seconds until it lets a few calls through; infinite where it was forced open."""


@attrs.frozen
class HalfOpened:
    """The breaker lets a few calls through, to see how the primary is."""


@attrs.frozen
class Closed:
    """The breaker has closed: the primary is called again."""

    open_for: float
    """Seconds since it opened."""


@attrs.frozen
class HandedBack:
    """A message that was held has been taken by the primary, before it was due."""

    message: Message
    remaining: float
    """Seconds of its delay that were left."""


@attrs.frozen
class DeadLetter:
    """A message was given up on, and its dead-letter hook has ended."""

    message: Message
    error: Exception


Event: TypeAlias = Degraded | Full | Opened | HalfOpened | Closed | HandedBack | DeadLetter


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
        with suppress(Exception):
            logger.error("the listener failed at %s: %s", type(event).__name__, type(error).__name__)
