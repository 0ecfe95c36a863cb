"""Calls of blocking functions that their callers can leave when they take too long."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import trio

MOST = 100
"""Calls that were left and have not returned: each keeps a thread, and there has to be a bound to them."""

_Ended: TypeAlias = SimpleQueue[Any]
"""Gets the `outcome.Outcome` of one call."""


class Leaving:
    """Calls functions in threads of their own, and waits for each so many seconds at most. In any thread."""

    def __init__(self, name: str, seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._lock = threading.Lock()
        self._left: set[_Ended] = set()

    def call(self, function: Callable[..., object], *args: object) -> object:
        """What the call comes to, in the caller's context. Raises `TimeoutError` where it takes too long.

        That goes on in its thread, and may come to something yet.
        """
        if self._seconds > threading.TIMEOUT_MAX:
            return function(*args)
        if len(self._left) >= MOST:
            raise TimeoutError(
                f"{len(self._left)} calls of {self._name} that took too long have not returned: "
                "give its client a time-out of its own"
            )
        ended: _Ended = SimpleQueue()
        # Its thread gets no name: to give one and to take it back costs a third of such a call.
        run = contextvars.copy_context().run
        trio.lowlevel.start_thread_soon(lambda: run(function, *args), lambda result: self._end(ended, result))
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
            if is_left := ended.empty():
                self._left.add(ended)
            return is_left

    def _end(self, ended: _Ended, result: object) -> None:
        ended.put(result)  # before the look: who leaves it after that would be counted for ever
        with self._lock:
            self._left.discard(ended)
