"""What a queue has an asyncio loop do: sends of one message by `Tasks`, and all other calls by `Errands`.

At most so many tasks send at once, each one message after the other.
A send that does not wait costs a call, and neither a task of its own nor a turn of the loop. One that waits
has its task to itself until it is done, for the others are sent by other tasks: what it sees as the current
task is the same at its begin and at its end. What it changes in its context ends with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from types import CoroutineType
from typing import Any

import trio

from localdelay import arguments
from localdelay.entry import Entry, message_of
from localdelay.errors import LocalDelayError
from localdelay.message import Message
from localdelay.queue.sending import not_awaitable
from localdelay.settling import Confirmation, Settling

from .outside import TELL_EVERY, Seat, Senders

_TURN = 0.001
"""Seconds after which what else runs on the loop has its turn."""
_WITHIN: contextvars.ContextVar[Seat | None] = contextvars.ContextVar("localdelay", default=None)
"""In the tasks of a call of a send, or of a hook: its seat."""


def is_within(owner: object) -> bool:
    """Whether this runs in such a call of this one's, or in a task that it has begun and not left behind."""
    seat = _WITHIN.get()
    return seat is not None and seat.owner is owner and seat.item is not None


class _Seat(Seat):
    """That of a task."""

    __slots__ = ("is_given_up", "task")

    def __init__(self, owner: Tasks) -> None:
        super().__init__(owner)
        self.is_given_up = False
        self.task: asyncio.Task[None] | None = None


class Tasks(Senders):
    """`Senders` for a coroutine function, on the loop that this is made on."""

    def __init__(self, send: Callable[..., Any], count: int) -> None:
        super().__init__(count)
        arguments.check_async("send", send)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._send = send
        self._to_do: deque[Entry] = deque()
        self._seats: dict[_Seat, None] = {}
        self._yields = False  # whether a task has given its turn away and goes on in the next one
        self._called = False  # whether the loop is going to look for what there is to do

    def give(self, entries: list[Entry]) -> None:
        """Send these, each on its own, in this order."""
        self._to_do.extend(entries)
        if self._called and not self._loop.is_closed():
            return
        self._called = True
        try:
            self._loop.call_soon_threadsafe(self._more)
        except RuntimeError as error:  # the loop is closed
            self._called = False
            now = self._read_clock() + self._offset
            for entry in self.take_back():
                self._done.send((entry, now, now, error))

    def take_back(self) -> list[Entry]:
        """Those whose sends have not begun: they will not."""
        taken: list[Entry] = []
        with suppress(IndexError):
            while True:
                taken.append(self._to_do.popleft())
        return taken

    def give_up(self, entry: Entry) -> None:
        """Cancel the task of this send, which keeps its place until that has ended it."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._cancel, entry)

    def resize(self, count: int) -> None:
        """So many tasks from now on; one too many ends when its send has."""
        self._count = count
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._more)

    # What follows runs on the asyncio loop.

    def _more(self) -> None:
        """Start a task if there is something for it to do, and look again after that one's first turn."""
        self._called = False  # before the look: who gives something after it calls again
        if self._to_do and len(self._seats) < self._count and not self._yields:
            seat = _Seat(self)
            self._seats[seat] = None
            self._context.run(self._loop.create_task, self._work(seat))
            self._loop.call_soon(self._more)

    def _cancel(self, entry: Entry) -> None:
        for seat in self._seats:
            if seat.item is entry and seat.task is not None:
                seat.is_given_up = True
                seat.task.cancel()

    async def _work(self, seat: _Seat) -> None:
        seat.task = asyncio.current_task()
        _WITHIN.set(seat)
        before = contextvars.copy_context()
        read_clock, offset, to_do, done = self._read_clock, self._offset, self._to_do, self._done
        turn = read_clock() + offset
        try:
            while to_do and len(self._seats) <= self._count:
                try:
                    entry = to_do.popleft()
                except IndexError:  # it was taken back in this very instant
                    return
                error: Exception | None = None
                due, number, body = entry
                message = Message(number, body, due) if type(body) is bytes else message_of(entry)
                seat.began = began = read_clock() + offset
                seat.item = entry
                try:
                    sending = self._send(message)
                    if type(sending) is not CoroutineType and not inspect.isawaitable(sending):
                        raise not_awaitable("send", sending)
                    await sending
                except Exception as raised:  # noqa: BLE001 (it is the message's)
                    error = raised
                except BaseException as raised:
                    cancelled = isinstance(raised, asyncio.CancelledError)
                    ended_by = "was cancelled" if cancelled else f"ended in {type(raised).__name__}"
                    error = LocalDelayError(f"the send {ended_by}")
                    if not cancelled or not seat.is_given_up:
                        raise
                finally:
                    ended = read_clock() + offset
                    seat.item = None
                    done.add((entry, began, ended, error))
                    del error  # or its traceback, this frame and the payload hold each other
                    if ended < self.asleep_until and (not to_do or ended > self._told_at + TELL_EVERY):
                        self._tell(ended)
                try:
                    is_changed = contextvars.copy_context() != before
                except Exception:  # noqa: BLE001 (of a value: an array, say, can't be compared so)
                    is_changed = True
                if seat.is_given_up or is_changed:
                    return
                if ended > turn + _TURN:
                    await self._yield()
                    turn = read_clock() + offset
        finally:
            del self._seats[seat]
            if to_do:  # or it would be a turn of the loop for nothing, as often as something is given
                with suppress(RuntimeError):  # the loop is closed: a task left behind is taken apart
                    self._loop.call_soon(self._more)

    async def _yield(self) -> None:
        """Let what else runs on the loop have its turn, and nobody else here."""
        self._yields = True
        try:
            await asyncio.sleep(0)
        finally:
            self._yields = False
        self._loop.call_soon(self._more)  # for the next send may wait


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
        _WITHIN.set(seat)  # for the task of this call, which has a context of its own
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
