"""One connection of coredis's to Redis: made, asked what it is fit for, and ended. The Redis plan has it too.

Not coredis's pool: a connection that ends while it is lent out leaves a place empty there that is never
filled again, and a pool without places waits for ever.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import attrs
import trio
from coredis.connection import TCPConnection, TCPLocation
from coredis.exceptions import AuthorizationError, ResponseError

from localdelay.brokers.address import Address, host_and_port
from localdelay.nurseries import bare_nursery

LARGEST = 512 * 1024 * 1024
"""Redis's own `proto-max-bulk-len`, in bytes, where nobody has set another."""

QUOTES = ", with args beginning with"


_ours: ContextVar[bool] = ContextVar("_ours", default=False)
logging.getLogger("coredis").addFilter(lambda _: not _ours.get())
"""To coredis an attempt to connect that fails is an error, with a traceback; here another follows it."""


@attrs.frozen
class Place:
    """Where a Redis is, and who asks."""

    host: str
    port: int
    username: str | None = attrs.field(default=None, repr=False)
    password: str | None = attrs.field(default=None, repr=False)
    db: int = 0
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    evicting: bool = False
    """Whether a Redis will do that may evict what it has confirmed."""

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


def places_of(where: Address) -> list[Place]:
    """Where a URL points to. Raises `ValueError` for an option that is none."""
    context = ssl.create_default_context() if where.scheme.startswith("rediss") else None
    evicting = where.choice("eviction", "allowed") is not None
    who = (where.username or None, where.password, where.count("db", 0, 10**9), context, evicting)
    return [Place(host, port, *who) for host, port in where.hosts]


class Line(TCPConnection):
    """A connection, from the attempt to its end.

    It remembers its first request, the HELLO: coredis may forget what Redis said before it hung up.
    """

    hello: Any = None

    def __init__(self, place: Place) -> None:
        super().__init__(
            TCPLocation(place.host, place.port),
            username=place.username,
            password=place.password,
            db=place.db,
            ssl_context=place.ssl_context,
        )
        self.largest = LARGEST
        """What it takes in a field, in bytes."""
        self.ended = trio.Event()
        self._until_ended = trio.CancelScope()

    def create_request(self, *args: Any, **options: Any) -> Any:
        """As coredis has it."""
        request = super().create_request(*args, **options)
        self.hello = self.hello or request
        return request

    async def live(self, task_status: trio.TaskStatus[None]) -> None:
        """Connect, and go on until the connection is lost or `end` is called. To be run as a task."""
        _ours.set(True)
        try:
            with self._until_ended:
                await self.run(task_status=task_status)
        finally:
            self.ended.set()

    def end(self) -> None:
        """End it, in whatever state it is."""
        self._until_ended.cancel()

    async def asked(self, *command: bytes) -> Any:
        """What Redis answers; None where this user may not ask."""
        with suppress(ResponseError):
            return await self.create_request(*command, decode=False)
        return None

    async def told(self) -> dict[str, str]:
        """What Redis says of itself, as far as this user may ask."""
        info: bytes = await self.asked(b"INFO") or b""
        lines = info.decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def check(self, place: Place) -> None:
        """Ask whether it takes commands and keeps what it takes, and how large that may be.

        Not everybody may ask these, and not everywhere. Raises what coredis raises, and `ConnectionError`.
        """
        with suppress(AuthorizationError):  # some may do nothing but add
            await self.create_request(b"PING")
        answer = await self.asked(b"CONFIG GET", b"proto-max-bulk-len")
        if isinstance(answer, dict) and answer:
            self.largest = int(next(iter(answer.values())))
        told = await self.told()
        if told.get("role") == "slave":
            raise ConnectionError("it is a replica, which takes no writes that last (READONLY)")
        policy = told.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not place.evicting:
            raise ConnectionError(
                f"its maxmemory-policy is {policy}, so that it may evict what it has confirmed: set it to "
                "noeviction, or allow that by ?eviction=allowed"
            )


@asynccontextmanager
async def reached(place: Place, *, fit: bool = True) -> AsyncIterator[Line]:
    """A connection that takes commands; unless it is to be `fit`, maybe no writes.

    Entering raises what was wrong in the end, in one line and without the password.
    """
    async with bare_nursery() as nursery:
        line = Line(place)
        try:
            with _bared():
                try:
                    await nursery.start(line.live)
                except Exception:
                    if line.hello is not None:
                        await line.hello  # raises what Redis has said
                    raise
                if fit:
                    await line.check(place)
            yield line
        finally:
            line.end()


@contextmanager
def _bared() -> Iterator[None]:
    """Raise what an error in this block was raised for in the end, in one line and without the password."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (raised again)
        cause: BaseException = error
        within = _within(error)
        while within is not None:
            cause, within = within, _within(within)
        # Redis quotes the command that it does not know, and HELLO has the password in it.
        text = " ".join(str(cause).partition(QUOTES)[0].split()) or type(cause).__name__
        if text.startswith("HELLO must be called with the client already authenticated"):
            text = "it asks for a password, as in redis://user:password@host"
        cause.args = (text,)
        raise cause from None


def _within(error: BaseException) -> BaseException | None:
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def no_connection(where: str, error: Exception) -> ConnectionError:
    """What `reached` has raised, with where that was."""
    return ConnectionError(f"no connection to {where}: {error}")
