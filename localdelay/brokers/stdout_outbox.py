"""Handing messages from the Trio loop to the thread that writes them, in order.

What nobody waits for any more is taken out at once, so that it holds no more than its callers wait for.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from localdelay.message import Message
from localdelay.settling import Confirmation, Settling


@attrs.define(eq=False)
class Job:
    """The messages of one `send` or `send_batch`."""

    messages: Sequence[Message]
    confirmation: Confirmation
    given_up: bool = False
    """Nobody waits for it any more: what is not written yet is not to be."""


class Outbox:
    """Jobs that wait for the thread. `wait` and `take` are the thread's, the rest is the Trio loop's."""

    def __init__(self, says_closed: str) -> None:
        self._says_closed = says_closed
        self._lock = threading.Lock()
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = False
        self.closed = False
        self.settling = Settling()

    async def deliver_one(self, message: Message) -> None:
        """Have a message written; returns or raises what the thread settles."""
        _check(message)
        job = Job((message,), Confirmation())
        self._give(job)
        try:
            await job.confirmation.of_one()
        except BaseException:
            self._withdraw(job)
            raise

    async def deliver_all(self, messages: Sequence[Message]) -> None:
        """Have messages written; raises as `Broker.send_batch` does."""
        messages = tuple(messages)
        for message in messages:
            _check(message)
        job = Job(messages, Confirmation(len(messages)))
        self._give(job)
        try:
            await job.confirmation.of_all(messages)
        except BaseException:
            self._withdraw(job)
            raise

    @enable_ki_protection
    def close(self) -> None:
        """End the thread, and fail what it has not taken."""
        with self._lock:
            self.closed = True
            jobs, self._jobs = self._jobs, OrderedDict()
        self._wake.put(None)
        for job in jobs:
            for position in range(len(job.messages)):
                job.confirmation.settle(position, self.closed_error())

    def closed_error(self) -> Exception:
        """What is raised for a message that comes too late."""
        return ConnectionError(self._says_closed)

    def wait(self) -> bool:
        """Block the thread until there may be a job to take; False: there will be none, it is closed."""
        with self._lock:
            self._idle = not (self._jobs or self.closed)
            if not self._idle:
                return not self.closed
        self._wake.get()
        return not self.closed

    def take(self) -> Job | None:
        """The job that has waited for longest, or None."""
        with self._lock:
            return self._jobs.popitem(last=False)[0] if self._jobs else None

    @enable_ki_protection
    def _give(self, job: Job) -> None:
        with self._lock:
            if self.closed:
                raise self.closed_error()
            if not job.messages:
                return
            self._jobs[job] = None
            wake, self._idle = self._idle, False
        if wake:
            self._wake.put(None)

    @enable_ki_protection
    def _withdraw(self, job: Job) -> None:
        job.given_up = True
        with self._lock:
            self._jobs.pop(job, None)


def _check(message: Message) -> None:
    """Refuse here what would be the end of the thread."""
    if not isinstance(message.payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(message.payload).__name__}")


class Thread:
    """A daemon thread that a Trio task can wait for. Signals are for the main thread: it sees none."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._run = run
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    async def ended(self) -> None:
        """Wait for its end."""
        await self._ended.wait()
        self._thread.join()  # it has nothing to do any more

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._run()
        finally:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._ended.set)
