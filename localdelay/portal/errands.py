"""Coroutine functions of an asyncio loop, to be awaited on the loop of a queue."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import trio

from localdelay import arguments
from localdelay.errors import LocalDelayError
from localdelay.queue.sending import not_awaitable
from localdelay.settling import Confirmation, Settling

from .outside import Seat

WITHIN: ContextVar[Seat | None] = ContextVar("localdelay", default=None)
"""In the tasks of a call of a send, or of a hook: its seat."""


def is_within(owner: object) -> bool:
    """Whether this runs in such a call of this one's, or in a task that it has begun and not left behind."""
    seat = WITHIN.get()
    return seat is not None and seat.owner is owner and seat.item is not None


class Errands:
    """Coroutine functions that are to run on an asyncio loop, for tasks of a Trio loop that wait for them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._settling: Settling | None = None

    def on_loop(self, name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """The same, to be awaited on the Trio loop. A cancellation there cancels its task here."""
        arguments.check_async(name, function)

        async def run(*args: object) -> None:
            settling = self._settling = self._settling or Settling()
            errand = self._run(name, function, args)
            try:
                future = asyncio.run_coroutine_threadsafe(errand, self._loop)
            except RuntimeError:  # the loop is closed: nothing there begins any more
                errand.close()
                raise
            confirmation = Confirmation()
            future.add_done_callback(lambda done: settling.settle(confirmation, 0, _error_of(name, done)))
            try:
                await confirmation.of_one()
            except trio.Cancelled:
                with suppress(RuntimeError):  # the loop has been closed
                    self._loop.call_soon_threadsafe(future.cancel)
                raise
            finally:
                del future  # or it, its error, the error's traceback and this frame hold each other

        return run

    async def _run(
        self, name: str, function: Callable[..., Any], args: tuple[object, ...]
    ) -> Exception | None:
        """What it failed with: a future would raise a `TimeoutError` without its traceback."""
        seat = Seat(self)
        seat.item = function
        WITHIN.set(seat)  # for the task of this call, which has a context of its own
        try:
            returned: Any = function(*args)
            if not inspect.isawaitable(returned):
                raise not_awaitable(name, returned)
            await returned
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            return error
        finally:
            seat.item = None
        return None


def _error_of(name: str, done: Future[Exception | None]) -> Exception | None:
    if done.cancelled():
        return LocalDelayError(f"the {name} was cancelled")
    ended_by = done.exception()
    if ended_by is None:
        return done.result()
    return LocalDelayError(f"the {name} ended in {type(ended_by).__name__}")
