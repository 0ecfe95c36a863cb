"""Calls of blocking functions that their callers can leave when they take too long."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import trio

MOST = 100
"""Calls that were left and have not returned: each keeps a thread, and there has to be a bound to them."""


class Leaving:
    """Calls functions in threads of their own, and waits for each so many seconds at most. In any thread."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._lock = threading.Lock()
        self._left = 0

    def call(self, function: Callable[..., object], *args: object) -> object:
        """What the call comes to, in the caller's context. Raises `TimeoutError` where it takes too long.

        That goes on in its thread, and may come to something yet.
        """
        if self._seconds > threading.TIMEOUT_MAX:
            return function(*args)
        if self._left >= MOST:
            raise TimeoutError(
                f"{self._left} calls of {self._name} that took too long have not returned: "
                "give its client a time-out of its own"
            )
        call = _Call()
        run = contextvars.copy_context().run
        trio.lowlevel.start_thread_soon(
            lambda: run(function, *args), lambda result: self._end(call, result), self._name
        )
        try:
            has_ended = call.ended.acquire(timeout=self._seconds)
        except BaseException:  # Ctrl-C
            self._leave(call)
            raise
        if not has_ended and self._leave(call):
            raise TimeoutError(f"{self._name} took longer than {self._seconds:g} s")
        result, call.result = call.result, None  # or its traceback, this frame and the error hold each other
        return result.unwrap()

    def _leave(self, call: _Call) -> bool:
        """Whether the caller leaves it: it may have ended in this very instant."""
        with self._lock:
            call.is_left = call.result is None
            self._left += call.is_left
            return call.is_left

    def _end(self, call: _Call, result: Any) -> None:
        with self._lock:
            self._left -= call.is_left
            if not call.is_left:
                call.result = result
        call.ended.release()


class _Call:
    """One call. `ended` can be taken when it has ended."""

    __slots__ = ("ended", "is_left", "result")

    def __init__(self) -> None:
        self.ended = threading.Lock()
        self.ended.acquire()
        self.is_left = False
        self.result: Any = None  # an `outcome.Outcome`
