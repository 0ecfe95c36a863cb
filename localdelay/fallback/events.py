"""What happens to messages on their way past the primary, as frozen objects for a listener."""

from __future__ import annotations

import attrs

from localdelay.listening import Event, Reason
from localdelay.message import Message


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
