"""The journal's own thread, and what waits for it: group commits.

What changes is gathered, under a lock, and the thread takes all of it whenever it is free: while one group
is written, the next one gathers. A commit costs about the same for one message as for a hundred, so the more
puts wait at a time, the less each of them costs. (The interpreter's own lock helps: the thread has to wait
for it until the loop has nothing left to do, which is when all tasks that could put have put.)

A put that waits is accepted by the commit itself, not by its task afterwards. Where a commit fails, the puts
that wait for it are refused; all else is late: it is tried again now and then, a part of it at a time, beside
what comes new, so that the removals of what is sent meanwhile wait for no more than that. What was accepted
without waiting stays at risk. A message that is finished before it was written is never written.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias

import trio

from localdelay.entry import Body, Entry, execute_at_of, size_of
from localdelay.errors import JournalError
from localdelay.lateness import LatencyRecorder
from localdelay.message import render_id
from localdelay.timer import clock_parts

from .record import Journal, Kept, Record
from .recovery import RECOVERED

logger = logging.getLogger("localdelay")

RETRY_EVERY: Final = 0.5
"""Seconds between two tries to write what could not be written."""
_LATE_AT_ONCE: Final = 1000
_CLOSE_TIMEOUT: Final = 10.0
_CLOSED: Final = "the journal is closed"
_FAILURES_LOGGED_EVERY: Final = 60.0
_NOTHING: Final = object()

_Change: TypeAlias = tuple[Entry, float, str | None] | None
"""(message, its due time on the wall clock, what it was given up for), or that it is gone."""


class _Waiter:
    """A task that waits for a commit. It is a put where there is something to `accept`."""

    __slots__ = ("accept", "error", "number", "task")

    def __init__(self, number: int = 0, accept: Callable[[], None] | None = None) -> None:
        self.number = number
        self.accept = accept
        self.error: JournalError | None = None
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()


def _not_now(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


class _Group:
    """What is committed together."""

    __slots__ = ("changes", "durable", "error", "seconds", "takes_late", "tried", "waiters")

    def __init__(self) -> None:
        self.changes: dict[int, _Change] = {}  # by number
        self.waiters: list[_Waiter] = []
        self.durable = False  # whether a message in it is new
        self.takes_late = False  # whether somebody waits for what is late, too
        self.tried = False
        self.error: Exception | None = None
        self.seconds = 0.0


class Committer:
    """Has a journal keep what the queue holds. Of the Trio thread, but for what says otherwise."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._read_clock, self._clock_offset = clock_parts()
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._news: SimpleQueue[None] = SimpleQueue()
        # Under the lock:
        self._group = _Group()
        self._told = False  # whether the thread knows that there is something
        self._taken = 0  # groups; of these, so many have ended:
        self._ended = 0
        self._closing = False
        self._late: dict[int, _Change] = {}  # what could not be written, and nothing newer is known of
        self._writing: dict[int, _Change] = {}  # what the thread writes at the moment
        self._new: set[int] = set()  # numbers of messages that were never written yet
        # Of the thread:
        self._retry_at = 0.0  # when a part of what is late is to be tried, on `time.perf_counter`
        # Of the Trio thread:
        self._renamed: dict[int, int] = {}
        self._first_key = 0
        self._first_number = 0
        self._next_line = -math.inf
        self._is_told = False  # that it fails
        self._closed = trio.Event()
        self.at_risk: dict[int, Entry] = {}
        """What is accepted and not written yet."""
        self.at_risk_bytes = 0
        self.committing = 0
        """Puts that wait for their commit."""
        self.failures = 0
        self.commit_time = LatencyRecorder()

    async def open(self, first_number: int) -> Sequence[Kept]:
        """Open the journal, and return what it holds; numbers of new messages begin at `first_number`.

        Raises `JournalError`.
        """
        opened = trio.Event()
        outcome: list[Sequence[Kept] | Exception] = []

        def tell(result: Sequence[Kept] | Exception) -> None:
            outcome.append(result)
            opened.set()

        thread = threading.Thread(target=self._run, args=(tell,), name="localdelay-journal", daemon=True)
        thread.start()
        with trio.CancelScope(shield=True):  # or nobody would close it
            await opened.wait()
        result = outcome[0]
        if isinstance(result, Exception):
            raise result
        self._first_number = first_number
        self._first_key = 1 + max(map(itemgetter(0), result), default=0)
        return result

    def keep(self, due: float, number: int, body: Body) -> None:
        """Write down a message that is accepted already: it is at risk until it is there."""
        entry = (due, number, body)
        self.at_risk[number] = entry
        self.at_risk_bytes += size_of(body)
        self._add(number, self._change(entry), durable=True)

    async def commit(self, due: float, number: int, body: Body, accept: Callable[[], None]) -> None:
        """Write a message down, and call `accept` as soon as it is there; raises `JournalError` if it is not.

        A cancellation has to wait until that is known.
        """
        if self._closed.is_set():
            raise JournalError(_CLOSED)
        waiter = _Waiter(number, accept)
        self.committing += 1
        self._add(number, self._change((due, number, body)), waiter, durable=True)
        await trio.lowlevel.wait_task_rescheduled(_not_now)
        if waiter.error is not None:
            raise waiter.error

    def update(self, entry: Entry, dead: str | None = None) -> None:
        """The message has another attempt from now on, or it was given up on and stays."""
        number = self._renamed.get(entry[1], entry[1])
        if dead is not None:
            self._renamed.pop(entry[1], None)
            self._out_of_risk(number)
        elif number in self.at_risk:
            self.at_risk[number] = entry
        self._add(number, self._change(entry, dead))

    def remove(self, number: int) -> None:
        """The message is finished."""
        if self._renamed:
            number = self._renamed.pop(number, number)
        self._out_of_risk(number)
        with self._lock:
            if number in self._new and number not in self._writing:
                self._group.changes.pop(number, None)
                self._late.pop(number, None)
                self._new.discard(number)
                return
        self._add(number, None)

    def rename(self, number: int, entry: Entry) -> None:
        """The message with this number is that entry from now on."""
        first = self._renamed.pop(number, number)
        self._renamed[entry[1]] = first
        if first in self.at_risk:
            self.at_risk[first] = entry

    async def written(self) -> None:
        """Wait until what has changed so far is written, or could not be; that is tried again later."""
        if not self._is_settled():
            await self._wait()

    async def flush(self) -> None:
        """Wait until all that was accepted is there. Raises `JournalError` if it could not be written."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._is_settled():
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        while True:
            error = await self._wait(takes_late=True)
            if error is not None:
                raise error
            with self._lock:
                if not self._late:
                    return

    async def close(self) -> None:
        """Write what there is to write, and let go of the journal."""
        with self._lock:
            self._closing = True
        self._news.put(None)
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as timed_out:
            await self._closed.wait()
        if timed_out.cancelled_caught:
            logger.error("the journal does not answer, and was left open")
        with self._lock:
            left = sum(change is None for change in chain(self._group.changes.values(), self._late.values()))
        if left:
            logger.error("%d finished messages are still in the journal: it could not be written", left)

    def _change(self, entry: Entry, dead: str | None = None) -> _Change:
        due, _, body = entry
        now = self._read_clock() + self._clock_offset
        # The wall clock is read after the other one: what is written may be late by that, and never early.
        return entry, execute_at_of(due, body) - now + time.time(), dead

    def _add(
        self, number: int, change: _Change, waiter: _Waiter | None = None, *, durable: bool = False
    ) -> None:
        with self._lock:
            group = self._group
            group.changes[number] = change
            if self._late:
                self._late.pop(number, None)
            if durable:
                group.durable = True
                self._new.add(number)
            if waiter is not None:
                group.waiters.append(waiter)
            told, self._told = self._told, True
        if not told:
            self._news.put(None)

    def _is_settled(self) -> bool:
        with self._lock:
            return self._taken == self._ended and not self._group.changes and not self._late

    async def _wait(self, *, takes_late: bool = False) -> JournalError | None:
        if self._closed.is_set():
            return JournalError(_CLOSED)
        waiter = _Waiter()
        with self._lock:
            self._group.waiters.append(waiter)
            self._group.takes_late |= takes_late
            told, self._told = self._told, True
        if not told:
            self._news.put(None)

        def abort(_: object) -> trio.lowlevel.Abort:
            waiter.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        return waiter.error

    def _out_of_risk(self, number: int) -> None:
        entry = self.at_risk.pop(number, None)
        if entry is not None:
            self.at_risk_bytes -= size_of(entry[2])

    def _settle(self, group: _Group) -> None:
        """A commit has ended."""
        self._ended += 1
        if group.tried:
            self.commit_time.record(group.seconds)
            self._note(group)
        if group.error is None and self.at_risk:
            for number in group.changes:
                self._out_of_risk(number)
        self._tell(group.waiters, group.error)

    def _end(self) -> None:
        """There is no thread any more."""
        self._closed.set()
        with self._lock:
            waiters, self._group.waiters = self._group.waiters, []
        self._tell(waiters, JournalError(_CLOSED))

    def _tell(self, waiters: list[_Waiter], error: Exception | None) -> None:
        for waiter in waiters:
            if waiter.accept is not None:
                self.committing -= 1
                if error is None:
                    waiter.accept()
            if error is not None:
                waiter.error = JournalError(str(error))
            if waiter.task is not None:
                trio.lowlevel.reschedule(waiter.task)

    def _note(self, group: _Group) -> None:
        now = self._read_clock() + self._clock_offset
        if group.error is not None:
            self.failures += 1
            if now >= self._next_line:
                self._next_line = now + _FAILURES_LOGGED_EVERY
                self._is_told = True
                line = "the journal can't be written, and puts are refused: %s"
                logger.error(line, group.error)
        elif self._is_told and group.durable:
            self._is_told = False
            logger.warning("the journal can be written again")

    # From here on: in the thread.

    def _run(self, tell: Callable[[Sequence[Kept] | Exception], None]) -> None:
        try:
            held = self._journal.open()
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            self._call(partial(tell, error))
            return
        self._call(partial(tell, held))
        del held, tell
        closing = failed = False
        while not closing or (self._late and not failed):
            if not closing:
                self._sleep()
            with self._lock:
                group, self._group = self._group, _Group()
                self._told = False
                self._taken += 1
                closing = self._closing
                late = self._some_late() if closing or group.takes_late or self._is_retry_due() else {}
                group.changes |= late
                group.durable |= bool(late)
                self._writing = group.changes
            if group.changes:
                begun = time.perf_counter()
                self._write(group)
                group.tried = True
                group.seconds = time.perf_counter() - begun
                if group.error is None:
                    self._retry_at = 0.0 if group.durable else self._retry_at
                elif late:
                    self._retry_at = time.perf_counter() + RETRY_EVERY
            failed = group.error is not None
            self._call(partial(self._settle, group))
        with suppress(Exception):
            self._journal.close()
        self._call(self._end)

    def _sleep(self) -> None:
        with suppress(Empty):
            if self._late:
                self._news.get(timeout=max(0.0, self._retry_at - time.perf_counter()))
            else:
                self._news.get()

    def _is_retry_due(self) -> bool:
        return bool(self._late) and time.perf_counter() >= self._retry_at

    def _some_late(self) -> dict[int, _Change]:
        return dict(islice(self._late.items(), _LATE_AT_ONCE))

    def _write(self, group: _Group) -> None:
        gone: list[int] = []
        try:
            kept = [self._record(number, change) for number, change in group.changes.items() if change]
            gone = [self._key(number) for number, change in group.changes.items() if change is None]
            self._journal.write(kept, gone, durable=group.durable)
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            group.error = error
        else:
            with self._lock:  # before the loop gets to know: see `remove`
                self._written(group.changes)
            return
        removed: dict[int, _Change] = {}
        if gone and len(gone) < len(group.changes):
            # What is removed makes room.
            with suppress(Exception):
                self._journal.write([], gone, durable=False)
                removed = {number: change for number, change in group.changes.items() if change is None}
        refused = {waiter.number for waiter in group.waiters if waiter.accept is not None}
        with self._lock:
            self._written(removed)
            self._new -= refused
            for number, change in group.changes.items():
                if number not in refused and number not in removed and number not in self._group.changes:
                    self._late[number] = change

    def _written(self, changes: dict[int, _Change]) -> None:
        self._writing = {}
        self._new.difference_update(changes)
        if self._late:
            for number, change in changes.items():
                if self._late.get(number, _NOTHING) is change:  # and not a newer one
                    del self._late[number]

    def _record(self, number: int, change: tuple[Entry, float, str | None]) -> Record:
        (_, shown, body), due, dead = change
        if isinstance(body, bytes):
            return Record(self._key(number), due, 1, render_id(shown), None, body, dead)
        payload, headers, chosen, attempt = body[:4]
        name = render_id(shown) if chosen is None else chosen
        return Record(self._key(number), due, attempt, name, headers, payload, dead)

    def _key(self, number: int) -> int:
        if number < 0:
            return number + RECOVERED
        return number - self._first_number + self._first_key

    def _call(self, function: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._token.run_sync_soon(function)
