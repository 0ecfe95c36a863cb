"""RabbitMQ (AMQP 0-9-1), by pika. Needs the extra `amqp`.

`amqp://user:password@host:5672/QUEUE` publishes to a queue through the default exchange; `?vhost=NAME` is
the virtual host, `/` without it, and the user is guest without one. `amqps://` is TLS. The queue is the
user's: it is never declared here. A connection on which the broker is silent for `?heartbeat=` seconds (10)
and five more is lost; `?delay_queue=quorum` is told of below.

**What travels.** The payload; the message's own headers, and `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339), as headers; the id as the property `message_id` too, unless
it takes more than 255 bytes. Every message is persistent (delivery mode 2), and is on disk when it is
confirmed where the queue is durable.

**Confirmation.** Publisher confirms, with `mandatory`, many under way on one connection, which lives on
the Trio loop itself. One that is not confirmed in time is a `TimeoutError`, and what is under way when the
connection is lost a `ConnectionError`: nobody can tell whether the broker took it. The connection is made
again for as long as it takes; meanwhile messages wait, within the same time limit. One that is tried
again comes behind others.

**Throttled** are a nack (the queue is full and rejects), a connection that the broker blocks (out of
memory or disk), and the limit of queues in a virtual host. While the connection is blocked every publish
is refused at once. What was written just before has until the confirm timeout, and is throttled then; the
broker takes it all the same once it reads on, so that consumers may see that id twice.
**Permanent** are a queue that is not there (`basic.return`), a message over `max_message_size`, access
refused, and what AMQP can't carry. Too large a message closes the channel: what was written behind it is
written again, and what was under way before it fails with a `ConnectionError`. The limit is remembered.

**Delay.** The broker's own: a message goes into a queue `localdelay.QUEUE.MILLISECONDS`, is dead-lettered
out of it into QUEUE when its time to live is over, and has then RabbitMQ's `x-death` headers too. There is
a queue for each delay, as one with a short delay would else wait behind one with a long delay. A delay is
rounded up to three significant digits of milliseconds: 120 s is 120 s, nothing is early, and nothing more
than 1 % late by it. The user needs the permissions to configure and to write these queues, to read them
and to write to the default exchange.

RabbitMQ deletes such a queue, with all that is in it, when it was not declared for its delay and ten
minutes more (`x-expires`). No message is lost by that: a queue is declared again ahead of the first message
that comes a minute or more after the last declaration. So a message is written at most 60 s after a
declaration; it is confirmed at most 300 s after that (`confirm_timeout` can't be more), or counts as not
taken; and it leaves when its delay is over, four minutes before the queue may go. The broker handles
declaration and message in this order, so it may stand still for as long as it likes. A node that
restarts begins to count anew. Only to set a broker's clock back by minutes would break this: time to live
is counted on the wall clock.

Dead-lettering itself is weaker than a confirmed publish where the delay queue is classic, which is the
default: the broker hands the message on without waiting for QUEUE to confirm it, so that it can be lost
when the node dies in that moment, and is when QUEUE is not there, or is full and rejects. With
`?delay_queue=quorum` (RabbitMQ 3.10 and later) it is handed on at least once, and kept until
QUEUE has confirmed it; these queues are replicated, and cost more memory and time, each.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

import pika
import trio

from localdelay.brokers.address import Address
from localdelay.brokers.amqp_channel import ANY_SIZE, Target
from localdelay.brokers.amqp_delays import SHORT, delay_queue, quantised
from localdelay.brokers.amqp_errors import blocked, classified
from localdelay.brokers.amqp_session import Session
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import headers_of, rfc3339, wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message

LONGEST_CONFIRM_TIMEOUT = 300.0
# RabbitMQ takes further routing keys from these, and closes the channel where they are no list.
_ROUTING = frozenset({"CC", "BCC"})
_FRAME_BESIDES = 300
"""Bytes of a header frame besides the headers and the id, at most."""


class Publish(NamedTuple):
    """What is published for a message."""

    properties: pika.BasicProperties
    payload: bytes
    delay: int
    """Milliseconds."""


def checked(headers: dict[str, str]) -> dict[str, str]:
    """The headers. Raises `PermanentSendError` for what AMQP can't carry."""
    if not _ROUTING.isdisjoint(headers):
        raise PermanentSendError("RabbitMQ takes no text as the header CC or BCC: they are for routing")
    if any(len(name.encode()) > SHORT for name in headers):
        raise PermanentSendError(
            f"the name of a header takes more than {SHORT} bytes, which AMQP does not take"
        )
    return headers


def size_of(headers: Mapping[str, str]) -> int:
    """Bytes of a table of headers."""
    return sum(len(name.encode()) + len(value.encode()) + 6 for name, value in headers.items())


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

    def encode(self, message: Message, delay: float | None) -> Publish:
        if self.blocked is not None:
            raise blocked(self.blocked)
        target, milliseconds = self.target, 0
        if delay is not None:
            milliseconds = quantised(delay)
            if len(delay_queue(target.queue, milliseconds, target.delay_type).encode()) > SHORT:
                raise PermanentSendError(f"the name of the delay queue would take more than {SHORT} bytes")
        due = wall_clock(message.execute_at if delay is None else trio.current_time() + delay)
        headers = checked(headers_of(message, rfc3339(due)))
        size, id_size = size_of(headers), len(message.id.encode())
        if size + _FRAME_BESIDES > target.frame_max:
            raise PermanentSendError(
                f"id and headers take {size} bytes; this broker takes {target.frame_max} at most"
            )
        if len(message.payload) > target.largest:
            raise PermanentSendError(
                f"{len(message.payload)} bytes; this broker takes {target.largest} at most (max_message_size)"
            )
        # Too long for a property the id travels in the headers alone.
        properties = pika.BasicProperties(
            headers=headers, delivery_mode=2, message_id=message.id if id_size <= SHORT else None
        )
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
            return blocked(f"{self.blocked}; {error}")
        return classified(error)


driver_at = _Driver
