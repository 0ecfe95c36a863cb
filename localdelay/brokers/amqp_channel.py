"""A channel of pika's that confirms what is published on it.

The broker closes a channel for the fault of one message, or for a delay queue that it refuses: so what is
delayed has a channel of its own. What else was under way on it is told apart from the culprit as far as that
goes.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Final, NamedTuple

import attrs
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

AT_ONCE: Final = 1
DELAYED: Final = 2
"""The channels: what is delayed has one of its own."""
ANY_SIZE: Final = 2**63
DECLARED_FOR: Final = 60.0
"""Seconds after which a delay queue is declared again before the next message is put into it."""

_TOO_LARGE = re.compile(r"message size (\d+) is larger than (?:configured )?max size (\d+)")
_CONCERNS_ALL = frozenset({403, 404})
_BODY_BESIDES = spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
_body_head = struct.Struct(">BHI").pack
_END = bytes([spec.FRAME_END])


class Publish(NamedTuple):
    """What is published for a message."""

    id: str
    header: bytes
    """The frame with its properties."""
    payload: bytes
    delay: int
    """Milliseconds."""


@attrs.define
class Target:
    """The queue to publish to, and what is known of what its broker takes."""

    queue: str
    delay_type: DelayQueueType
    largest: int = ANY_SIZE
    """Bytes of a payload, as far as the broker has refused one."""
    frame_max: int = 131_072
    """Bytes of a frame."""


@lru_cache(maxsize=1024)
def _method(channel: int, queue: str) -> bytes:
    """The frame that begins a publish to a queue."""
    marshalled: bytes = frame.Method(channel, spec.Basic.Publish(routing_key=queue, mandatory=True)).marshal()
    return marshalled


class Channel:
    """Publishes with confirms. It is opened again when the broker has closed it."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number
        self._channel: pika.channel.Channel | None = None
        self._ready = False
        self._waiting: list[Parcel] = []
        self._unconfirmed: dict[int, Parcel] = {}
        """By tag, in their order."""
        self._next, self._returned = 1, 0
        self._returns: dict[int, Exception] = {}
        self._declared: dict[int, tuple[float, int]] = {}
        """By delay: when its queue was declared, and the tag of the publish that came next."""

    def open(self) -> None:
        """Open it, unless it is open; what is published meanwhile waits."""
        if self._channel is not None or not self._session.connection.is_open:
            return
        self._channel = channel = self._session.connection.channel(self._number, self._on_open)
        channel.add_on_close_callback(self._on_closed)

    def publish(self, parcels: Iterable[Parcel]) -> None:
        """Publish messages, or have them wait until the channel is open.

        `basic_publish` would put the same frames together by itself, at ten times the price.
        """
        if not self._ready:
            self._waiting += parcels
            self._session.call_later(0, self.open)
            return
        write, number, target = self._session.put, self._number, self._session.target
        most, queue = target.frame_max - _BODY_BESIDES, target.queue
        for parcel in parcels:
            _, header, payload, delay = parcel.content
            frames = [_method(number, self._delayed_by(delay) if delay else queue), header]
            for begin in range(0, len(payload), most):
                part = payload[begin : begin + most]
                frames += (_body_head(spec.FRAME_BODY, number, len(part)), part, _END)
            write(b"".join(frames))
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
        if declared is None or now >= declared[0] + DECLARED_FOR:
            arguments = delay_arguments(target.queue, delay, target.delay_type)
            self._channel.queue_declare(name, durable=True, arguments=arguments)
            self._declared[delay] = now, self._next
        return name

    # What pika calls.

    def _on_open(self, channel: pika.channel.Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, self._on_confirming)

    def _on_confirming(self, _: frame.Method) -> None:
        self._next, self._returned = 1, 0
        self._declared.clear()
        self._returns.clear()
        self._ready = True
        self._session.channel_ready()
        waiting, self._waiting = self._waiting, []
        self.publish(waiting)

    def _on_confirm(self, confirm: frame.Method) -> None:
        method = confirm.method
        tags: Iterable[int] = (method.delivery_tag,)
        if method.multiple:
            last = method.delivery_tag or self._next  # 0 stands for all
            tags = list(takewhile(lambda tag: tag <= last, self._unconfirmed))
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
        for tag, parcel in self._unconfirmed.items():
            # They come in the order of their publishes: one before the last is none of this id.
            if tag > self._returned and parcel.content.id == returned:
                returned_message = ReturnedMessage(method, properties, b"")  # without the payload
                self._returns[tag] = pika.exceptions.UnroutableError([returned_message])
                self._returned = tag
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
            self._session.call_later(0, self.open)  # pika has not yet forgotten the old one

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
            first = min((self._declared[delay][1] for delay in refused), default=first)
            guilty = [tag for tag in tags if tag >= first and self._unconfirmed[tag].content.delay in refused]
        for tag in guilty:
            self._unconfirmed.pop(tag).settle(reason)
        unread = [self._unconfirmed.pop(tag) for tag in tags if tag >= first and tag in self._unconfirmed]
        self._session.outbox.again(unread)
