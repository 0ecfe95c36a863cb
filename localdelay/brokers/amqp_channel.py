"""One AMQP channel with publisher confirms, and what it publishes.

The broker closes a channel for the fault of one message, or for a declaration that it refuses. What else
was under way on it is told apart from the culprit as far as that goes.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import attrs
import pika.channel
import pika.exceptions
from pika import frame, spec

from localdelay.brokers import amqp_errors
from localdelay.brokers.amqp_frames import (
    DelayQueueType,
    content_frames,
    delay_arguments,
    delay_queue,
    publish_frame,
)
from localdelay.brokers.wire import ID
from localdelay.errors import PermanentSendError
from localdelay.message import Message
from localdelay.settling import Confirmation

DECLARED_FOR: Final = 60.0
"""Seconds after which a delay queue is declared again before the next message is put into it."""

_WRITE_BYTES = 32 * 1024
_TOO_LARGE = re.compile(r"message size (\d+) is larger than (?:configured )?max size (\d+)")
_CONCERNS_ALL = frozenset({403, 404})


@attrs.define(eq=False)
class Publish:
    """A message on its way to the broker."""

    message: Message | None
    """None where nobody waits for it any more: what is not written yet need not be."""
    confirmation: Confirmation
    position: int
    due: float
    """Its execute-at as Unix time in seconds."""
    deadline: float
    """When it has taken too long, on Trio's clock."""
    delay: int = 0
    """Milliseconds."""
    returned: Exception | None = None
    """What the broker has said of it before the acknowledgement, which comes all the same."""

    def settle(self, error: Exception | None) -> None:
        """It is confirmed, or has failed."""
        self.confirmation.settle(self.position, error)

    def fail(self, error: Callable[[], Exception]) -> None:
        """It is not confirmed, and will not be any more."""
        # A delay queue that is not there is no fault of the message.
        self.settle((None if self.delay else self.returned) or error())


@attrs.frozen
class _Declared:
    """A delay queue, as it was declared on this channel."""

    at: float
    """When, on `time.monotonic()`."""
    tag: int
    """Of the publish that came next."""
    publish_frame: bytes


