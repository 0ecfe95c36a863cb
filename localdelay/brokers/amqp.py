"""RabbitMQ (AMQP 0-9-1), by pika. Needs the extra `amqp`."""

from __future__ import annotations

import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import NamedTuple

import pika
from pika.exceptions import ConnectionBlockedTimeout

from localdelay.brokers.address import Address
from localdelay.brokers.amqp_channel import ANY_SIZE, Target
from localdelay.brokers.amqp_delays import SHORT, delay_queue, quantised
from localdelay.brokers.amqp_errors import classified
from localdelay.brokers.amqp_session import Session
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import headers_of, rfc3339, wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message

LONGEST_CONFIRM_TIMEOUT = 300.0
# RabbitMQ takes further routing keys from these, and closes the channel where they are no list.
_ROUTING = frozenset({"CC", "BCC"})
_short, _word = struct.Struct(">H").pack, struct.Struct(">I").pack
_FRAME_BESIDES = 450
"""Bytes of a header frame besides the message's own headers and its id, at most."""


@lru_cache(maxsize=256)
def _field(name: str) -> bytes:
    """What stands before the length of a text in a table of AMQP's."""
    return b"%c%bS" % (len(name.encode()), name.encode())


class Properties(pika.BasicProperties):  # type: ignore[misc]  # pika has no types
    """What travels besides the payload. pika takes as long to encode it as for all else of a message."""

    delivery_mode = 2
    _FLAGS = pika.BasicProperties.FLAG_HEADERS | pika.BasicProperties.FLAG_DELIVERY_MODE

    def __init__(self, headers: dict[str, str], message_id: str | None) -> None:
        # Not pika's, which sets the eleven others, too, each time.
        self.headers = headers
        self.message_id = message_id

    def encode(self) -> list[bytes]:
        """As pika's, for the three that there are: the same bytes."""
        fields: list[bytes] = []
        for header, value in self.headers.items():
            text = value.encode()
            fields += (_field(header), _word(len(text)), text)
        table = b"".join(fields)
        if self.message_id is None:
            return [_short(self._FLAGS), _word(len(table)), table, b"\2"]
        name = self.message_id.encode()
        flags = self._FLAGS | self.FLAG_MESSAGE_ID
        return [_short(flags), _word(len(table)), table, b"\2%c" % len(name), name]


class Publish(NamedTuple):
    """What is published for a message."""

    properties: Properties
    payload: bytes
    delay: int
    """Milliseconds."""


def check(headers: Mapping[str, str]) -> None:
    """Raise `PermanentSendError` for headers that AMQP can't carry."""
    if not _ROUTING.isdisjoint(headers):
        raise PermanentSendError("RabbitMQ takes no text as the header CC or BCC: they are for routing")
    if any(len(name.encode()) > SHORT for name in headers):
        raise PermanentSendError(
            f"the name of a header takes more than {SHORT} bytes, which AMQP does not take"
        )


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
        headers = headers_of(message, now, due)
        size = id_size = len(message.id.encode())
        if message.headers:
            check(message.headers)
            size += sum(
                len(name.encode()) + len(value.encode()) + 6 for name, value in message.headers.items()
            )
        if size + _FRAME_BESIDES > target.frame_max:
            raise PermanentSendError(
                f"id and headers take {size} bytes; this broker takes {target.frame_max} at most"
            )
        if len(message.payload) > target.largest:
            raise PermanentSendError(
                f"{len(message.payload)} bytes; this broker takes {target.largest} at most (max_message_size)"
            )
        # Too long for a property the id travels in the headers alone.
        properties = Properties(headers, message.id if id_size <= SHORT else None)
        return Publish(properties, message.payload, milliseconds)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[Session]:
        if self.confirm_timeout > LONGEST_CONFIRM_TIMEOUT:
            raise ValueError(f"confirm_timeout must be at most {LONGEST_CONFIRM_TIMEOUT:g} s")
        self.target.largest = ANY_SIZE  # what is learned of a broker is of that one: this may be another
        session = Session(self._parameters, self.target, outbox, self._note_blocked)
        async with session.connected():
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
