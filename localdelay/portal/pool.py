"""Threads of a queue's own, which run its blocking calls: one thread for each worker.

They begin when the queue is opened and stay until it has ended, for a thread costs more than a message, and
on Python 3.12 none can begin while the interpreter exits, when there may be a queue to be drained.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeAlias

from localdelay.entry import Entry, message_of
from localdelay.errors import Throttled
from localdelay.message import Message
from localdelay.settling import Confirmation, Settling

from .blocking import as_error, error_of, finished
from .outside import TELL_EVERY, Seat, Senders

_Call: TypeAlias = Callable[[], Callable[[], object] | None]
"""One blocking call that a task of the loop waits for; it returns what tells that of its end."""


class _Seat(Seat):
    """That of a thread."""

    __slots__ = ("thread",)

    thread: threading.Thread


class Threads(Senders):
    """So many threads, each of which takes one thing to do after the other. `Senders` for a blocking send."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._is_open = False
        self._send: Callable[[Message], object]
        self._to_do: SimpleQueue[Entry | _Call | None] = SimpleQueue()
        self._seats: list[_Seat] = []
        self._settling: Settling | None = None
        self._is_needed = False

    def open(self) -> None:
        """Start the threads, if there is anything for them to call."""
        if self._is_needed:
            self._is_open = True
            self._start(self._count)

    def close(self) -> None:
        """Let each thread end when its call has returned."""
        self.resize(0)
        self._is_open = False  # or a `resize` after the end would start threads that nobody ends

    def is_here(self) -> bool:
        """Whether this is one of the threads."""
        current = threading.current_thread()
        return any(seat.thread is current for seat in list(self._seats))

    def sends(self, send: Callable[[Message], object]) -> Threads:
        """Make of a blocking send, of which there is one, what a queue takes."""
        self._is_needed = True
        self._send = send
        return self

    def calls(self, fn: Callable[..., object], *, waits: bool = True) -> Callable[..., Awaitable[None]]:
        """Make an async function of a blocking one, which runs in these threads.

        A call that is cancelled is abandoned, and keeps its thread until it returns. Where every thread is
        held, one more waits for one, or raises `Throttled`.
        """
        self._is_needed = True

        async def call(*args: object) -> None:
            # So many, and not all there are: what a journal held may be overdue before any has been started.
            held = sum(seat.item is not None for seat in list(self._seats))  # one that ends takes its own off
            if not waits and held >= self._count:
                raise Throttled("every thread is held by a call that does not return")
            settling = self._settling = self._settling or Settling()
            confirmation, is_abandoned = Confirmation(), False

            def run() -> Callable[[], object] | None:
                if is_abandoned:
                    return None
                return partial(settling.settle, confirmation, 0, error_of(fn, *args))

            self._to_do.put(run)
            try:
                await confirmation.of_one()
            finally:
                is_abandoned = True

        return call

    # What follows is `Senders`.

    def give(self, entries: list[Entry]) -> None:
        """Send these, each on its own, in this order."""
        put = self._to_do.put
        for entry in entries:
            put(entry)

    def take_back(self) -> list[Entry]:
        """Those whose sends have not begun: they will not."""
        taken: list[Entry] = []
        others: list[_Call | None] = []
        with suppress(Empty):
            while True:
                item = self._to_do.get_nowait()
                if isinstance(item, tuple):
                    taken.append(item)
                else:
                    others.append(item)
        for other in others:
            self._to_do.put(other)
        return taken

    def give_up(self, entry: Entry) -> None:
        """Nobody waits for this send any more. It can't be ended: it keeps its thread."""

    def resize(self, count: int) -> None:
        """So many threads from now on; one too many ends when it is free."""
        if self._is_open:
            for _ in range(count, self._count):
                self._to_do.put(None)
            self._start(count - self._count)
        self._count = count

    def _start(self, count: int) -> None:
        for _ in range(count):
            seat = _Seat(self)
            seat.thread = threading.Thread(
                target=self._work, args=(seat,), name="localdelay-send", daemon=True
            )
            self._seats.append(seat)
            seat.thread.start()

    def _work(self, seat: _Seat) -> None:
        get = self._to_do.get
        while (item := get()) is not None:
            if isinstance(item, tuple):
                self._send_one(seat, item)
            else:
                seat.item = item
                told = item()
                seat.item = None  # before it is told: who hears of it may call again, and counts who is free
                if told is not None:
                    told()
                del told
            del item  # or its payload would stay until the next one comes
        self._seats.remove(seat)

    def _send_one(self, seat: _Seat, entry: Entry) -> None:
        due, number, body = entry
        message = Message(number, body, due) if type(body) is bytes else message_of(entry)
        error: Exception | None = None
        seat.began = began = self._read_clock() + self._offset
        seat.item = entry
        try:
            returned = self._send(message)
            if returned is not None:
                finished(self._send, returned)
        except BaseException as raised:  # noqa: BLE001 (it is the message's)
            error = as_error(raised)
        ended = self._read_clock() + self._offset
        seat.item = None
        self._done.add((entry, began, ended, error))
        del error  # or its traceback, this frame and the payload hold each other
        if ended < self.asleep_until and (ended > self._told_at + TELL_EVERY or self._to_do.empty()):
            self._tell(ended)
