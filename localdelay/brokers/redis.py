"""Redis streams, by coredis, which runs on Trio. Needs the extra `redis`; Redis 6.0 or later.

The URL is `redis://[user:password@]host[:port]/STREAM[?db=N]`, and `rediss://` for TLS, which trusts whom the
system trusts (or the file that the environment variable SSL_CERT_FILE names).

What travels: an entry has the fields `payload` (the bytes), `Localdelay-Id`, `Localdelay-Attempt`,
`Localdelay-Execute-At` (wall clock, RFC 3339), and the message's own headers by their names. A header that is
called `payload`, or begins with `header:`, gets `header:` before its name, so that the payload stays alone.

A message is confirmed by the reply to its XADD. Redis then has it in memory; whether it is on disk too says
the server's `appendfsync`: only `always` writes before it replies, `everysec` may lose the last second, and a
replica that takes over may not have it. Entries stay in the order in which they were sent, except that what
is tried again comes later. An entry is there until somebody trims the stream; with `max_length`, Redis does.

All sends share one connection and go in pipelines, each with a reply of its own: one that is refused or
cancelled harms no other. A lost connection is made again for as long as the block is open; sends wait for it.

- Throttled: out of memory (`OOM`); max number of clients reached; 8 MiB are under way and Redis takes no
  more within `confirm_timeout`; and Redis says nothing for so long, as it does under CLIENT PAUSE. This last
  one is ambiguous: Redis may add the message all the same, and the next send then adds it again, with the
  same id.
- Permanent: a payload, header or id over the server's `proto-max-bulk-len` (512 MiB where CONFIG GET does
  not tell it), an entry that is too large for a stream, a key that holds no stream, access refused, no such
  command.
- What was under way when the connection was lost raises `ConnectionError`, ambiguous too. What has found no
  connection within `confirm_timeout` raises it as well; that was not sent.
- As coredis raises it, and to be tried again: the rest, such as `LOADING`, `BUSY`, `MISCONF`, `READONLY`,
  `NOREPLICAS`, `CLUSTERDOWN`, `MOVED`.

Redis has no delayed publish.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    InvalidResponse,
    RedisError,
    ResponseError,
    UnknownCommandError,
    WrongTypeError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from localdelay import arguments
from localdelay.brokers.address import Address
from localdelay.brokers.redis_line import QUOTES, Place, connect, keep_connected
from localdelay.brokers.redis_pipelines import Command, Pipelines
from localdelay.brokers.wire import ATTEMPT, EXECUTE_AT, ID, rfc3339, wall_clock
from localdelay.errors import DelayNotSupported, PermanentSendError, Throttled
from localdelay.message import Message
from localdelay.nurseries import bare_nursery
from localdelay.settling import Confirmation

PAYLOAD = "payload"
ESCAPE = "header:"

_PERMANENT = {
    WrongTypeError: "WRONGTYPE",
    AuthorizationError: "NOPERM",
    AuthenticationError: "access refused",
    UnknownCommandError: "ERR",
}
_TOO_LARGE = ("invalid bulk length", "elements are too large", "string exceeds maximum allowed size")
_TOO_MANY_CLIENTS = "max number of clients reached"
_SHORTEST = 0.001
_FIRST = (0,)
_ID, _ATTEMPT, _EXECUTE_AT = ID.encode(), ATTEMPT.encode(), EXECUTE_AT.encode()
_OWN = frozenset({ID, ATTEMPT, EXECUTE_AT})


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's.

    `Throttled`, `PermanentSendError`, a `ConnectionError` for what says that the connection has ended, or the
    error itself. A `TimeoutError` is `Throttled`, though Redis may have done what it was asked.
    """
    text = str(error)
    if isinstance(error, TimeoutError) or text.startswith("OOM ") or text.endswith(_TOO_MANY_CLIENTS):
        return Throttled(text)
    if isinstance(error, ResponseError):
        for kind, word in _PERMANENT.items():
            if isinstance(error, kind):
                # What follows is the beginning of the payload.
                error.args = (text.partition(QUOTES)[0],)
                return PermanentSendError(f"{word}: {error}")
        if any(sign in text.lower() for sign in _TOO_LARGE):
            return PermanentSendError(text)
        return error
    if isinstance(error, ConnectionError | BusyLoadingError):
        return error
    if isinstance(error, RedisConnectionError | InvalidResponse) or not isinstance(error, RedisError):
        return ConnectionError(f"the connection to Redis was lost: {text or type(error).__name__}")
    return error


