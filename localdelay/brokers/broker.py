"""What every broker has."""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from typing import Protocol

from localdelay.message import Message


class ConnectionLost(ConnectionError):
    """The connection was lost while a message was under way: nobody can tell whether the broker has it."""


class ConnectionClosed(ConnectionError):
    """The block that opened the broker has been left."""


def in_a_line(error: BaseException) -> str:
    """What an error says, for people: the system's words where it comes from there."""
    inner: BaseException | None = error
    while inner is not None and not (isinstance(inner, OSError) and inner.strerror):
        inner = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner.__cause__
    text = inner.strerror if isinstance(inner, OSError) else None
    if isinstance(inner, ssl.SSLError) and inner.reason == "WRONG_VERSION_NUMBER":
        text = "it does not speak TLS"
    # Trio says where to, which whoever says this has said.
    text = re.sub(r"^Error connecting to \(.*\): ", "", text or str(error))
    return " ".join(text.split()) or type(error).__name__


class Broker(Protocol):
    """A connection that publishes to one place; `open_broker` makes it.

    Every method raises `Throttled` where the broker refuses because of a limit, `PermanentSendError` for
    what can never work, `ConnectionLost` or a `TimeoutError` where nobody can tell whether the message was
    taken, another `ConnectionError` where there is no connection, `ConnectionClosed` after the block, and
    what the client raises for the rest.
    """

    @property
    def native_delay(self) -> bool:
        """Whether `publish_delayed` works: the broker has a delay of its own."""

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once the broker has confirmed it."""

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now; returns once the broker has confirmed all of them.

        Raises `PartialSendError` where it did not take some of them; where all failed for one reason that
        may pass, that error itself, so that they are tried again together.
        """

    async def publish_delayed(self, message: Message, delay: float) -> object:
        """Have the broker publish a message in `delay` seconds; returns once it has confirmed that.

        Returns what `cancel_delayed` wants, or None where the broker can't be asked. Raises
        `DelayNotSupported` where it has no delay of its own, or none as long as that.
        """

    async def cancel_delayed(self, id: str, handle: object) -> None:
        """Ask the broker not to publish what it delays; `handle` is what `publish_delayed` has returned.

        Returns once it has heard; whether it knew the message it need not say. Raises `DelayNotSupported`
        where it can't be asked.
        """
