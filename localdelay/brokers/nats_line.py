"""One connection to NATS: a client of nats-py's, made once and given up for good when it is lost.

nats-py could connect again by itself, but not for ever: it ends for good when the server says why it hangs
up (after a reload of its users, say), and it waits without an end for one that has stopped reading.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import attrs
import nats.errors
import trio
from nats.aio.client import Client
from nats.aio.msg import Msg

from localdelay.brokers.nats_answers import in_a_line, refused_by
from localdelay.brokers.nats_frames import Answer
from localdelay.brokers.nats_loop import trio_asyncio
from localdelay.brokers.nats_wire import Wire
from localdelay.nurseries import bare_nursery

logger = logging.getLogger("localdelay.brokers.nats")

_CLOSE_TIMEOUT = 1.0
_NEVER = 10**9  # seconds
_PING_EVERY = 5.0
_PONG_WITHIN = 10
_SAYS_WHY_WITHIN = 0.2
_HUNG_UP = "it hangs up"

Noted = Callable[[Exception], None]
T = TypeVar("T")


def asyncio_loop() -> AbstractAsyncContextManager[trio.Nursery]:
    """An asyncio loop for the length of an `async with` block, and a nursery that ends with the block.

    What the block raises comes out as it is.
    """
    return bare_nursery(_on_a_loop())


@asynccontextmanager
async def _on_a_loop() -> AsyncIterator[trio.Nursery]:
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        loop.set_exception_handler(_log_error)
        try:
            yield nursery
        finally:
            nursery.cancel_scope.cancel()


async def in_asyncio(call: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """Call a function of nats-py's, and wait for it."""
    try:
        result: T = await trio_asyncio.aio_as_trio(call)(*args, **options)
    except asyncio.CancelledError as error:  # not by Trio
        raise ConnectionError("the connection is being closed") from error
    return result


def _log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A task of nats-py's has failed. Left to trio-asyncio, that would end the caller's block.
    logger.debug("%s: %r", context.get("message"), context.get("exception"))


@asynccontextmanager
async def connected(
    client: Client, url: str, *, reconnect: bool = True, connect_timeout: float = 5.0
) -> AsyncIterator[None]:
    """Connect a nats-py client for the length of an `async with` block, on an asyncio loop of its own.

    That is the current one inside the block, where `trio_asyncio.aio_as_trio` calls the client's methods.
    Raises `ConnectionError` where there is no server within `connect_timeout` seconds.
    """
    async with asyncio_loop():
        wire = Wire()
        try:
            options = {"connect_timeout": connect_timeout, "allow_reconnect": reconnect}

            async def start() -> None:
                await _start(client, url, lambda error: None, options)

            try:
                await _in_time(start, wire, connect_timeout)
            except ConnectionError as error:
                raise ConnectionError(f"no connection to the NATS server: {error}") from error.__cause__
            yield
        finally:
            await _close(client, wire)


@attrs.define(eq=False)
class Line:
    """A connection that gets the answers to what is published on it."""

    client: Client
    wire: Wire
    inbox: str
    version: tuple[int, int]
    """Of the server, major and minor."""
    went_silent: Exception | None = None
    """Why it was dropped, where the server has stopped answering."""

    async def keep_alive(self) -> None:
        """Drop the connection when the server has stopped answering."""
        while True:
            await trio.sleep(_PING_EVERY)
            heard = self.wire.heard
            try:
                await in_asyncio(self.client.flush, _PONG_WITHIN)
            except (OSError, nats.errors.Error) as error:
                logger.debug("no answer to a ping: %s", in_a_line(error))
                if not isinstance(error, TimeoutError):
                    break
            # Whatever it says: it may be too busy for a pong, and nats-py's listening may have failed.
            if self.wire.heard == heard:
                self.went_silent = nats.errors.StaleConnectionError()
                break
        self.wire.abort()

    async def close(self) -> None:
        """Close it, within a second or so, in whatever state it is."""
        await _close(self.client, self.wire)


