"""RabbitMQ (AMQP 0-9-1), by pika. Needs the extra `amqp`.

`amqp://user:password@host:5672/QUEUE` publishes to a queue through the default exchange; `?vhost=NAME` is
the virtual host, `/` without it, and the user is guest without one. `amqps://` is TLS. The queue is the
user's: it is never declared here.

**What travels.** The payload; the message's own headers, and `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339), as headers; the id as the property `message_id` too, unless
it takes more than 255 bytes. Every message is persistent (delivery mode 2), and is on disk when it is
confirmed where the queue is durable.

**Confirmation.** Publisher confirms, with `mandatory`, many under way on one connection, which lives on
the Trio loop itself. One that is not confirmed in time is a `TimeoutError`, and what is under way when the
connection is lost a `ConnectionError`: nobody can tell whether the broker took it. The connection is made
again for as long as it takes; meanwhile messages wait, within the same time limit. Messages are written in
the order in which they are given; one that is tried again comes behind others.

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
`delay_queue_type="quorum"` (RabbitMQ 3.10 and later) it is handed on at least once, and kept until
QUEUE has confirmed it; these queues are replicated, and cost more memory and time, each.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, get_args

import trio

from localdelay import arguments
from localdelay.brokers.address import Address
from localdelay.brokers.amqp_channel import Publish
from localdelay.brokers.amqp_connection import Connection, Node
from localdelay.brokers.amqp_errors import classified
from localdelay.brokers.amqp_frames import SHORT, DelayQueueType, delay_queue, quantised
from localdelay.brokers.wire import wall_clock
from localdelay.errors import PermanentSendError
from localdelay.message import Message
from localdelay.settling import Confirmation

__all__ = ["AmqpBroker", "classified", "open_address", "open_amqp"]

LONGEST_CONFIRM_TIMEOUT: Final = 300.0


class AmqpBroker:
    """A connection that publishes to one queue; `open_amqp` makes it."""

    native_delay = True

    def __init__(self, connection: Connection, queue: str, delay_queue_type: DelayQueueType) -> None:
        self._connection = connection
        self._queue = queue
        self._delay_queue_type = delay_queue_type

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once the broker has confirmed it.

        Raises `Throttled` where it is refused because of a limit, `PermanentSendError` for what can never
        work, and a `TimeoutError` or `ConnectionError` where nobody can tell whether it was taken.
        """
        await self._publish(message, wall_clock(message.execute_at), 0)

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now; returns once the broker has confirmed all of them.

        Raises `PartialSendError` where it did not take some of them, and else as `send` does.
        """
        messages = tuple(messages)
        confirmation = Confirmation(len(messages))
        deadline, ahead = self._connection.deadline(), time.time() - trio.current_time()
        publishes = [
            Publish(message, confirmation, position, message.execute_at + ahead, deadline)
            for position, message in enumerate(messages)
        ]
        try:
            self._connection.publish(publishes)
            await confirmation.of_all(messages)
        except BaseException:
            for publish in publishes:
                publish.message = None
            raise

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Have the broker deliver a message in `delay` seconds; returns once it has confirmed that.

        Raises as `send` does; a `TypeError` or `ValueError` for a delay that is none.
        """
        seconds = arguments.at_least("delay", delay, 0, "a number of seconds")
        milliseconds = quantised(seconds)
        if len(delay_queue(self._queue, milliseconds, self._delay_queue_type).encode()) > SHORT:
            raise PermanentSendError(f"the name of the delay queue would take more than {SHORT} bytes")
        await self._publish(message, time.time() + seconds, milliseconds)

    async def _publish(self, message: Message, due: float, delay: int) -> None:
        confirmation = Confirmation()
        publish = Publish(message, confirmation, 0, due, self._connection.deadline(), delay)
        try:
            self._connection.publish((publish,))
            await confirmation.of_one()
        except BaseException:
            publish.message = None
            raise


def open_address(where: Address) -> AbstractAsyncContextManager[AmqpBroker]:
    """Connect to where a URL points to."""
    return open_amqp(
        where.host,
        queue=where.target,
        port=where.port,
        virtual_host=where.options.get("vhost", "/"),
        username="guest" if where.username is None else where.username,
        password="guest" if where.password is None else where.password,
        tls=ssl.create_default_context() if where.scheme == "amqps" else None,
    )


@asynccontextmanager
async def open_amqp(
    host: str,
    *,
    queue: str,
    port: int = 5672,
    virtual_host: str = "/",
    username: str = "guest",
    password: str = "guest",  # noqa: S107 (RabbitMQ's own default)
    tls: ssl.SSLContext | None = None,
    confirm_timeout: float = 10.0,
    connect_timeout: float = 5.0,
    heartbeat: int = 10,
    delay_queue_type: DelayQueueType = "classic",
) -> AsyncIterator[AmqpBroker]:
    """Connect to RabbitMQ, and publish to `queue` for the length of an `async with` block.

    `confirm_timeout` seconds (300 at most) after its publish a message has failed that is not confirmed;
    a connection must stand within `connect_timeout`. One on which the broker is silent for `heartbeat`
    seconds and five more (0: any number) is lost; pika notices within twice that. What is under way when
    the block is left has a second to be confirmed.
    Raises `ConnectionError` where no broker answers or it refuses the user or the virtual host, and
    `TypeError` or `ValueError` for an argument that is wrong.
    """
    if not 1 <= len(queue.encode()) <= SHORT:
        raise ValueError(f"queue must be a name of 1 to {SHORT} bytes, not of {len(queue.encode())}")
    if delay_queue_type not in get_args(DelayQueueType):
        raise ValueError(f"delay_queue_type must be classic or quorum, not {delay_queue_type!r}")
    confirm_timeout = _seconds("confirm_timeout", confirm_timeout)
    if confirm_timeout > LONGEST_CONFIRM_TIMEOUT:
        raise ValueError(f"confirm_timeout must be at most {LONGEST_CONFIRM_TIMEOUT:g} s")
    node = Node(
        host=host,
        port=port,
        virtual_host=virtual_host,
        username=username,
        password=password,
        tls=tls,
        heartbeat=heartbeat if heartbeat == 0 else arguments.count("heartbeat", heartbeat),
        connect_timeout=_seconds("connect_timeout", connect_timeout),
    )
    connection = Connection(node, queue, confirm_timeout=confirm_timeout, delay_queue_type=delay_queue_type)
    try:
        await connection.opened()
        yield AmqpBroker(connection, queue, delay_queue_type)
    finally:
        await connection.close()


def _seconds(name: str, value: float) -> float:
    seconds = arguments.at_least(name, value, 0, "a number of seconds")
    if not seconds:
        raise ValueError(f"{name} must be more than 0")
    return seconds
