"""A client of nats-py's on trio-asyncio: connected to one server, and given up for good when that is lost.

nats-py could connect again by itself, but not for ever: it ends for good when the server says why it hangs
up (after a reload of its users, say), and it waits without an end for one that has stopped reading.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

import nats.errors
import trio
from nats.aio.client import Client

from localdelay.brokers.nats_answers import in_a_line
from localdelay.nurseries import bare_nursery

__all__ = [
    "asyncio_loop",
    "close",
    "connected",
    "in_asyncio",
    "start",
    "transport_of",
    "trio_asyncio",
]

try:
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn of the child watchers of asyncio: trio-asyncio has one.
        warnings.simplefilter("ignore", DeprecationWarning)
        import trio_asyncio
except AttributeError as error:  # from Python 3.14 on asyncio has none
    raise ModuleNotFoundError(
        f"nats:// needs trio-asyncio, and the one that is installed can't be imported on Python "
        f"{platform.python_version()} ({error}): use Python 3.11 to 3.13, or a later trio-asyncio"
    ) from error

logger = logging.getLogger("localdelay.brokers.nats")

_CLOSE_TIMEOUT = 1.0
_NEVER = 10**9  # seconds
_PING_EVERY = 5  # seconds
_PINGS = 2
"""So many may be unanswered."""

T = TypeVar("T")


def asyncio_loop() -> AbstractAsyncContextManager[trio.Nursery]:
    """An asyncio loop for the length of an `async with` block. What the block raises comes out as it is."""
    return bare_nursery(_on_a_loop())


@asynccontextmanager
async def _on_a_loop() -> AsyncIterator[trio.Nursery]:
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        loop.set_exception_handler(_log_error)
        loop.set_default_executor(_Executor())
        yield nursery


class _Executor(trio_asyncio.TrioExecutor):  # type: ignore[misc]
    """Can be cancelled: a name is looked up in a thread, and a name server may take its time."""

    async def submit(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


def _log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A task of nats-py's has failed. Left to trio-asyncio, that would end the caller's block.
    logger.debug("%s: %r", context.get("message"), context.get("exception"))


async def in_asyncio(call: Callable[..., Awaitable[T]], *args: Any, **options: Any) -> T:
    """Call a function of nats-py's, and wait for it."""
    try:
        result: T = await trio_asyncio.aio_as_trio(call)(*args, **options)
    except asyncio.CancelledError as error:  # not by Trio
        raise ConnectionError("the connection is being closed") from error
    return result


async def start(
    client: Client, url: str, noted: Callable[[Exception], object] = lambda _: None, **options: Any
) -> None:
    """Connect; without a time limit of its own. `noted` gets what is wrong later; `options` are nats-py's.

    Raises `ConnectionError` in a few words.
    """
    connecting = True

    async def note(error: Exception) -> None:
        logger.debug("%s: %s", type(error).__name__, error)
        if connecting:
            raise error  # left to itself, nats-py tries for minutes, with no reconnecting too
        noted(error)

    own = {"allow_reconnect": False, "connect_timeout": _NEVER, "name": "localdelay", "pending_size": 0}
    own |= {"ping_interval": _PING_EVERY, "max_outstanding_pings": _PINGS}
    try:
        await in_asyncio(client.connect, url, error_cb=note, **(own | options))
    except UnicodeEncodeError:
        raise  # of the host's name
    except (OSError, ValueError, nats.errors.Error) as error:
        if isinstance(error, ConnectionError) and error.errno:
            raise ConnectionError(os.strerror(error.errno)) from None  # asyncio's name the address
        raise ConnectionError(in_a_line(error)) from error
    if not client.is_connected:  # it was hung up on, and has not noticed
        raise ConnectionError("it hangs up")
    connecting = False


async def close(client: Client) -> None:
    """Close it, within a second or so, in whatever state it is."""
    with trio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(Exception):
        await in_asyncio(client.close)  # which may not even have begun to connect
    if (transport := transport_of(client)) is not None:
        transport.abort()


@asynccontextmanager
async def connected(client: Client, url: str, *, connect_timeout: float = 5.0) -> AsyncIterator[None]:
    """Connect a client for the length of an `async with` block, on an asyncio loop of its own.

    That is the current one inside the block, where `trio_asyncio.aio_as_trio` calls the client's methods.
    Raises `ConnectionError` where there is no server within `connect_timeout` seconds.
    """
    async with asyncio_loop():
        try:
            try:
                with trio.fail_after(connect_timeout):
                    await start(client, url)
            except (ConnectionError, trio.TooSlowError) as error:
                said = str(error) or f"no answer within {connect_timeout:g} s"
                raise ConnectionError(f"no connection to the NATS server: {said}") from error
            yield
        finally:
            await close(client)


def transport_of(client: Client) -> asyncio.WriteTransport | None:
    """What is below a client, once there is something: all that is private of nats-py and used here.

    A publish by the client itself takes two more turns of trio-asyncio's loop, and its own reading another:
    half of the rate, where few are under way. Nor does the client say whether there is TLS, or how to close
    at once: its own close waits for a peer that reads no more.
    """
    writer: asyncio.StreamWriter | None = getattr(client._transport, "_io_writer", None)  # noqa: SLF001
    return None if writer is None else writer.transport
