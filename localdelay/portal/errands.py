"""Coroutine functions of an asyncio loop, to be awaited on the loop of a queue."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Protocol

import trio

from localdelay import arguments
from localdelay.errors import LocalDelayError
from localdelay.hops import Hop
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
        self._hop: Hop[_Errand] = Hop(loop.call_soon_threadsafe, _begin)
        self._settling: Settling | None = None

    def on_loop(self, name: str, function: Callable[..., Any]) -> Callable[..., Awaitable[None]]:
        """The same, to be awaited on the Trio loop. A cancellation there cancels its task here."""
        arguments.check_async(name, function)

        async def run(*args: object) -> None:
            self._settling = self._settling or Settling()
            errand = _Errand(self, name, function, args, self._settling)
            self._hop.send(errand)  # a RuntimeError where the loop is closed: nothing there begins any more
            try:
                await errand.confirmation.of_one()
            except trio.Cancelled:
                with suppress(RuntimeError):  # the loop has been closed
                    self._loop.call_soon_threadsafe(errand.cancel)
                raise

        return run


def _begin(errands: list[_Errand]) -> None:
    for errand in errands:
        errand.begin()


class _Errand:
    """One call of a coroutine function."""

    def __init__(
        self,
        owner: Errands,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        settling: Settling,
    ) -> None:
        self.owner: object = owner
        self.confirmation = Confirmation()
        self._name = name
        self._function = function
        self._args = args
        self._settling = settling
        self._cancelled = False
        self._task: asyncio.Future[object] | None = None

    def begin(self) -> None:
        if self._cancelled:
            return
        before = WITHIN.set(self)  # for the task, which copies the context
        try:
            returned: Any = self._function(*self._args)
            if not inspect.isawaitable(returned):
                raise not_awaitable(self._name, returned)
            self._task = asyncio.ensure_future(returned)
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            self._settling.settle(self.confirmation, 0, error)
        else:
            self._task.add_done_callback(self._done)
        finally:
            WITHIN.reset(before)

    @property
    def is_under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    def cancel(self) -> None:
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Future[object]) -> None:
        error = LocalDelayError(f"the {self._name} was cancelled") if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Exception):
            error = LocalDelayError(f"the {self._name} ended in {type(error).__name__}")
        self._settling.settle(self.confirmation, 0, error)
