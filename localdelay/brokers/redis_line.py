"""One connection of coredis's to Redis: made, asked what it takes, and ended.

Not coredis's pool: a connection that ends while it is lent out leaves a place empty there that is never
filled again, and a pool without places waits for ever.
"""

from __future__ import annotations

import logging
import ssl
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import attrs
import trio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import AuthorizationError, RedisError, ResponseError

from localdelay.backoff import Backoff
from localdelay.brokers.redis_pipelines import Pipelines

logger = logging.getLogger("localdelay.brokers.redis")

LARGEST = 512 * 1024 * 1024
"""Redis's own `proto-max-bulk-len`, in bytes, where nobody has set another."""

QUOTES = ", with args beginning with"
_SETTLED = 1.0
"""Seconds: a connection that held so long was a good one, and the next attempt is made at once."""

_ours: ContextVar[bool] = ContextVar("_ours", default=False)


def _quiet(record: logging.LogRecord) -> bool:
    # To coredis an attempt to connect that fails is an error, with a traceback; here another follows it.
    if not _ours.get():
        return True
    logger.debug("%s", record.getMessage())
    return False


logging.getLogger("coredis").addFilter(_quiet)


@attrs.frozen
class Place:
    """Where a Redis is, and who asks."""

    host: str
    port: int
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    db: int = 0
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Connection(TCPConnection):
    """Remembers its first request, the HELLO: coredis may forget what Redis said before it hung up."""

    hello: Any = None

    def create_request(self, *args: Any, **options: Any) -> Any:
        request = super().create_request(*args, **options)
        self.hello = self.hello or request
        return request


class Line:
    """A connection, from the attempt to its end."""

    def __init__(self, place: Place) -> None:
        self.connection = _Connection(
            TCPLocation(place.host, place.port),
            username=place.username,
            password=place.password,
            db=place.db,
            ssl_context=place.ssl_context,
        )
        self.largest = LARGEST
        """What it takes in a field, in bytes."""
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.error: Exception | None = None
        self._scope = trio.CancelScope()

    def started(self, _: object = None) -> None:
        """The handshake is done: for coredis to call."""
        self.ready.set()

    async def live(self) -> None:
        """Connect, and go on until the connection is lost or `end` is called. To be run as a task."""
        _ours.set(True)
        try:
            with self._scope:
                await self.connection.run(task_status=self)
        except RedisError as error:
            self.error = error
        finally:
            self.ended.set()
            self.ready.set()
            _close_streams(self.connection)

    def end(self) -> None:
        """End it, in whatever state it is."""
        self._scope.cancel()


def _close_streams(connection: TCPConnection) -> None:
    """Close what coredis leaves open when a connection does not come about: it would warn."""
    for value in vars(connection).values():
        if isinstance(value, MemoryObjectSendStream | MemoryObjectReceiveStream):
            value.close()


async def connect(nursery: trio.Nursery, place: Place, within: float) -> Line:
    """A connection that lives in the nursery, and takes commands.

    Raises `ConnectionError` in one line, caused by what was wrong: a `TimeoutError` if somebody is there who
    does not answer within so many seconds.
    """
    line = Line(place)
    nursery.start_soon(line.live)
    try:
        with trio.move_on_after(within) as scope:
            await line.ready.wait()
            if line.ended.is_set():
                if line.connection.hello is not None:
                    await line.connection.hello
                raise line.error or ConnectionError("the connection was lost at once")
            await _ask(line)
        if scope.cancelled_caught:
            text = f"it does not answer within {within:g} s"
            raise TimeoutError(text) if line.connection.stream is not None else ConnectionError(text)
    except Exception as error:  # noqa: BLE001 (whatever somebody says who may be no Redis at all)
        line.end()
        cause = _innermost(error)
        # Redis quotes the command that it does not know, and HELLO has the password in it.
        reason = " ".join(str(cause).partition(QUOTES)[0].split()) or type(cause).__name__
        cause.args = (reason,)
        raise ConnectionError(f"no connection to Redis at {place}: {reason}") from cause
    except BaseException:
        line.end()
        raise
    return line


@trio.lowlevel.enable_ki_protection
async def keep_connected(
    nursery: trio.Nursery, place: Place, within: float, pipelines: Pipelines, line: Line
) -> None:
    """Make a new connection whenever this one, or the next, is lost: for ever."""
    while True:
        begun = trio.current_time()
        await line.ended.wait()
        pipelines.disconnected()
        # One that ends at once is made again after a short wait, so that there is no busy loop.
        at_once = trio.current_time() - begun >= _SETTLED
        backoff = Backoff()
        while line.ended.is_set():
            if not at_once:
                await trio.sleep(backoff.next())
            at_once = False
            try:
                line = await connect(nursery, place, within)
            except ConnectionError as error:
                logger.debug("%s", error)
                pipelines.unreachable(error)
        pipelines.connected(line.connection, line.largest)


async def _ask(line: Line) -> None:
    """Whether it has read its disk and takes commands, and what it takes at most."""
    with suppress(AuthorizationError):  # some may do nothing but add
        await line.connection.create_request(b"PING")
    with suppress(ResponseError):  # an administrator's command: not for everybody, and not everywhere
        answer = await line.connection.create_request(b"CONFIG GET", b"proto-max-bulk-len", decode=False)
        if isinstance(answer, dict) and answer:
            line.largest = int(next(iter(answer.values())))


def _innermost(error: BaseException) -> BaseException:
    """What an exception was raised for in the end."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error
