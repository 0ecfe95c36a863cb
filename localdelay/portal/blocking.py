"""A send made of an ordinary blocking function."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from localdelay import arguments
from localdelay.errors import LocalDelayError
from localdelay.message import Message
from localdelay.queue.sending import Send


def blocking(fn: Callable[[Message], object], *, threads: int = 100) -> Send:
    """Make an async send of a blocking function, which then runs in worker threads.

    At most `threads` calls run at once, under a limiter of its own; give it at least as many as the
    queue has workers. A call cannot be interrupted: one that outlives `send_timeout` or a drain is
    abandoned, and its message stays pending and is sent again (so it may arrive twice, under one id).
    An abandoned call keeps its place among the `threads` until it returns. Raises `TypeError` for what
    is no ordinary function, and `ValueError` for `threads` below 1.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function, not {type(fn).__name__}")
    if arguments.is_async(fn):
        raise TypeError("fn must be an ordinary function: an async one is a send as it is")
    return in_threads(fn, trio.CapacityLimiter(arguments.count("threads", threads)))


def in_threads(fn: Callable[..., object], limiter: trio.CapacityLimiter) -> Callable[..., Awaitable[None]]:
    """Make an async function of a blocking one, at most so many calls of which run at once."""

    async def call(*args: object) -> None:
        error = await trio.to_thread.run_sync(error_of, fn, *args, abandon_on_cancel=True, limiter=limiter)
        try:
            if error is not None:
                raise error
        finally:
            del error  # or its traceback, this frame and the payload hold each other

    return call


def error_of(fn: Callable[..., object], *args: Any) -> Exception | None:
    """Call it, and return what it raised, as an error."""
    try:
        fn(*args)
    except BaseException as raised:  # noqa: BLE001 (it is the message's)
        return as_error(raised)
    return None


def as_error(raised: BaseException) -> Exception:
    """What a call has raised. What is no `Exception` (`sys.exit()`, say) would end the thread."""
    if isinstance(raised, Exception):
        return raised
    error = LocalDelayError(f"the call ended in {type(raised).__name__}")
    error.__cause__ = raised
    return error
