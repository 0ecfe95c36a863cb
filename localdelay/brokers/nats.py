"""NATS JetStream, by nats-py on trio-asyncio. Needs the extra `nats`.

The URL is `nats://[user:password@ | token@]host[:port]/SUBJECT`. A stream must hold the subject.

What travels: the payload, the message's own headers, and `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339). `Nats-Msg-Id` is left alone: the server remembers it for a
scheduled message too, and would then swallow an immediate one of the same id while saying that it took it.
Consumers deduplicate by `Localdelay-Id`.

A message is confirmed by the PubAck of the stream. The stream then has it: in memory, or in a file that the
server's death does not harm; what the machine's may, the server's `sync_interval` says (two minutes, or
`always`). With replicas, a majority has it. Messages are stored in the order in which they are sent, except
that what is tried again comes later.

Its delay is the server's own: message schedules, in NATS 2.12 and later; every server that may hold the
stream must be. The stream must have `allow_msg_schedules`, and hold both the subject and `SUBJECT.delayed.*`.
A subject keeps one schedule, so each message is scheduled on a subject of its own, named by a digest of its
id; publishing an id again replaces what was scheduled for it. It is due by the server's clock.

The user must be allowed to publish to these subjects, and to subscribe to an inbox (`_INBOX.>`, unless there
is an `inbox_prefix`). That it may ask `$JS.API.STREAM.NAMES` helps, see below.

All sends share one connection and go out together, each with an answer of its own: one that is refused or
cancelled harms no other. A lost connection is made again, to any server of the cluster, for as long as the
block is open; `send` and `send_batch` wait for it, and `publish_delayed`, whose caller may have another way,
does not.

- Throttled: 429, such as "too many requests" (the server's `max_buffered_msgs`); a stream that is full and
  discards what is new (10077, "maximum ... exceeded"); the limits of the server (10023, 10028, 10047) and of
  the account (10002, which comes as a 400). The server never says for how long.
- Permanent: more than the server's `max_payload` with its headers; every other 400, such as a message over
  the stream's `max_msg_size`, or a schedule where the stream allows none; a subject that this user may not
  publish to; a subject that no stream holds; a header that NATS can't carry.
- As nats-py raises it, and to be tried again: the rest. `NoStreamResponseError` too, where a stream holds the
  subject and does not answer: it has no leader now, or its server is away. Without a stream the server's
  answer is the same, so that it is asked for its streams; where it does not say, or a connection was made
  again within the last ten seconds and the streams may be yet to come, this is not permanent.
- What was under way when the connection was lost raises `ConnectionError`, and what is not confirmed within
  `confirm_timeout` `TimeoutError`: both are ambiguous. What has found no connection for so long raises
  `ConnectionError` too, and was not sent.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from localdelay import arguments
from localdelay.brokers.address import Address
from localdelay.brokers.nats_answers import classified
from localdelay.brokers.nats_frames import header_lines
from localdelay.brokers.nats_line import Line, asyncio_loop, connected
from localdelay.brokers.nats_outbox import Outbox, Publication
from localdelay.brokers.wire import rfc3339, wall_clock
from localdelay.errors import DelayNotSupported
from localdelay.message import Message

__all__ = [
    "NatsBroker",
    "classified",
    "connected",
    "open_address",
    "open_nats",
    "schedule_subject",
    "stream_subjects",
]

_SCHEDULES_SINCE = (2, 12)
_SCHEDULE_HEADERS = frozenset({"nats-schedule", "nats-schedule-target"})
_SHORTEST = 0.001
_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")
# A line of the protocol may have 4,096 bytes, and more than a subject is in it.
_LONGEST_SUBJECT = 3000


def schedule_subject(subject: str, id: str) -> str:
    """Where the schedule of one message is kept: an id may hold what a subject may not."""
    return f"{subject}.delayed.{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def stream_subjects(subject: str) -> list[str]:
    """The subjects that a stream must hold for `send` and `publish_delayed`."""
    return [subject, f"{subject}.delayed.*"]


class NatsBroker:
    """A connection that publishes to one subject; `open_nats` makes it."""

    native_delay: bool
    """Whether the server that it is, or was last, connected to knows message schedules."""

    def __init__(self, outbox: Outbox, subject: str) -> None:
        self._outbox = outbox
        self._subject = subject
        self._encoded = subject.encode()
        self._version = (0, 0)
        self.native_delay = False
        outbox.on_connected = self._connected

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once the stream has stored it.

        Raises `Throttled` when the server refuses it because of a limit; `PermanentSendError` for what can
        never work, such as a payload over the server's limit; `TimeoutError` or `ConnectionError` where
        nobody can tell whether it was stored; and what nats-py raises for the rest.
        """
        await self._outbox.publish(self._publication(message))

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages now, all at once and in their order; returns once the stream has stored them all.

        It is no transaction: each is stored or not. Raises as `send` does, and `PartialSendError` where some
        failed.
        """
        await self._outbox.publish_all(tuple(messages), self._publication)

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Have the server publish a message `delay` seconds from now; returns once it has stored that.

        Raises as `send` does; `PermanentSendError` too where the stream allows no schedules, and
        `DelayNotSupported` where the server is older than 2.12. Where there is no connection it fails at
        once.
        """
        arguments.at_least("delay", delay, 0, "a number of seconds")
        self._outbox.check_open()
        if not self.native_delay:
            major, minor = self._version
            raise DelayNotSupported(f"NATS {major}.{minor} has no message schedules: they came with 2.12")
        due = time.time() + delay
        try:
            at = rfc3339(due)
        except OverflowError:
            raise ValueError(f"delay must end before the year 10000, not {delay:g} s from now") from None
        others = {
            name: value for name, value in message.headers.items() if name.lower() not in _SCHEDULE_HEADERS
        }
        headers = header_lines(message.id, message.attempt, at, others)
        subject = schedule_subject(self._subject, message.id)
        schedule = f"Nats-Schedule: @at {at}\r\nNats-Schedule-Target: {self._subject}\r\n\r\n"
        held_by = stream_subjects(self._subject)[1]
        publication = Publication(
            subject.encode(), headers[:-2] + schedule.encode(), _payload(message), held_by
        )
        await self._outbox.publish(publication, only_now=True)

    async def cancel_delayed(self, id: str, handle: object) -> None:
        """Raises `DelayNotSupported`."""
        raise DelayNotSupported("a message schedule of NATS can't be called off by its id")

    def _publication(self, message: Message) -> Publication:
        due = rfc3339(wall_clock(message.execute_at))
        headers = header_lines(message.id, message.attempt, due, message.headers)
        return Publication(self._encoded, headers, _payload(message), self._subject)

    def _connected(self, line: Line) -> None:
        self._version = line.version
        self.native_delay = line.version >= _SCHEDULES_SINCE


