"""Blocking functions: made sends, and called by those who can leave them when they take too long."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import isasyncgen, isawaitable, isgenerator
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import trio

from localdelay import arguments
from localdelay.errors import LocalDelayError, Throttled
from localdelay.message import Message
from localdelay.queue.sending import Send, WrongKind

MOST = 100
"""Calls that were left and have not returned: each keeps a thread, and there has to be a bound to them."""

_Ended: TypeAlias = SimpleQueue[Any]
"""Gets the `outcome.Outcome` of one call."""


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
        finished(fn, fn(*args))
    except BaseException as raised:  # noqa: BLE001 (it is the message's)
        return as_error(raised)
    return None


def finished(fn: Callable[..., object], returned: object) -> object:
    """What a blocking function has returned. Raises `PermanentSendError` where that has yet to be done.

    A lambda around an `async def`, say, returns its coroutine; nobody can tell before.
    """
    if returned is None or not (isawaitable(returned) or isgenerator(returned) or isasyncgen(returned)):
        return returned
    if isinstance(returned, Coroutine | Generator):
        returned.close()  # or Python would say that it was never awaited
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    raise WrongKind(
        f"{name} returned {type(returned).__name__}, whose end nobody waits for: an ordinary function is to "
        "wait for it itself, and an async one is to be given as an `async def`"
    )


def as_error(raised: BaseException) -> Exception:
    """What a call has raised. What is no `Exception` (`sys.exit()`, say) would end the thread."""
    if isinstance(raised, Exception):
        return raised
    error = LocalDelayError(f"the call ended in {type(raised).__name__}")
    error.__cause__ = raised
    return error


class NotCalled(Throttled, TimeoutError):
    """The call was not made: what is called has not taken anything, and is down for all that is known."""


class Leaving:
    """Calls functions in threads of their own, and waits for each so many seconds at most. In any thread."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._lock = threading.RLock()  # as a gate's
        self._under_way: set[_Ended] = set()
        self._left: set[_Ended] = set()

    def call(self, function: Callable[..., object], *args: object) -> object:
        """What the call comes to, in the caller's context. Raises `TimeoutError` where it takes too long.

        That goes on in its thread, and may come to something yet. Raises `NotCalled` where no thread is left.
        """
        if self._seconds > threading.TIMEOUT_MAX:
            return function(*args)
        if len(self._left) >= MOST:
            raise NotCalled(
                f"{len(self._left)} calls of {self._name} that took too long have not returned: "
                "give its client a time-out of its own"
            )
        ended: _Ended = SimpleQueue()
        # Its thread gets no name: to give one and to take it back costs a third of such a call.
        run = contextvars.copy_context().run
        self._under_way.add(ended)
        try:
            trio.lowlevel.start_thread_soon(
                lambda: run(function, *args), lambda result: self._end(ended, result)
            )
        except RuntimeError as error:
            self._under_way.discard(ended)
            raise NotCalled(f"no thread begins in which to call {self._name}: {error}") from error
        try:
            result = ended.get(timeout=self._seconds)
        except BaseException as cut:
            is_left = self._leave(ended)
            if not isinstance(cut, Empty):  # Ctrl-C
                raise
            if is_left:
                raise TimeoutError(f"{self._name} took longer than {self._seconds:g} s") from None
            result = ended.get()
        try:
            return result.unwrap()
        finally:
            del result  # or it, its error, the error's traceback and this frame hold each other

    def _leave(self, ended: _Ended) -> bool:
        """Whether the caller leaves it: it may have ended in this very instant."""
        with self._lock:
            # Empty it is, too, where the caller was interrupted just after he had got what was in it.
            if is_left := ended in self._under_way and ended.empty():
                self._left.add(ended)
            return is_left

    def _end(self, ended: _Ended, result: object) -> None:
        ended.put(result)  # before the look: who leaves it after that would be counted for ever
        with self._lock:
            self._under_way.discard(ended)
            self._left.discard(ended)
