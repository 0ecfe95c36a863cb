"""A client of nats-py's on trio-asyncio, for the consumer."""

from __future__ import annotations

import asyncio
import logging
import platform
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import nats.errors
import trio
from nats.aio.client import Client

from localdelay.nurseries import bare_nursery

__all__ = ["connected", "trio_asyncio"]

try:
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn of the child watchers of asyncio: trio-asyncio has one.
        warnings.simplefilter("ignore", DeprecationWarning)
        import trio_asyncio
except AttributeError as error:  # from Python 3.14 on asyncio has none
    raise ModuleNotFoundError(
        f"the demo needs trio-asyncio, and the one that is installed can't be imported on Python "
        f"{platform.python_version()} ({error}): use Python 3.11 to 3.13, or a later trio-asyncio"
    ) from error

logger = logging.getLogger("localdelay.demo")

_CLOSE_TIMEOUT = 1.0


@asynccontextmanager
async def connected(client: Client, url: str, *, connect_timeout: float = 5.0) -> AsyncIterator[None]:
    """Connect a client for the length of an `async with` block, on an asyncio loop of its own.

    That is the current one inside the block, where `trio_asyncio.aio_as_trio` calls the client's methods.
    Raises `ConnectionError` where there is no server within `connect_timeout` seconds.
    """
    connecting = True

    async def note(error: Exception) -> None:
        logger.debug("%s: %s", type(error).__name__, error)
        if connecting:
            raise error  # left to itself, nats-py tries for minutes, with no reconnecting too

    async with bare_nursery(_on_a_loop()):
        try:
            try:
                with trio.fail_after(connect_timeout):
                    connect = trio_asyncio.aio_as_trio(client.connect)
                    await connect(url, allow_reconnect=False, error_cb=note, name="localdelay")
            except (OSError, nats.errors.Error, trio.TooSlowError) as error:
                said = str(error) or f"no answer within {connect_timeout:g} s"
                raise ConnectionError(f"no connection to the NATS server: {said}") from error
            connecting = False
            yield
        finally:
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True), suppress(Exception):
                await trio_asyncio.aio_as_trio(client.close)()


@asynccontextmanager
async def _on_a_loop() -> AsyncIterator[trio.Nursery]:
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        loop.set_exception_handler(_log_error)
        yield nursery


def _log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A task of nats-py's has failed. Left to trio-asyncio, that would end the caller's block.
    logger.debug("%s: %r", context.get("message"), context.get("exception"))