def _payload(message: Message) -> bytes:
    payload = message.payload
    if not isinstance(payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
    return payload


def open_address(
    where: Address, *, confirm_timeout: float | None = None, connect_timeout: float = 5.0
) -> AbstractAsyncContextManager[NatsBroker]:
    """Connect to where a URL points to. The time-outs, in seconds, are those of `open_nats`."""
    servers = [_server_url(host, port) for host, port in where.hosts]
    confirm = 10.0 if confirm_timeout is None else confirm_timeout
    return _open(servers, where.username, where.password, where.target, confirm, connect_timeout, True, {})


@asynccontextmanager
async def open_nats(
    url: str,
    *,
    subject: str,
    confirm_timeout: float = 10.0,
    connect_timeout: float = 5.0,
    reconnect: bool = True,
    **options: Any,
) -> AsyncIterator[NatsBroker]:
    """Connect to the server at `url`, and publish to `subject` for the length of an `async with` block.

    A publish that is not confirmed within `confirm_timeout` seconds has failed. With `reconnect`, a
    connection that was lost is made again; what was under way raises `ConnectionError` all the same. The
    rest is for nats-py's `connect`: `tls`, `user_credentials`, `nkeys_seed`, `inbox_prefix`, `name` ... Where
    TLS is asked for, by `tls` or a `tls://` URL, nothing is published without it.
    Raises `ConnectionError` where no server answers within `connect_timeout` seconds, or it lets nobody in,
    and `ValueError` for a URL, a subject or a time-out that is none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 4222
    except ValueError:
        host = None
    if not host or parts.scheme not in ("nats", "tls"):
        raise ValueError("url must be a NATS server's, like nats://host:4222")  # what it is may be secret
    server = _server_url(host, port, parts.scheme)
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    async with _open(
        [server], user, password, subject, confirm_timeout, connect_timeout, reconnect, options
    ) as broker:
        yield broker


@asynccontextmanager
async def _open(
    servers: Sequence[str],
    user: str | None,
    password: str | None,
    subject: str,
    confirm_timeout: float,
    connect_timeout: float,
    reconnect: bool,
    options: dict[str, Any],
) -> AsyncIterator[NatsBroker]:
    if not _SUBJECT.fullmatch(subject) or len(subject.encode()) > _LONGEST_SUBJECT:
        raise ValueError(
            "subject must have words with dots between them, without blanks and wildcards, "
            f"and {_LONGEST_SUBJECT:,} bytes at most"
        )
    arguments.at_least("confirm_timeout", confirm_timeout, _SHORTEST, "a number of seconds")
    arguments.at_least("connect_timeout", connect_timeout, _SHORTEST, "a number of seconds")
    # Not in the URL: there nats-py would forget them on its way to another server, and show them.
    if user and password is None:
        options = {"token": user, **options}
    elif user:
        options = {"user": user, "password": password, **options}
    async with asyncio_loop() as nursery:
        outbox = Outbox(servers, options, confirm_timeout, connect_timeout, reconnect)
        broker = NatsBroker(outbox, subject)
        await outbox.open()
        nursery.start_soon(outbox.run)
        try:
            yield broker
        finally:
            await outbox.close()


def _server_url(host: str, port: int, scheme: str = "nats") -> str:
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
