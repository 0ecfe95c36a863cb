"""What a driver is: the part of a broker that knows its client.

A driver makes a message into what its client writes, connects, writes, says when the connection is lost, and
says what errors mean. All else is the publisher's: what waits, what is under way, time limits, cancellation,
connecting again, closing.

A broker's module has its driver as `driver_at`, which takes the `Address` of a URL, and raises `ValueError`
for an option that is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, Protocol

from localdelay.brokers.outbox import Outbox, Parcel
from localdelay.errors import DelayNotSupported
from localdelay.message import Message


class Connection(Protocol):
    """A connection that stands. Whatever it raises ends it."""

    def write(self, parcels: Sequence[Parcel]) -> None:
        """Give messages to the client, in this order, without waiting; `parcel.settle` once each is judged.

        They count as under way from here on. Raises `ConnectionError` where none of them was given, because
        there is no connection any more: they go to the next one.
        """

    async def lost(self) -> Exception:
        """Do what the connection needs, such as reading, until it is lost; returns why it was."""


class Driver:
    """What the publisher asks of a broker's client; a child overrides what differs."""

    where: str
    """The broker, as errors name it: "beanstalkd at 127.0.0.1:11300"."""
    native_delay: bool = False
    """Whether the broker has a delay of its own; it may change with the connection."""
    no_delay: str = "it has no delay of its own"
    """Why not, where it has none."""
    in_order: ClassVar[bool] = False
    """Whether answers come in the order of the messages: a time limit is one of silence then, and ends the
    connection, which has a `heard`: when something has come last, on Trio's clock."""
    confirm_timeout: float = 10.0
    """Seconds after which what is not confirmed has failed, unless `open_broker` is told otherwise."""
    slow_down: Callable[[float], object] = staticmethod(lambda _: None)
    """To be called, on the Trio thread, with the seconds for which the broker lets nothing more through."""
    patience: ClassVar[float] = 0.0
    """Seconds by which a client's own time limit may be later than the publisher's."""
    most_under_way: ClassVar[int] = 2000
    """Messages under way at once: what a broker does not answer must not fill the memory."""
    most_bytes_under_way: ClassVar[int] = 8 * 1024 * 1024

    def encode(self, message: Message, delay: float | None, now: float) -> Any:
        """What is written for a message, which the broker is to delay by so many seconds unless None.

        `now` is on Trio's clock: to ask it costs more than many a message.

        It becomes `parcel.content`. Raises `PermanentSendError` for what can never work: what would end the
        connection above all; and `Throttled` where it is known that the broker takes nothing now.
        """
        raise NotImplementedError

    def connect(self, outbox: Outbox) -> AbstractAsyncContextManager[Connection]:
        """A connection for the length of an `async with` block.

        Entering it raises `ConnectionError` in a few words where there is none ("Connection refused"; the
        publisher says where), or `Throttled` where the broker lets nobody in for now; the publisher sees to
        the time limit. Leaving it, cancelled or not, ends the connection within about a second, and may
        settle what was under way; what is left then has failed. What was put back by `outbox.again` has not.
        """
        raise NotImplementedError

    async def cancel_delayed(self, connection: Any, id: str, handle: object) -> None:
        """As `Broker.cancel_delayed`, on a connection that stands; the publisher sees to the time limit."""
        raise DelayNotSupported(f"{self.where}: it can't be asked to forget a message")

    def verdict(self, error: Exception) -> Exception:
        """What to raise for an error: `Throttled`, `PermanentSendError`, or the error itself.

        A `TimeoutError` may come from the publisher.
        """
        return error
