"""NATS JetStream, by nats-py on trio-asyncio. Needs the extra `demo`.

A message is confirmed by the PubAck of the stream that stores its subject. Its delay is the server's own
(message schedules, NATS 2.12 and later): the stream must have `allow_msg_schedules` and hold both the
subject itself and `SUBJECT.delayed.*`. A subject keeps one schedule, so each message is scheduled on a
subject of its own, named by a digest of its id; publishing an id again replaces what was scheduled for it.

What travels with a message: its own headers, and `Localdelay-Id`, `Localdelay-Attempt` and
`Localdelay-Execute-At` (wall clock, RFC 3339), which a schedule passes on when it fires. `Nats-Msg-Id` is
left alone: the server remembers it for a scheduled message too, and would then swallow an immediate one of
the same id while saying that it took it. Consumers deduplicate by `Localdelay-Id`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import attrs
import nats.errors
import nats.js.errors
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay.errors import PermanentSendError, Throttled
from localdelay.message import Message, headers_size

ID = "Localdelay-Id"
ATTEMPT = "Localdelay-Attempt"
EXECUTE_AT = "Localdelay-Execute-At"

logger = logging.getLogger("localdelay.brokers.nats")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TOO_MANY_REQUESTS = 429
# JetStream's err_code: insufficient resources, memory, storage; the last, too many requests.
_OUT_OF_ROOM = frozenset({10023, 10028, 10047, 10167})
_STORE_FAILED = 10077
_CLOSE_TIMEOUT = 2.0


def schedule_subject(subject: str, id: str) -> str:
    """Where the schedule of one message is kept: an id may hold what a subject may not."""
    return f"{subject}.delayed.{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def stream_subjects(subject: str) -> list[str]:
    """The subjects that a stream must hold for `send` and `publish_delayed`."""
    return [subject, f"{subject}.delayed.*"]


def rfc3339(timestamp: float) -> str:
    """A Unix time in seconds as RFC 3339 with microseconds, rounded up: nothing is due early."""
    return (_EPOCH + timedelta(microseconds=math.ceil(timestamp * 1e6))).isoformat(timespec="microseconds")


def headers_bytes(headers: Mapping[str, str]) -> int:
    """What headers take in the protocol: a version line, `name: value` lines, and an empty line."""
    return 12 + 4 * len(headers) + headers_size(headers)


def classified(error: Exception) -> Exception:
    """What to raise for an error of the client's: `Throttled`, `PermanentSendError`, or the error itself."""
    if isinstance(error, nats.js.errors.APIError):
        description = error.description or "refused"
        full = error.err_code == _STORE_FAILED and "exceeded" in description
        if error.code == _TOO_MANY_REQUESTS or error.err_code in _OUT_OF_ROOM or full:
            return Throttled(f"{error.code} {description} (err_code {error.err_code})")
        if isinstance(error, nats.js.errors.BadRequestError):
            return PermanentSendError(f"{error.code} {description} (err_code {error.err_code})")
    if isinstance(error, nats.errors.BadSubjectError | nats.errors.BadHeaderError):
        return PermanentSendError(str(error))
    return error


def answer_error(answer: Msg) -> Exception | None:
    """The error that an answer to a publish carries, or None where it confirms."""
    if answer.headers and answer.headers.get("Status") == "503":
        return nats.js.errors.NoStreamResponseError()
    error = json.loads(answer.data).get("error")
    if error is None:
        return None
    # What a newer server may add to these would be a TypeError in nats-py.
    known = {name: error.get(name) for name in ("code", "err_code", "description")}
    try:
        nats.js.errors.APIError.from_error(known)  # raises it, though its name says otherwise
    except nats.js.errors.APIError as raised:
        return raised
    return nats.js.errors.APIError(**known)


@attrs.define(eq=False)
class _Confirmation:
    """What a publish that is under way waits for."""

    answered: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None


