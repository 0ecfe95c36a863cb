"""Calls of a queue's loop, awaited on an asyncio loop: who is cancelled meanwhile leaves nothing behind."""

from __future__ import annotations

import asyncio
import math
from typing import Any, TypeVar

from localdelay.errors import QueueFull
from localdelay.message import Message

from .calls import Call, Cut
from .portal import Remote

_T = TypeVar("_T")


async def accepted(remote: Remote, call: Call[Message], patience: float) -> None:
    """Wait until this put has its room, for so many seconds at most; then raise `QueueFull`."""
    try:
        async with asyncio.timeout(patience if 0 < patience < math.inf else None):
            await outcome(remote, call)
    except TimeoutError:
        try:
            call.done.result()  # room came in that very instant
        except Cut:
            raise QueueFull(f"no room within {patience:g} s") from None
    except asyncio.CancelledError:
        if call.done.done() and call.done.exception() is None:  # room came in that very instant
            undo(remote, call.done.result())
        raise


def undo(remote: Remote, message: Message) -> None:
    """Cancel this in the queue, if that can be: whoever put it was cancelled, and does not know of it."""
    if remote.queue.is_cancellable:
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
    """Wait for what will end soon, whoever cancels meanwhile: that is raised when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as raised:
            cancelled = raised
    future.exception()  # looked at, or asyncio would complain that nobody has
    try:
        if cancelled is not None:
            raise cancelled
    finally:
        del cancelled  # or it, its traceback and this frame hold each other


async def ended(remote: Remote) -> None:
    """Wait for the end of the queue, whatever it comes to: somebody else has it raised."""
    if not remote.ended.done():
        future = asyncio.wrap_future(remote.ended)
        future.add_done_callback(asyncio.Future.exception)  # or asyncio would complain that nobody has looked
        await asyncio.wait([future])
