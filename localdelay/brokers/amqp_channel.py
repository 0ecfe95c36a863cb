"""A channel of pika's that confirms what is published on it.

The broker closes a channel for the fault of one message, or for a delay queue that it refuses: so what is
delayed has a channel of its own. What else was under way on it is told apart from the culprit as far as that
goes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs
import pika
import pika.channel
import pika.exceptions
from pika import frame, spec
from pika.adapters.blocking_connection import ReturnedMessage

from localdelay.brokers import amqp_errors
from localdelay.brokers.amqp_delays import DelayQueueType, delay_arguments, delay_queue
from localdelay.brokers.outbox import Parcel
from localdelay.brokers.wire import ID

if TYPE_CHECKING:  # which has two of these
    from localdelay.brokers.amqp_session import Session

ANY_SIZE: Final = 2**63
DECLARED_FOR: Final = 60.0
"""Seconds after which a delay queue is declared again before the next message is put into it."""

_TOO_LARGE = re.compile(r"message size (\d+) is larger than (?:configured )?max size (\d+)")
_CONCERNS_ALL = frozenset({403, 404})


@attrs.define
class Target:
    """The queue to publish to, and what is known of what its broker takes."""

    queue: str
    delay_type: DelayQueueType
    largest: int = ANY_SIZE
    """Bytes of a payload, as far as the broker has refused one."""
    frame_max: int = 131_072
    """Bytes of a frame."""


@attrs.frozen
class _Declared:
    """A delay queue, as it was declared on this channel."""

    at: float
    """When, on `time.monotonic()`."""
    tag: int
    """Of the publish that came next."""


class Channel:
    """Publishes with confirms. It is opened again when the broker has closed it."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number
        self._channel: pika.channel.Channel | None = None
        self._ready = False
        self._waiting: list[Parcel] = []
        self._unconfirmed: dict[int, Parcel] = {}
        self._next = self._oldest = self._returned = 1
        self._returns: dict[int, Exception] = {}
        self._declared: dict[int, _Declared] = {}

    def open(self) -> None:
        """Open it, unless it is open; what is published meanwhile waits."""
        if self._channel is not None or not self._session.connection.is_open:
            return
        self._channel = channel = self._session.connection.channel(self._number, self._on_open)
        channel.add_on_close_callback(self._on_closed)

    def publish(self, parcel: Parcel) -> None:
        """Publish a message, or have it wait until the channel is open."""
        if not self._ready or self._channel is None:
            self._waiting.append(parcel)
            self._session.call_soon(self.open)
            return
        properties, payload, delay = parcel.content
        target = self._session.target
        try:
            name = self._delayed_by(delay) if delay else target.queue
            self._channel.basic_publish("", name, payload, properties, mandatory=True)
        except pika.exceptions.AMQPError as error:
            if self._channel.is_open:
                parcel.settle(error)
            else:
                self._session.outbox.again([parcel])
            return
        self._unconfirmed[self._next] = parcel
        self._next += 1

    def give_back(self) -> None:
        """What waits for the channel was not published."""
        self._session.outbox.again(self._waiting)
        self._waiting = []

    def _delayed_by(self, delay: int) -> str:
        """The queue for a delay, which is declared ahead of the publish if need be.

        The broker handles both in this order; a declaration that it refuses closes the channel.
        """
        assert self._channel is not None  # noqa: S101 (it is ready)
        target, now = self._session.target, time.monotonic()
        name = delay_queue(target.queue, delay, target.delay_type)
        declared = self._declared.get(delay)
        if declared is None or now >= declared.at + DECLARED_FOR:
            arguments = delay_arguments(target.queue, delay, target.delay_type)
            self._channel.queue_declare(name, durable=True, arguments=arguments)
            self._declared[delay] = _Declared(now, self._next)
        return name

    # What pika calls.

    def _on_open(self, channel: pika.channel.Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, self._on_confirming)

    def _on_confirming(self, _: frame.Method) -> None:
        self._next = self._oldest = self._returned = 1
        self._declared.clear()
        self._returns.clear()
        self._ready = True
        self._session.channel_ready()
        waiting, self._waiting = self._waiting, []
        for parcel in waiting:
            self.publish(parcel)

    def _on_confirm(self, confirm: frame.Method) -> None:
        method = confirm.method
        tags: Iterable[int] = (method.delivery_tag,)
        if method.multiple:
            # 0 stands for all; what was never published has no say in what comes next.
            last = min(method.delivery_tag or self._next, self._next - 1)
            tags = range(self._oldest, last + 1)
            self._oldest = max(self._oldest, tags.stop)
        refused = isinstance(method, spec.Basic.Nack)
        for tag in tags:
            parcel = self._unconfirmed.pop(tag, None)
            if parcel is None:
                continue
            returned = self._returns.pop(tag, None)
            if returned is not None and parcel.content.delay:
                # Somebody has deleted the queue that was to delay it.
                self._declared.pop(parcel.content.delay, None)
                self._session.outbox.again([parcel])
            else:
                parcel.settle(pika.exceptions.NackError([method]) if refused else returned)

    def _on_return(
        self, _: object, method: spec.Basic.Return, properties: spec.BasicProperties, __: bytes
    ) -> None:
        returned = (properties.headers or {}).get(ID)
        # In the order of their publishes, so that what was returned before it need not be looked at.
        for tag in range(max(self._returned, self._oldest), self._next):
            parcel = self._unconfirmed.get(tag)
            if parcel is not None and parcel.content.properties.headers[ID] == returned:
                returned_message = ReturnedMessage(method, properties, b"")  # without the payload
                self._returns[tag] = pika.exceptions.UnroutableError([returned_message])
                self._returned = tag + 1
                return

    def _on_closed(self, channel: pika.channel.Channel, reason: Exception) -> None:
        if channel is not self._channel:
            return
        self._channel = None
        self._ready = False
        if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
            self._blame(reason)
            unconfirmed, self._unconfirmed = self._unconfirmed, {}
            for parcel in unconfirmed.values():
                parcel.settle(amqp_errors.lost(reason))
            self._session.call_soon(self.open)  # pika has not yet forgotten the old one

    def _blame(self, reason: pika.exceptions.ChannelClosedByBroker) -> None:
        """Fail what the channel was closed for, and publish again what came after it: it was not read."""
        tags, target, text = list(self._unconfirmed), self._session.target, reason.reply_text
        first = self._next
        if too_large := _TOO_LARGE.search(text):
            target.largest = largest = int(too_large[2])
            guilty = [tag for tag in tags if len(self._unconfirmed[tag].content.payload) > largest]
            first = min(guilty, default=first)
        elif reason.reply_code in _CONCERNS_ALL or len(tags) == 1:
            guilty = tags
        else:
            names = {delay: delay_queue(target.queue, delay, target.delay_type) for delay in self._declared}
            refused = {delay for delay, name in names.items() if f"'{name}'" in text}
            first = min((self._declared[delay].tag for delay in refused), default=first)
            guilty = [tag for tag in tags if tag >= first and self._unconfirmed[tag].content.delay in refused]
        for tag in guilty:
            self._unconfirmed.pop(tag).settle(reason)
        unread = [self._unconfirmed.pop(tag) for tag in tags if tag >= first and tag in self._unconfirmed]
        self._session.outbox.again(unread)