class _Publisher:
    """Many publishes under way at once, on one connection."""

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._timeout = timeout
        self._inbox = client.new_inbox()
        self._numbers = itertools.count(1)
        self._unconfirmed: dict[str, _Confirmation] = {}
        self._outbox: deque[tuple[str, bytes, str, dict[str, str]]] = deque()
        self._filled = asyncio.Event()

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish, and wait for the confirmation."""
        size = len(payload) + headers_bytes(headers)
        if size > self._client.max_payload:
            # The server would not just refuse it: it would end the connection.
            raise PermanentSendError(
                f"{size} bytes with headers; this server takes {self._client.max_payload} at most"
            )
        number = str(next(self._numbers))
        confirmation = self._unconfirmed[number] = _Confirmation()
        self._outbox.append((subject, payload, f"{self._inbox}.{number}", headers))
        self._filled.set()
        try:
            with trio.move_on_after(self._timeout):
                await confirmation.answered.wait()
        finally:
            del self._unconfirmed[number]
        if not confirmation.answered.is_set():
            raise TimeoutError(f"the NATS server did not confirm within {self._timeout} s")
        if confirmation.error is not None:
            error = classified(confirmation.error)
            raise error from (None if error is confirmation.error else confirmation.error)

    async def listen(self) -> None:
        """Take the server's answers from now on. To be called in asyncio, as `pump` is."""
        await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def pump(self) -> None:
        """Write what is to be published: to call into asyncio for each costs more than the publish does."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._outbox:
                subject, payload, reply, headers = self._outbox.popleft()
                try:
                    await self._client.publish(subject, payload, reply, headers)
                except Exception as error:  # noqa: BLE001 (raised by the publish that waits for it)
                    self._settle(reply, error)

    async def disconnected(self) -> None:
        """Fail what is under way: whether the server has stored it, nobody can tell any more."""
        for number in list(self._unconfirmed):
            self._settle(number, ConnectionError("the connection to the NATS server was lost"))

    async def _answered(self, answer: Msg) -> None:
        try:
            error = answer_error(answer)
        except (ValueError, AttributeError) as raised:
            error = ConnectionError(f"the NATS server's answer is none: {raised}")
        self._settle(answer.subject, error)

    def _settle(self, reply: str, error: Exception | None) -> None:
        confirmation = self._unconfirmed.get(reply.rpartition(".")[2])
        if confirmation is not None and not confirmation.answered.is_set():
            confirmation.error = error
            confirmation.answered.set()


class NatsBroker:
    """A connection that publishes to one subject; `open_nats` makes it."""

    native_delay = True

    def __init__(self, publisher: _Publisher, subject: str) -> None:
        self._publisher = publisher
        self._subject = subject

    async def send(self, message: Message) -> None:
        """Publish a message now; returns once the stream has stored it.

        Raises `Throttled` when the server refuses it because of a limit; `PermanentSendError` for what can
        never work, such as a payload over the server's limit; `TimeoutError` or `ConnectionError` where
        nobody can tell whether it was stored; and what nats-py raises for the rest.
        """
        due = time.time() + message.execute_at - trio.current_time()
        await self._publisher.publish(self._subject, message.payload, _headers(message, due))

    async def publish_delayed(self, message: Message, delay: float) -> None:
        """Have the server publish a message `delay` seconds from now; returns once it has stored that.

        Raises as `send` does; `PermanentSendError` too where the stream allows no schedules.
        """
        due = time.time() + delay
        headers = _headers(message, due)
        headers["Nats-Schedule"] = f"@at {rfc3339(due)}"
        headers["Nats-Schedule-Target"] = self._subject
        await self._publisher.publish(schedule_subject(self._subject, message.id), message.payload, headers)


def _headers(message: Message, due: float) -> dict[str, str]:
    if message.id != message.id.strip() or "\n" in message.id or "\r" in message.id:
        raise PermanentSendError("an id with a line break, or blanks around it, can't be a NATS header")
    own = {ID: message.id, ATTEMPT: str(message.attempt), EXECUTE_AT: rfc3339(due)}
    return {**message.headers, **own}


@asynccontextmanager
async def open_nats(
    url: str, *, subject: str, confirm_timeout: float = 10.0, reconnect: bool = True
) -> AsyncIterator[NatsBroker]:
    """Connect to the server at `url`, and publish to `subject` for the length of an `async with` block.

    A publish that is not confirmed within `confirm_timeout` seconds has failed. With `reconnect`, a
    connection that was lost is made again; what was under way raises `ConnectionError` all the same.
    Raises `ConnectionError` where there is no server to connect to.
    """
    client = Client()
    publisher = _Publisher(client, confirm_timeout)
    async with connected(client, url, reconnect=reconnect, on_disconnect=publisher.disconnected) as loop:
        await trio_asyncio.aio_as_trio(publisher.listen)()
        pump = loop.create_task(publisher.pump())
        try:
            yield NatsBroker(publisher, subject)
        finally:
            pump.cancel()


@asynccontextmanager
async def connected(
    client: Client,
    url: str,
    *,
    reconnect: bool = True,
    connect_timeout: float = 5.0,
    on_disconnect: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[asyncio.AbstractEventLoop]:
    """Connect a nats-py client for the length of an `async with` block, on an asyncio loop of its own.

    The loop is the current one inside the block, where `trio_asyncio.aio_as_trio` calls the client's
    methods. Raises `ConnectionError` where there is no server within `connect_timeout` seconds.
    """
    raised: BaseException | None = None
    try:
        async with trio_asyncio.open_loop() as loop:
            try:
                await _connect(client, url, reconnect, connect_timeout, on_disconnect)
                try:
                    yield loop
                finally:
                    with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                        await trio_asyncio.aio_as_trio(client.close)()
            except BaseException as error:
                raised = error
                raise
    except BaseExceptionGroup:
        # The loop's nurseries put groups around what comes out of the caller's block.
        if raised is None:
            raise
        raise raised from raised.__cause__


async def _connect(
    client: Client,
    url: str,
    reconnect: bool,
    connect_timeout: float,
    on_disconnect: Callable[[], Awaitable[None]] | None,
) -> None:
    connecting = True

    async def note(error: Exception) -> None:
        # Left to itself, nats-py tries for minutes to make its first connection, with no reconnecting too.
        if connecting:
            raise error
        # What it gets over by itself. Who publishes gets an exception of the publish.
        logger.debug("%s: %s", type(error).__name__, error)

    try:
        with trio.move_on_after(connect_timeout):
            await trio_asyncio.aio_as_trio(client.connect)(
                url, error_cb=note, disconnected_cb=on_disconnect, allow_reconnect=reconnect
            )
    except (OSError, nats.errors.Error) as error:
        raise ConnectionError(f"no connection to the NATS server: {error}") from error
    if not client.is_connected:
        raise ConnectionError(f"no connection to the NATS server within {connect_timeout} s")
    connecting = False
