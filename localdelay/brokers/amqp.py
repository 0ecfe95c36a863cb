"""RabbitMQ (AMQP 0-9-1), by pika. Needs the extra `amqp`."""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache

import pika
from pika import spec
from pika.exceptions import ConnectionBlockedTimeout

from localdelay.brokers.address import Address
from localdelay.brokers.amqp_channel import ANY_SIZE, AT_ONCE, DELAYED, Publish, Target
from localdelay.brokers.amqp_delays import SHORT, delay_queue, quantised
from localdelay.brokers.amqp_errors import classified
from localdelay.brokers.amqp_session import Session
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ID, headers_of, rfc3339, wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message

LONGEST_CONFIRM_TIMEOUT = 300.0
# RabbitMQ takes further routing keys from these, and closes the channel where they are no list.
_ROUTING = frozenset({"CC", "BCC"})
_FLAGS = pika.BasicProperties.FLAG_HEADERS | pika.BasicProperties.FLAG_DELIVERY_MODE
_PERSISTENT = bytes([pika.DeliveryMode.Persistent.value])
_word = struct.Struct(">I").pack
_frame_head = struct.Struct(">BHIHxxQHI")
_END = bytes([spec.FRAME_END])


@lru_cache(maxsize=256)
def _field(name: str) -> bytes:
    """What stands before the length of a text in a table of AMQP's."""
    encoded = name.encode()
    if name in _ROUTING:
        raise PermanentSendError("RabbitMQ takes no text as the header CC or BCC: they are for routing")
    if len(encoded) > SHORT:
        raise PermanentSendError(
            f"the name of a header takes more than {SHORT} bytes, which AMQP does not take"
        )
    return b"%c%bS" % (len(encoded), encoded)


def header_frame(channel: int, size: int, headers: Mapping[str, str], id: bytes) -> bytes:
    """The frame that announces a payload of so many bytes, and its properties: persistent, headers, and id.

    The same bytes as pika's, which takes as long for them as for all else of a message. Too long for a
    property the id travels in the headers alone.
    """
    fields: list[bytes] = []
    for name, value in headers.items():
        text = value.encode()
        fields += (_field(name), _word(len(text)), text)
    table = b"".join(fields)
    flags, others = _FLAGS, _PERSISTENT
    if len(id) <= SHORT:
        flags, others = flags | pika.BasicProperties.FLAG_MESSAGE_ID, b"%b%c%b" % (others, len(id), id)
    length = _frame_head.size - spec.FRAME_HEADER_SIZE + len(table) + len(others)
    head = _frame_head.pack(
        spec.FRAME_HEADER, channel, length, pika.BasicProperties.INDEX, size, flags, len(table)
    )
    return b"".join((head, table, others, _END))


def parameters_of(where: Address) -> pika.ConnectionParameters:
    """How pika is to connect. Raises `ValueError` for an option that is none."""
    context = ssl.create_default_context() if where.scheme == "amqps" else None
    return pika.ConnectionParameters(
        where.host,
        where.port,
        where.options.get("vhost", "/"),
        pika.PlainCredentials(
            "guest" if where.username is None else where.username,
            "guest" if where.password is None else where.password,
        ),
        heartbeat=where.count("heartbeat", 10, 3600),
        # Longer than what is waited for here.
        socket_timeout=60,
        stack_timeout=60,
        ssl_options=None if context is None else pika.SSLOptions(context, where.host),
        client_properties={"connection_name": f"localdelay {where.target}"},
    )


class _Driver(Driver):
    native_delay = True

    def __init__(self, where: Address) -> None:
        if len(where.target.encode()) > SHORT:
            raise ValueError(f"queue must be a name of at most {SHORT} bytes")
        self.where = f"RabbitMQ at {where.place}"
        self.blocked: str | None = None
        """Why the broker takes nothing now, where it says so."""
        kind = where.choice("delay_queue", "quorum", "classic") or "classic"
        self.target = Target(where.target, "quorum" if kind == "quorum" else "classic")
        self._parameters = parameters_of(where)

    def encode(self, message: Message, delay: float | None, now: float) -> Publish:
        if self.blocked is not None:
            raise ConnectionBlockedTimeout(self.blocked)
        target, milliseconds = self.target, 0
        if delay is not None:
            milliseconds = quantised(delay)
            if len(delay_queue(target.queue, milliseconds, target.delay_type).encode()) > SHORT:
                raise PermanentSendError(f"the name of the delay queue would take more than {SHORT} bytes")
        due = None if delay is None else rfc3339(wall_clock(now + delay, now))
        payload, headers = message.payload, headers_of(message, now, due)
        size, message_id = len(payload), headers[ID]  # a message makes its id anew whenever it is asked
        if size > target.largest:
            raise PermanentSendError(
                f"{size} bytes; this broker takes {target.largest} at most (max_message_size)"
            )
        channel = AT_ONCE if delay is None else DELAYED
        header = header_frame(channel, size, headers, message_id.encode())
        if len(header) > target.frame_max:
            raise PermanentSendError(
                f"id and headers take {len(header)} bytes; this broker takes {target.frame_max} at most"
            )
        return Publish(message_id, header, payload, milliseconds)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[Session]:
        if self.confirm_timeout > LONGEST_CONFIRM_TIMEOUT:
            raise ValueError(f"confirm_timeout must be at most {LONGEST_CONFIRM_TIMEOUT:g} s")
        self.target.largest = ANY_SIZE  # what is learned of a broker is of that one: this may be another
        session = Session(self.target, outbox, self._note_blocked)
        async with session.connected(self._parameters):
            yield session

    def _note_blocked(self, reason: str | None) -> None:
        self.blocked = reason

    def verdict(self, error: Exception) -> Exception:
        # Blocked, the broker takes what was written when it reads on. But a duplicate is better than to hear
        # nothing of the limit, and than to give up what is refused.
        if isinstance(error, TimeoutError) and self.blocked is not None:
            error = ConnectionBlockedTimeout(f"{self.blocked}; {error}")
        return classified(error)


driver_at = _Driver