class RedisBroker:
    """A connection that adds to one stream; `open_redis` makes it."""

    native_delay = False

    def __init__(self, pipelines: Pipelines, stream: bytes, max_length: int | None) -> None:
        self._pipelines = pipelines
        trim = () if max_length is None else (b"MAXLEN", b"~", b"%d" % max_length)
        self._head = (stream, *trim, b"*", PAYLOAD.encode())

    async def send(self, message: Message) -> None:
        """Add a message to the stream now; returns once Redis has replied.

        Raises `Throttled` when Redis is out of memory or has too many clients, and, without knowing whether
        it has the message, when it says nothing for `confirm_timeout` seconds; `PermanentSendError` for what
        can never work; `ConnectionError` where the connection was lost, or there was none; and what coredis
        raises for the rest.
        """
        confirmation = Confirmation()
        job = self._pipelines.add((self._command(message),), _FIRST, confirmation)
        try:
            await confirmation.of_one()
        except BaseException:
            job.give_up()
            raise

    async def send_batch(self, messages: Sequence[Message]) -> None:
        """Add messages to the stream now, in their order; returns once Redis has replied to all of them.

        It is no transaction: each is added or not. Raises as `send` does, and `PartialSendError` where some
        failed.
        """
        messages = tuple(messages)
        self._pipelines.check_open()
        confirmation = Confirmation(len(messages))
        commands: list[Command] = []
        positions: list[int] = []
        for position, message in enumerate(messages):
            try:
                commands.append(self._command(message))
            except PermanentSendError as error:
                confirmation.settle(position, error)
            else:
                positions.append(position)
        job = self._pipelines.add(commands, positions, confirmation)
        try:
            await confirmation.of_all(messages)
        except BaseException:
            job.give_up()
            raise

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Raises `DelayNotSupported`."""
        arguments.at_least("delay", delay, 0, "a number of seconds")
        raise DelayNotSupported("Redis has no delayed publish")

    def _command(self, message: Message) -> Command:
        payload = message.payload
        if not isinstance(payload, bytes):
            raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
        fields, largest, size = fields_of(message)
        largest = max(largest, len(payload))
        if largest > self._pipelines.largest:
            # Redis would not just refuse it: it would end the connection.
            most = self._pipelines.largest
            raise PermanentSendError(f"{largest} bytes in a field; this server takes {most} at most")
        return Command((*self._head, payload, *fields), len(payload) + size)


def fields_of(message: Message) -> tuple[list[bytes], int, int]:
    """What an entry has besides the payload: names and values; the longest of them, and all, in bytes.

    Raises `PermanentSendError` for text that can't be encoded.
    """
    due = rfc3339(wall_clock(message.execute_at))
    try:
        name = message.id.encode()
        fields = [_ID, name, _ATTEMPT, b"%d" % message.attempt, _EXECUTE_AT, due.encode()]
        if not message.headers:
            return fields, len(name), len(name)
        for header, value in message.headers.items():
            if header not in _OWN:
                fields += (escaped(header).encode(), value.encode())
    except UnicodeEncodeError:
        raise PermanentSendError("an id or header that is no valid Unicode can't be sent") from None
    lengths = [len(field) for field in fields]
    return fields, max(lengths), sum(lengths)


def escaped(name: str) -> str:
    """The field that a header of this name becomes."""
    return ESCAPE + name if name == PAYLOAD or name.startswith(ESCAPE) else name


def open_address(where: Address) -> AbstractAsyncContextManager[RedisBroker]:
    """Connect to where a URL points to. Raises `ValueError` for a `db` that is no number."""
    db = where.options.get("db", "0")
    if not re.fullmatch("[0-9]{1,9}", db):
        raise ValueError("db must be a whole number, as in redis://host:6379/STREAM?db=1")
    return open_redis(
        where.host,
        where.port,
        stream=where.target,
        username=where.username or None,
        password=where.password,
        db=int(db),
        ssl_context=ssl.create_default_context() if where.scheme == "rediss" else None,
    )


@asynccontextmanager
async def open_redis(
    host: str,
    port: int = 6379,
    *,
    stream: str,
    username: str | None = None,
    password: str | None = None,
    db: int = 0,
    ssl_context: ssl.SSLContext | None = None,
    max_length: int | None = None,
    confirm_timeout: float = 10.0,
    connect_timeout: float = 5.0,
) -> AsyncIterator[RedisBroker]:
    """Connect to a Redis, and add to `stream` for the length of an `async with` block.

    A send waits for a connection, and for its reply as long as Redis says nothing, for `confirm_timeout`
    seconds each. With an `ssl_context` the connection is TLS. With `max_length`, Redis keeps about so many
    entries and drops the oldest, read or not.
    Raises `ConnectionError` where no Redis answers within `connect_timeout` seconds, or it lets nobody in.
    """
    if max_length is not None:
        arguments.count("max_length", max_length)
    arguments.at_least("confirm_timeout", confirm_timeout, _SHORTEST, "a number of seconds")
    arguments.at_least("connect_timeout", connect_timeout, _SHORTEST, "a number of seconds")
    place = Place(host, port, username, password, db, ssl_context)
    pipelines = Pipelines(confirm_timeout, classified)
    async with bare_nursery() as nursery:
        try:
            line = await connect(nursery, place, connect_timeout)
            pipelines.connected(line.connection, line.largest)
            nursery.start_soon(keep_connected, nursery, place, connect_timeout, pipelines, line)
            nursery.start_soon(pipelines.hand_over)
            nursery.start_soon(pipelines.settle)
            yield RedisBroker(pipelines, stream.encode(), max_length)
        finally:
            pipelines.close()
            nursery.cancel_scope.cancel()
