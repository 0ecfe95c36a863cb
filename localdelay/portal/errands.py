"""Coroutine functions of an asyncio loop, to be awaited on the loop of a queue."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol

import trio

from localdelay import arguments
from localdelay.errors import LocalDelayError
from localdelay.queue.sending import not_awaitable
from localdelay.settling import Confirmation, Settling


class UnderWay(Protocol):
    """A call of a send, or of a hook, in whose tasks `WITHIN` is it."""

    owner: object
    """Who makes such calls for a queue."""

    @property
    def is_under_way(self) -> bool:
        """Whether it has begun and has not ended: a task that it has left behind is not within it."""


WITHIN: ContextVar[UnderWay | None] = ContextVar("localdelay", default=None)


def is_within(owner: object) -> bool:
    """Whether this runs in such a call of this one's, or in a task that it has begun."""
    call = WITHIN.get()
    return call is not None and call.owner is owner and call.is_under_way


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
            errand = _Errand(self).run(name, function, args)
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


class _Errand:
    """One call of a coroutine function."""

    def __init__(self, owner: Errands) -> None:
        self.owner: object = owner
        self.is_under_way = True

    async def run(
        self, name: str, function: Callable[..., Any], args: tuple[object, ...]
    ) -> Exception | None:
        """What it failed with: a future would raise a `TimeoutError` without its traceback."""
        WITHIN.set(self)  # for the task of this call, which has a context of its own
        try:
            returned: Any = function(*args)
            if not inspect.isawaitable(returned):
                raise not_awaitable(name, returned)
            await returned
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            return error
        finally:
            self.is_under_way = False
        return None


def _error_of(name: str, done: Future[Exception | None]) -> Exception | None:
    if done.cancelled():
        return LocalDelayError(f"the {name} was cancelled")
    ended_by = done.exception()
    if ended_by is None:
        return done.result()
    return LocalDelayError(f"the {name} ended in {type(ended_by).__name__}")