async def connect(
    server: str,
    options: dict[str, Any],
    connect_timeout: float,
    inbox: str | None,
    answered: Callable[[Answer], None],
    noted: Noted,
) -> Line:
    """Connect to a server whose URL has no user in it, within so many seconds.

    `options` are for nats-py's `connect`. Answers come to `inbox`, or a new one; the callbacks get them, and
    errors of the connection's. Raises a `ConnectionError` of one line.
    """
    client, wire = Client(), Wire()
    refused: list[Exception] = []

    def note(error: Exception) -> None:
        refused.append(error)
        noted(error)

    own = {
        "allow_reconnect": False,
        "ping_interval": _NEVER,
        "connect_timeout": connect_timeout,
        "name": "localdelay",
    }

    async def start() -> Line:
        await _start(client, server, note, {**own, **options})
        if not wire.is_encrypted and ("tls" in options or server.startswith("tls:")):
            raise ConnectionError("it knows no TLS")
        replies = inbox or client.new_inbox()
        wire.listen(replies.encode(), answered)
        await in_asyncio(client.subscribe, f"{replies}.*", cb=_ignore)
        await in_asyncio(client.flush, _NEVER)  # there is a time limit around it
        if refused and refused_by(refused[0]):
            raise refused[0]  # without answers nothing is ever confirmed
        return Line(client, wire, replies, _version(client))

    try:
        return await _in_time(start, wire, connect_timeout)
    except BaseException as error:
        await _close(client, wire)
        if not isinstance(error, ConnectionError | nats.errors.Error):
            raise
        at = server.rpartition("/")[2]
        text = f"no connection to the NATS server at {at}: {in_a_line(error)}"
        raise ConnectionError(text) from error.__cause__ or error


async def _ignore(_: Msg) -> None:
    """There are none: answers go past nats-py."""


async def _start(client: Client, url: str, noted: Noted, options: dict[str, Any]) -> None:
    connecting = True

    async def note(error: Exception) -> None:
        logger.debug("%s: %s", type(error).__name__, error)
        if connecting:
            raise error  # left to itself, nats-py tries for minutes, with no reconnecting too
        noted(error)

    try:
        await in_asyncio(client.connect, url, error_cb=note, **options)
    except (OSError, ValueError, nats.errors.Error) as error:
        raise ConnectionError(in_a_line(error)) from error
    if not client.is_connected:  # it was hung up on, and has not noticed
        raise ConnectionError(_HUNG_UP)
    connecting = False


async def _in_time(start: Callable[[], Awaitable[T]], wire: Wire, limit: float) -> T:
    """What `start` returns or raises; a `ConnectionError` where it takes too long or the wire is lost."""
    started: list[T] = []
    failed: list[Exception] = []

    async def watch() -> None:
        await wire.lost.wait()
        await trio.sleep(_SAYS_WHY_WITHIN)
        nursery.cancel_scope.cancel()

    with trio.move_on_after(limit):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                started.append(await start())
            except Exception as error:  # noqa: BLE001 (raised below, outside of the nursery)
                failed.append(error)
            nursery.cancel_scope.cancel()
    if failed:
        raise failed[0]
    if not started:
        raise ConnectionError(_HUNG_UP if wire.lost.is_set() else f"no answer within {limit:g} s")
    return started[0]


async def _close(client: Client, wire: Wire) -> None:
    with trio.CancelScope(shield=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_abort_after, _CLOSE_TIMEOUT, wire)
            with trio.move_on_after(2 * _CLOSE_TIMEOUT):
                try:
                    await in_asyncio(client.close)
                except Exception as error:  # noqa: BLE001 (it may not even have begun to connect)
                    logger.debug("on closing: %s", in_a_line(error))
            nursery.cancel_scope.cancel()
    wire.abort()
    # It leaves tasks behind when it fails to write its last words. This loop has no other client's.
    for task in asyncio.all_tasks(trio_asyncio.current_loop.get()):
        task.cancel()


async def _abort_after(seconds: float, wire: Wire) -> None:
    """Make an end of a close that waits for a server that reads no more."""
    await trio.sleep(seconds)
    wire.abort()


def _version(client: Client) -> tuple[int, int]:
    try:
        version = client.connected_server_version
        return version.major, version.minor
    except ValueError:
        return 0, 0
