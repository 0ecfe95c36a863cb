"""The journal as the queue's keeper: group commits, in a thread of its own.

What changes is gathered, and the thread takes all of it whenever it is free: while one group is written, the
next one gathers. A commit costs about the same for one message as for a hundred, so the more puts wait at a
time, the less each of them costs. (The interpreter's own lock helps: the thread has to wait for it until the
loop has nothing left to do, which is when all tasks that could put have put.)

What is on disk when: there is one map of what is not known to be on disk. Each message in it stands there
once, with all that is to be written of it in the end, or with that it is gone. It is

- *fresh* from when it has changed until the thread takes it, with all else that is fresh, as one group;
- *taken* until the loop hears how the group's commit has ended: nobody can say meanwhile whether it is there.
  If it changes once more, what is newer takes its place in the map, fresh, and is written after it;
- then out of the map where the commit has succeeded; and where it failed, *late*: tried again now and then, a
  part at a time, beside what is fresh, so that the removals of what is sent meanwhile wait for no more.

The thread takes and writes, and the loop alone draws conclusions, all those of a commit in one step: what
`flush` has seen a drain finds. A put that waits is accepted in that step, and not by its task afterwards; if
the commit has failed it is refused, and nothing of it is late. What is accepted without waiting is at risk
until then. A message that has ended before it was taken is never written.

What is written when, and what a crash before that costs; durable against a loss of power are new messages:

    put          its row, awaited: before that it is no message
    put_nowait   its row, with the next group: until then it is at risk
    send begins  that it is being sent, awaited: what is so after a crash comes last, alone, an attempt later
    send fails   that it is not; and its row where its attempt has changed. Not awaited, and when it is to be
                 tried again is not written at all: it comes back by its execute-at
    reschedule   its row, not awaited: else it comes back by its old time
    sent         no row, awaited before the next send of the worker: else it is sent twice
    dead         no row where a hook has it, else a mark; awaited
    handed back  no row, awaited: else it is sent as well
    the end      that nothing is being sent but what was so at the beginning and was not tried since
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from operator import itemgetter
from queue import Empty, SimpleQueue
from typing import Final

import trio

from localdelay.entry import Entry, attempt_of, execute_at_of, size_of
from localdelay.errors import JournalError
from localdelay.keeping import End, Keeper, Wait
from localdelay.logs import log
from localdelay.timer import clock_parts

from .group import LATE, TAKEN, Change, Group
from .record import RECOVERED, Gone, Journal, Kept, record_of

RETRY_EVERY: Final = 0.5
"""Seconds between two tries to write what could not be written."""
_LATE_AT_ONCE: Final = 1000
_CLOSE_TIMEOUT: Final = 10.0
_CLOSED: Final = "the journal is closed"
_THREAD: Final = "localdelay-journal"
_FAILURES_LOGGED_EVERY: Final = 60.0


class Commits(Keeper):
    """Has a journal keep what the queue holds. Of the Trio thread, but for what says otherwise."""

    writes = True

    def __init__(self, journal: Journal, pending: Callable[[], tuple[int, int]]) -> None:
        """`pending` gives how many messages there are, and their bytes."""
        super().__init__(lambda: pending() if self._is_gone else (self._unsafe, self._unsafe_bytes))
        self._journal = journal
        self._read_clock, self._clock_offset = clock_parts()
        self._token = trio.lowlevel.current_trio_token()
        self._news: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        # Under the lock:
        self._unwritten: dict[int, Change] = {}  # by key
        self._late = 0  # of them, so many
        self._group = Group()
        # Of the thread:
        self._retry_at = 0.0  # when a part of what is late is to be tried, on `time.perf_counter`
        # Of the Trio thread:
        self._first_key = 0  # of the message with the number 0
        self._moved: dict[int, int] = {}  # keys of messages that have another number than they had
        self._sending: set[int] = set()  # keys of what is being sent; the thread copies it in one step
        self._suspects: set[int] = set()  # of them what was so when the last process ended, and was not since
        self._has_begun = False
        self._next_line = -math.inf
        self._is_told = False  # that it fails
        self._closing = False
        self._closed = trio.Event()
        self._unsafe = self._unsafe_bytes = 0  # accepted, and not written yet
        self._is_gone = False  # whether what was written is lost

    async def open(self, first_number: int) -> Sequence[Kept]:
        """Open it, and return what it holds; new numbers begin at `first_number`. Raises `JournalError`."""
        opened = trio.Event()
        outcome: list[Sequence[Kept] | Exception] = []
        threading.Thread(target=self._run, args=(outcome, opened), name=_THREAD, daemon=True).start()
        with trio.CancelScope(shield=True):  # or nobody would close it
            await opened.wait()
        result = outcome.pop()  # the thread holds the list as long as it lives, and it may be of millions
        if isinstance(result, Exception):
            raise result
        self._first_key = 1 + max(map(itemgetter(0), result), default=0) - first_number
        self._suspects.update(kept[0] for kept in result if kept[9] and kept[6] is None)
        self._sending |= self._suspects  # until they are tried again they stay suspect
        self._group.tells = True  # or a key of the last process's would be that of a new message
        return result

    def entering(self, entry: Entry, enter: Callable[[], None]) -> Wait:
        """Write a message down; the wait calls `enter` as soon as it is there, or raises `JournalError`.

        A cancellation meanwhile has to wait until that is known.
        """
        group = self._group
        if not group.has_ended:
            self.committing += 1
            group = self._add(Change(self._key(entry), entry, self._wall(entry), on_disk=False, enter=enter))
        return partial(group.until_end, shielded=True)

    def entered(self, entry: Entry) -> None:
        """Write down a message that is accepted already: it is at risk until it is there."""
        self._unsafe += 1
        self._unsafe_bytes += size_of(entry[2])
        self._add(Change(self._key(entry), entry, self._wall(entry), on_disk=False, at_risk=True))

    def failed(self, entry: Entry, again: Entry) -> bool:
        """Write down that the message has another attempt from now on, and that it is not being sent."""
        key = self._key(entry)
        tells = key in self._sending
        self._sending.discard(key)
        if attempt_of(again[2]) != attempt_of(entry[2]):
            # With it in one commit: a crash between two would count this attempt twice, or not at all.
            self._add(Change(self._key(again), again, self._wall(again)), tells=tells)
        elif tells:
            self._called(tells=True)
        return True

    def begins(self, entries: Sequence[Entry]) -> Wait:
        """Write down that these are being sent: each is an attempt, should it end the process."""
        # One commit for all that begins by then, and not durable: no sudden power loss is a message's fault.
        keys = list(map(self._key, entries))
        self._sending.update(keys)
        self._has_begun = True
        for entry, key in zip(entries, keys, strict=True) if self._suspects else ():
            if key in self._suspects:  # with the attempts that it has had
                self._suspects.discard(key)
                self._add(Change(key, entry, self._wall(entry)))
        return partial(self._until_told, self._called(tells=True))

    def moved(self, entry: Entry, again: Entry) -> None:
        """Write down when it is due now, in the place that it has."""
        self._moved[again[1]] = key = self._key(entry)
        self._moved.pop(entry[1], None)
        self._add(Change(key, again, self._wall(again)))

    def ended(self, entries: Sequence[Entry], how: End, why: str | None = None) -> Wait:
        """Remove these, or mark what was given up on and is nobody's: the wait is until that is written."""
        if how is not End.SPOOLED:
            for entry in entries:
                key = self._key(entry)
                if why is None:
                    self._add(Change(key, None))
                else:
                    self._add(Change(key, entry, self._wall(entry), why))
                self._moved.pop(entry[1], None)
                self._sending.discard(key)
                self._suspects.discard(key)
        return self.written

    def unkept(self) -> list[Entry] | None:
        """The messages that are at risk; None where all are, for the journal is gone."""
        # Without the lock: only the loop puts anything into the map or takes it out.
        at_risk = [change.entry for change in self._unwritten.values() if change.at_risk and change.entry]
        return None if self._is_gone else at_risk

    async def written(self) -> None:
        """Wait until what has changed so far is written, or could not be; that is tried again later."""
        # Without the lock: meanwhile only how many are late may change, and for those nobody waits here.
        if len(self._unwritten) > self._late:
            await self._until_told(self._called())

    async def flush(self) -> None:
        """Wait until all that was accepted is there. Raises `JournalError` if it could not be written."""
        await trio.lowlevel.checkpoint()
        if not self._unwritten:  # all was there once
            if not self._closed.is_set():
                await self._called(takes_late=True).until_end()
            return
        before = None
        # A group that ends well has all that was not late, unless one that was taken before it has failed.
        while before != (0, self.failures):
            before = self._late, self.failures
            await self._called(takes_late=True).until_end()

    async def close(self) -> None:
        """Write what there is to write, and let go of the journal."""
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True) as timed_out:
            try:
                with suppress(JournalError):
                    await self.flush()
                if self._has_begun:  # what was cut off is nobody's fault: the process ends well
                    self._sending &= self._suspects
                    await self._until_told(self._called(tells=True))
            finally:  # also where it hangs: it ends when it comes back
                self._closing = True
                self._news.put(None)
            await self._closed.wait()
        if timed_out.cancelled_caught:
            log(logging.ERROR, "the journal does not answer, and was left open")
        if left := sum(change.entry is None for change in self._unwritten.values()):
            line = "%d finished messages are still in the journal: it could not be written"
            log(logging.ERROR, line, left)

    def _key(self, entry: Entry) -> int:
        number = entry[1]
        if self._moved and number in self._moved:
            return self._moved[number]
        return number + (RECOVERED if number < 0 else self._first_key)

    def _wall(self, entry: Entry) -> float:
        now = self._read_clock() + self._clock_offset
        # The wall clock is read after the other one: what is written may be late by that, and never early.
        return execute_at_of(entry[0], entry[2]) - now + time.time()

    def _add(self, change: Change, *, tells: bool = False) -> Group:
        key = change.key
        with self._lock:
            group = self._group
            known = self._unwritten.get(key)
            if known is not None:
                self._late -= known.stage is LATE
                # However the commit ends that it may be in, to remove it takes another one.
                change.on_disk = known.on_disk or known.stage is TAKEN
                if change.entry is None and not change.on_disk:
                    self._out_of_risk(known)
                    del self._unwritten[key]
                    return group
                if known.at_risk:
                    change.at_risk = change.entry is not None and change.dead is None
                    if not change.at_risk:
                        self._out_of_risk(known)
            self._unwritten[key] = change
            group.changes.append(change)
            # Also what is newer of a message that could not be written before.
            group.durable |= change.at_risk or not change.on_disk
            group.tells |= tells
            told, group.told = group.told, True
        if not told:
            self._news.put(None)
        return group

    def _out_of_risk(self, change: Change) -> None:
        if change.at_risk and change.entry is not None:
            change.at_risk = False
            self._unsafe -= 1
            self._unsafe_bytes -= size_of(change.entry[2])

    async def _until_told(self, group: Group) -> None:
        with suppress(JournalError):  # where it can't be written, what can be done is done all the same
            await group.until_end()

    def _called(self, *, takes_late: bool = False, tells: bool = False) -> Group:
        """The group that is gathered now, and the thread is told; what is taken already ends before it."""
        with self._lock:
            group = self._group
            group.takes_late |= takes_late
            group.tells |= tells
            told, group.told = group.told, True
        if not told:
            self._news.put(None)
        return group

    def _settle(self, group: Group) -> None:
        """A commit has ended. All that follows is done in this step, or a drain would find half of it."""
        if group.seconds is not None:
            self._note(group, group.seconds)
        puts = []
        with self._lock:
            for change in group.changes:
                newest = self._unwritten.get(change.key)
                if change.enter is not None:
                    del self._unwritten[change.key]  # even where it is refused: so far it was nobody's
                    puts.append(change.enter)
                elif group.error is None or (group.are_gone and change.entry is None):
                    if newest is not None:
                        self._out_of_risk(newest)
                    if newest is change:  # else it has changed since, and that is not there yet
                        del self._unwritten[change.key]
                elif newest is change:
                    self._late += 1
                    change.stage = LATE
        self.committing -= len(puts)
        if group.error is None:
            for enter in puts:
                enter()
        elif not self._closing:
            self._news.put(None)  # the thread may sleep already, and not know that something is late
        group.has_ended = True
        for task in group.tasks:
            trio.lowlevel.reschedule(task)

    def _end(self) -> None:
        """There is no thread any more: the group that is gathered has failed, and is the last one."""
        self._closed.set()
        self._group.told, self._group.error = True, JournalError(_CLOSED)
        self._settle(self._group)

    def _note(self, group: Group, seconds: float) -> None:
        now = self._read_clock() + self._clock_offset
        self.commit_time.record(seconds)
        self._is_gone = isinstance(group.error, Gone)
        if group.error is not None:
            self.failures += 1
            if now >= self._next_line:
                self._next_line = now + _FAILURES_LOGGED_EVERY
                self._is_told = True
                log(logging.ERROR, "the journal can't be written, and puts are refused: %s", group.error)
        elif self._is_told and group.durable:
            self._is_told = False
            log(logging.WARNING, "the journal can be written again")

    # From here on: in the thread.

    def _run(self, outcome: list[Sequence[Kept] | Exception], opened: trio.Event) -> None:
        try:
            outcome.append(self._journal.open())
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            outcome.append(error)
            self._call(opened.set)
            return
        self._call(opened.set)
        while self._has_news():
            group = self._take()
            if group.changes or group.tells or group.takes_late:
                self._write(group)
            self._call(partial(self._settle, group))
        with suppress(Exception):
            self._journal.close()
        self._call(self._end)

    def _has_news(self) -> bool:
        # Without the lock: where it has just become late, `_settle` puts news after that, which end the wait.
        timeout = max(0.0, self._retry_at - time.perf_counter()) if self._late else None
        with suppress(Empty):
            self._news.get(timeout=timeout)
        return not self._closing

    def _take(self) -> Group:
        now = time.perf_counter()
        with self._lock:
            group, self._group = self._group, Group()
            group.sending = list(self._sending) if group.tells else None
            # What has changed since it was put there is there in a newer form, or is gone.
            changes = [change for change in group.changes if self._unwritten.get(change.key) is change]
            if self._late and (group.takes_late or now >= self._retry_at):
                self._retry_at = now + RETRY_EVERY
                late = (change for change in self._unwritten.values() if change.stage is LATE)
                count = min(self._late, _LATE_AT_ONCE)
                changes += islice(late, count)
                self._late -= count
                group.durable = True
            for change in changes:
                change.stage = TAKEN
            group.changes = changes
        return group

    def _write(self, group: Group) -> None:
        began = time.perf_counter()
        gone: list[int] = []
        try:
            kept = [
                record_of(change.entry, change.key, change.due, change.dead)
                for change in group.changes
                if change.entry
            ]
            gone = [change.key for change in group.changes if change.entry is None]
            self._journal.write(kept, gone, group.sending, durable=group.durable)
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            group.error = error
            if gone and len(gone) < len(group.changes):
                with suppress(Exception):
                    self._journal.write([], gone, durable=False)  # what is removed makes room
                    group.are_gone = True
        else:
            if group.durable:
                self._retry_at = 0.0  # there is room again
        group.seconds = time.perf_counter() - began

    def _call(self, function: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._token.run_sync_soon(function)
