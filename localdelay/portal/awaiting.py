"""Calls of a queue's loop, awaited on an asyncio loop: who is cancelled meanwhile leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Any, TypeVar

from localdelay.errors import QueueFull
from localdelay.message import Message, number_of
from localdelay.queue.admission import Stamped, already_pending

from .calls import Call, Cut
from .portal import Remote

_T = TypeVar("_T")


async def check_id(remote: Remote, id: str | None) -> None:
    """Raise `ValueError` for an id that this process has made, and whose message is pending."""
    if id is None or number_of(id) is None:
        return
    if await outcome(remote, remote.begin(lambda: remote.queue.is_pending(id))):
        raise already_pending(id)


async def put(remote: Remote, stamped: Stamped, patience: float) -> Message:
    """Have this accepted, waiting for room for so many seconds at most; then `QueueFull`."""
    call = remote.accept_or_wait(stamped, waits=patience > 0)
    if call is None:
        return stamped[0]
    try:
        async with asyncio.timeout(patience if 0 < patience < math.inf else None):
            return await outcome(remote, call)
    except TimeoutError:
        try:
            return call.done.result()  # room came in that very instant
        except Cut:
            raise QueueFull(f"no room within {patience:g} s") from None
    except asyncio.CancelledError:
        _undo(remote, call)
        raise


def _undo(remote: Remote, call: Call[Message]) -> None:
    """Room came in the instant of the cancellation: whoever put does not know of it."""
    if call.done.done() and call.done.exception() is None and remote.queue.is_cancellable:
        message = call.done.result()
        remote.begin(lambda: remote.queue.cancel(message.id))


async def outcome(remote: Remote, call: Call[_T]) -> _T:
    """What a call came to. Where the task is cancelled the call is, and has ended when this has."""
    if call.done.done():  # as in a forked child, which from Python 3.12 on has no running loop to wait on
        return call.done.result()
    future = asyncio.wrap_future(call.done)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        remote.cancel(call)
        await until(future)
        raise


async def until(future: asyncio.Future[Any]) -> None:
    """Wait for what will end soon, whoever cancels meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    future.exception()  # looked at, or asyncio would complain that nobody has
