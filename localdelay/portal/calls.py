"""What another thread than the loop's own has: something to be done there, and numbers of its own."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

import trio

from localdelay.errors import LocalDelayError, QueueClosed
from localdelay.message import numbers

_T = TypeVar("_T")


class EachThreads(threading.local):
    """Numbers for the messages of each thread: an iterator can't be shared, and a lock costs more."""

    def __init__(self) -> None:
        self.take = numbers().__next__


class Cut(LocalDelayError):
    """The call was cancelled before it had done anything."""


class Call(Generic[_T]):
    """Something to be done on the loop, and what came of it."""

    def __init__(self, act: Callable[[], _T | Awaitable[_T]]) -> None:
        self._act = act
        self.scope = trio.CancelScope()
        self.done: Future[_T] = Future()
        self.has_begun = False

    def begin(self, nursery: trio.Nursery) -> None:
        """Do it, or begin to. On the loop."""
        self.has_begun = True
        try:
            result = self._act()
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            self.done.set_exception(error)
            return
        if isinstance(result, Awaitable):
            try:
                nursery.start_soon(self._finish, result)
            except RuntimeError:  # the block has been left meanwhile
                result.close()  # type: ignore[union-attr]  # a coroutine
                self.done.set_exception(QueueClosed("the queue has ended"))
        else:
            self.done.set_result(result)

    async def _finish(self, result: Awaitable[_T]) -> None:
        failure: BaseException = Cut("cancelled")
        try:
            with self.scope:
                self.done.set_result(await result)
                return
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            failure = error
        except BaseException:
            failure = QueueClosed("the queue has ended")
            raise
        finally:
            if not self.done.done():
                self.done.set_exception(failure)