class Connection(Protocol):
    """What a channel needs of the connection that it is on."""

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame."""

    def open_channel(
        self, number: int, opened: Callable[[pika.channel.Channel], None]
    ) -> pika.channel.Channel | None:
        """Open a channel; None where there is no connection to open it on."""

    def has_room(self) -> bool:
        """Whether more may be written, or there is enough that the broker has not read yet."""

    def write(self, data: memoryview) -> None:
        """Write whole frames; what the broker has to say comes in meanwhile."""

    def channel_ready(self) -> None:
        """A channel can publish from now on."""

    def pump_soon(self) -> None:
        """Have every channel publish what it has, in a later turn of the loop."""


class ConfirmedChannel:
    """Publishes to one queue, or through the queues that delay messages for it."""

    def __init__(self, connection: Connection, number: int, queue: str, delay_type: DelayQueueType) -> None:
        self.outbox: deque[Publish] = deque()
        """What is to be published."""
        self.ready = False
        """Whether it is open, and confirms."""
        self._connection = connection
        self._number = number
        self._queue = queue
        self._delay_type = delay_type
        self._at_once = publish_frame(number, queue)
        self._channel: pika.channel.Channel | None = None
        self._unconfirmed: dict[int, Publish] = {}
        self._next = self._oldest = self._returned = 1
        self._declared: dict[int, _Declared] = {}
        self._largest: int | None = None

    @property
    def unconfirmed(self) -> int:
        """How many are under way."""
        return len(self._unconfirmed)

    @property
    def busy(self) -> bool:
        """Whether something is under way, or about to be."""
        return bool(self._unconfirmed or (self.ready and self.outbox))

    def open(self) -> None:
        """Open the channel, unless it is open or there is no connection."""
        if self._channel is None:
            self._channel = channel = self._connection.open_channel(self._number, self._on_open)
            if channel is not None:
                channel.add_on_close_callback(self._on_closed)

    def pump(self) -> None:
        """Publish what there is to publish, as far as the broker reads it."""
        if self.outbox and not self.ready:
            self.open()
        # To write may bring the news that the channel is closed.
        while self.outbox and self.ready and self._connection.has_room():
            if pieces := self._take(self._connection.frame_max):
                self._connection.write(memoryview(b"".join(pieces)))

    def expire(
        self, now: float, unsent: Callable[[], Exception], unconfirmed: Callable[[], Exception]
    ) -> None:
        """Fail what has taken too long by now."""
        while self.outbox and self.outbox[0].deadline <= now:
            self.outbox.popleft().settle(unsent())
        while (publish := self._oldest_unconfirmed()) is not None and publish.deadline <= now:
            del self._unconfirmed[self._oldest]
            publish.fail(unconfirmed)

    def next_deadline(self) -> float:
        """When `expire` is to be called next, on Trio's clock; infinite where nothing is waiting."""
        waiting = [self._oldest_unconfirmed(), self.outbox[0] if self.outbox else None]
        return min((publish.deadline for publish in waiting if publish is not None), default=math.inf)

    def fail_unsent(self, error: Callable[[], Exception]) -> None:
        """Fail what is not written yet."""
        while self.outbox:
            self.outbox.popleft().settle(error())

    def fail_unconfirmed(self, error: Callable[[], Exception]) -> None:
        """Fail what is under way."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for publish in unconfirmed.values():
            publish.fail(error)

    def lost(self, error: BaseException) -> None:
        """The channel is no more: what was under way has failed, the rest waits for another one."""
        self._channel = None
        self.ready = False
        self._declared.clear()
        self.fail_unconfirmed(lambda: amqp_errors.lost(error))

    def _take(self, frame_max: int) -> list[bytes | memoryview]:
        """Take as much out of the outbox as is worth a write; its frames, in pieces."""
        pieces: list[bytes | memoryview] = []
        size = 0
        while self.outbox and size < _WRITE_BYTES:
            publish = self.outbox.popleft()
            message = publish.message
            if message is None:
                continue
            try:
                self._check_size(message)
                frames = content_frames(self._number, message, publish.due, frame_max)
                first = self._delayed_by(publish.delay) if publish.delay else self._at_once
            except Exception as error:  # noqa: BLE001 (raised by the send that waits for it)
                publish.settle(amqp_errors.classified(error))
                continue
            self._unconfirmed[self._next] = publish
            self._next += 1
            pieces.append(first)
            pieces += frames
            size += len(first) + len(frames[0]) + len(message.payload)
        return pieces

    def _check_size(self, message: Message) -> None:
        if self._largest is not None and len(message.payload) > self._largest:
            raise PermanentSendError(
                f"{len(message.payload)} bytes; this broker takes {self._largest} at most (max_message_size)"
            )

    def _delayed_by(self, delay: int) -> bytes:
        """The first frame of a publish into a delay queue, which is declared ahead of it if need be.

        The broker handles both in this order; a declaration that it refuses closes the channel.
        """
        now = time.monotonic()
        declared = self._declared.get(delay)
        if declared is None or now >= declared.at + DECLARED_FOR:
            assert self._channel is not None  # noqa: S101 (it is ready)
            name = self._delay_queue(delay)
            arguments = delay_arguments(self._queue, delay, self._delay_type)
            self._channel.queue_declare(name, durable=True, arguments=arguments)
            declared = self._declared[delay] = _Declared(now, self._next, publish_frame(self._number, name))
        return declared.publish_frame

    def _delay_queue(self, delay: int) -> str:
        return delay_queue(self._queue, delay, self._delay_type)

    def _oldest_unconfirmed(self) -> Publish | None:
        while self._oldest < self._next:
            publish = self._unconfirmed.get(self._oldest)
            if publish is not None:
                return publish
            self._oldest += 1
        return None

    # What pika calls.

    def _on_open(self, channel: pika.channel.Channel) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, self._on_confirming)

    def _on_confirming(self, _: frame.Method) -> None:
        self._next = self._oldest = self._returned = 1
        self.ready = True
        self._connection.channel_ready()
        self._connection.pump_soon()

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
            publish = self._unconfirmed.pop(tag, None)
            if publish is None:
                continue  # it has taken too long
            if publish.returned is not None and publish.delay:
                # Somebody has deleted the queue that was to delay it.
                self._declared.pop(publish.delay, None)
                publish.returned = None
                self.outbox.appendleft(publish)
                self._connection.pump_soon()
            else:
                publish.settle(amqp_errors.nacked(method) if refused else publish.returned)

    def _on_return(
        self, _: object, method: spec.Basic.Return, properties: spec.BasicProperties, __: bytes
    ) -> None:
        returned = (properties.headers or {}).get(ID)
        # In the order of their publishes, so that what was returned before it need not be looked at.
        for tag in range(max(self._returned, self._oldest), self._next):
            publish = self._unconfirmed.get(tag)
            if publish is not None and publish.message is not None and publish.message.id == returned:
                publish.returned = amqp_errors.unroutable(method, properties)
                self._returned = tag + 1
                return

    def _on_closed(self, channel: pika.channel.Channel, reason: Exception) -> None:
        if channel is self._channel:
            if isinstance(reason, pika.exceptions.ChannelClosedByBroker):
                self._blame(reason)
            self.lost(reason)
            self._connection.pump_soon()

    def _blame(self, reason: pika.exceptions.ChannelClosedByBroker) -> None:
        """Fail what the channel was closed for, and publish again what came after it: it was not read."""
        tags = list(self._unconfirmed)
        text = reason.reply_text
        first = self._next
        if too_large := _TOO_LARGE.search(text):
            self._largest = largest = int(too_large[2])
            messages = [(tag, self._unconfirmed[tag].message) for tag in tags]
            guilty = [tag for tag, message in messages if message and len(message.payload) > largest]
            first = min(guilty, default=first)
        elif reason.reply_code in _CONCERNS_ALL or len(tags) == 1:
            guilty = tags
        else:
            refused = {delay for delay in self._declared if f"'{self._delay_queue(delay)}'" in text}
            first = min((self._declared[delay].tag for delay in refused), default=first)
            guilty = [tag for tag in tags if tag >= first and self._unconfirmed[tag].delay in refused]
        for tag in guilty:
            self._unconfirmed.pop(tag).settle(amqp_errors.classified(reason))
        unread = [self._unconfirmed.pop(tag) for tag in tags if tag >= first and tag in self._unconfirmed]
        self.outbox.extendleft(reversed(unread))
