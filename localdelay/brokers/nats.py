"""NATS JetStream, by nats-py on trio-asyncio. Needs the extra `nats`.

The URL is `nats://[user:password@ | token@]host[:port][,host...]/SUBJECT`. A stream must hold the subject. A
server that asks for TLS gets it, and must have a certificate that the system trusts (or the file that the
environment variable SSL_CERT_FILE names); `?tls=required` publishes nothing without.

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

The user must be allowed to publish to these subjects, and to subscribe to an inbox (`_INBOX.>`, or what
`?inbox_prefix=` says). That it may ask `$JS.API.STREAM.NAMES` helps, see below.

All sends share one connection, each with an answer of its own: one that is refused or cancelled harms no
other. A lost connection is made again, to any server of the cluster, for as long as the block is open.

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
- What was under way when the connection was lost raises `ConnectionLost`, and what is not confirmed within
  `confirm_timeout` `TimeoutError`: both are ambiguous.
"""

from __future__ import annotations

import hashlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio
from nats.aio.client import Client

from localdelay.brokers.address import Address, host_and_port
from localdelay.brokers.driver import Driver
from localdelay.brokers.nats_answers import classified
from localdelay.brokers.nats_client import asyncio_loop, close, connected
from localdelay.brokers.nats_connection import Connection, Publication
from localdelay.brokers.outbox import Outbox
from localdelay.brokers.wire import ID, OWN, headers_of, rfc3339
from localdelay.errors import PermanentSendError
from localdelay.message import Message

__all__ = ["classified", "connected", "driver_at", "schedule_subject", "stream_subjects"]

_SCHEDULES_SINCE = (2, 12)
_SCHEDULE, _TARGET = "Nats-Schedule", "Nats-Schedule-Target"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # a token of RFC 9110
# A line of the protocol may have 4,096 bytes, and more than a subject is in it.
_LONGEST_SUBJECT = 3000
_MAX_PAYLOAD = 1024 * 1024  # the server's own, until it has said which


def schedule_subject(subject: str, id: str) -> str:
    """Where the schedule of one message is kept: an id may hold what a subject may not."""
    return f"{subject}.delayed.{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def stream_subjects(subject: str) -> list[str]:
    """The subjects that a stream must hold for `send` and `publish_delayed`."""
    return [subject, f"{subject}.delayed.*"]


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as they go out. Raises `PermanentSendError` for what is no NATS header."""
    name = headers[ID]
    if name != name.strip() or "\n" in name or "\r" in name:
        raise PermanentSendError("an id with a line break, or blanks around it, can't be a NATS header")
    lines = "NATS/1.0\r\n"
    for name, value in headers.items():
        if name not in OWN:
            if not _NAME.fullmatch(name):
                raise PermanentSendError(f"a header can't be called {name!r} in NATS")
            if "\n" in value or "\r" in value:
                raise PermanentSendError(f"the header {name!r} has a line break, which NATS can't carry")
        lines += f"{name}: {value}\r\n"
    return f"{lines}\r\n".encode()


class _Driver(Driver):
    verdict = staticmethod(classified)

    def __init__(self, where: Address) -> None:
        self.where = f"NATS at {where.place}"
        if len(where.target.encode()) > _LONGEST_SUBJECT:
            raise ValueError(f"the subject must have {_LONGEST_SUBJECT:,} bytes at most")
        self._subject = where.target
        self._given = [f"nats://{host_and_port(host, port)}" for host, port in where.hosts]
        self._servers = list(self._given)
        """The one that it was connected to is the last to be tried again."""
        self._options: dict[str, Any] = {}
        if where.choice("tls", "required") is not None:
            self._options["tls"] = ssl.create_default_context()
        if "inbox_prefix" in where.options:
            self._options["inbox_prefix"] = where.options["inbox_prefix"]
        # Not in the URL: there nats-py would forget them on its way to another server, and show them.
        if where.username and where.password is None:
            self._options["token"] = where.username
        elif where.username:
            self._options |= {"user": where.username, "password": where.password}
        self._most = _MAX_PAYLOAD
        self._connected_before = False

    def encode(self, message: Message, delay: float | None) -> Publication:
        subject = held_by = self._subject
        if delay is None:
            headers = headers_of(message)
        else:
            due = time.time() + delay
            try:
                at = rfc3339(due)
            except OverflowError:
                raise ValueError(f"delay must end before the year 10000, not {delay:g} s from now") from None
            ours = (_SCHEDULE.lower(), _TARGET.lower())
            headers = {
                name: value for name, value in headers_of(message, at).items() if name.lower() not in ours
            }
            headers |= {_SCHEDULE: f"@at {at}", _TARGET: subject}
            held_by = stream_subjects(subject)[1]
            subject = schedule_subject(subject, message.id)
        lines = header_lines(headers)
        size = len(lines) + len(message.payload)
        if size > self._most:
            # The server would not just refuse it: it would end the connection.
            raise PermanentSendError(f"{size} bytes with headers; this server takes {self._most} at most")
        return Publication(subject, lines, message.payload, held_by)

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[Connection]:
        async with asyncio_loop():
            connection = await self._reach(outbox)
            try:
                self._know(connection.client)
                yield connection
            finally:
                await close(connection.client)

    async def _reach(self, outbox: Outbox) -> Connection:
        """Connect to the first server that lets one in. Raises what is wrong with the last one."""
        servers = list(self._servers)
        for left in range(len(servers), 0, -1):
            server = self._servers.pop(0)
            self._servers.append(server)
            connection = Connection(outbox, again=self._connected_before)
            now = trio.current_time()
            try:
                # One that does not answer must leave some time for the others.
                with trio.fail_after((trio.current_effective_deadline() - now) / left):
                    await connection.open(server, self._options)
            except BaseException as error:
                await close(connection.client)
                if left == 1 or not isinstance(error, Exception):
                    raise
            else:
                return connection
        raise ConnectionError("there is no server")

    def _know(self, client: Client) -> None:
        """What the server says of itself, and of its cluster."""
        self._connected_before = True
        self._most = client.max_payload
        try:
            version = client.connected_server_version
            major, minor = version.major, version.minor
        except ValueError:
            major = minor = 0
        self.native_delay = (major, minor) >= _SCHEDULES_SINCE
        self.no_delay = f"NATS {major}.{minor} has no message schedules: they came with 2.12"
        current = self._servers[-1]
        known = dict.fromkeys([*self._given, *(f"nats://{one.netloc}" for one in client.discovered_servers)])
        self._servers = [*(server for server in known if server != current), current]


driver_at = _Driver
