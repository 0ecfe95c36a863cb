"""The delay queue: what callers see of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from threading import get_ident

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from localdelay import arguments, forks
from localdelay.arguments import LATEST, NOT_GIVEN, Delay, NotGiven, Terms
from localdelay.entry import plain_entry
from localdelay.errors import QueueClosed, QueueFull
from localdelay.journal.record import Journal
from localdelay.limit import Limit
from localdelay.logs import log
from localdelay.message import Message
from localdelay.statistics import DrainReport, Statistics
from localdelay.timer import clock_parts
from localdelay.units import counted, format_size

from .admission import Admission
from .core import Core
from .draining import Draining
from .handing_back import HandBacks
from .schedule import INBOX
from .sending import HandBack


class DelayQueue:
    """Holds messages in memory until they are due, and then sends them. Made by `open_delay_queue`.

    All methods are to be called from the Trio thread that runs the queue.
    """

    def __init__(self, core: Core, numbers: Iterator[int], *, cancellable: bool) -> None:
        self._read_clock, self._clock_offset = clock_parts()
        self._thread = get_ident()
        self._numbers = numbers
        self.is_cancellable = cancellable
        """Whether `cancel` works."""
        self.core = core
        """For `Fallback` and `Remote`: what it is made of."""
        self._pending = core.pending
        self._schedule = core.pending.schedule
        self._alarm = core.pending.schedule.alarm
        self._inbox = self._schedule.inbox
        self._ledger = core.pending.ledger
        self._workers = core.workers
        self.hand_backs = HandBacks(core.pending, core.delivery)
        """For `Fallback`, which gives messages back to the primary while the queue runs."""
        self.admission = Admission(core.pending, numbers, core.workers.is_inside, core.keys)
        """For `Remote`, whose messages have their room already."""
        self.draining = Draining(core, self.admission, self.hand_backs)
        """For `Fallback`, which runs beside it, and for `Remote`."""
        self._ended_at: float | None = None

    def __repr__(self) -> str:
        return f"<localdelay.DelayQueue: {self._ledger}>"

    @trio.lowlevel.enable_ki_protection
    async def put(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
    ) -> Message:
        """Accept a message, waiting for room if the queue is full.

        `delay` is in seconds, or a `timedelta`; `at` is an aware datetime, and one in the past means now:
        give one of them. `at` means the wall clock, also where that is set or the machine sleeps meanwhile; a
        `delay` stays a delay. When it is due is decided at the call, not when room is found. What could only
        be sent more than `expires` (as a delay) past its execute-at is not sent, but given to the dead
        letters with `Expired`. Calls get room in their order. With a journal it returns when that has the
        message, and a cancellation meanwhile waits for the end of the commit; where the commit fails it
        raises `JournalError`, and the message is not accepted. Raises `QueueClosed`, and `TypeError` or
        `ValueError` for an argument that is wrong; an `id` that is pending already is wrong too.
        """
        await checkpoint_if_cancelled()  # imported by its name: to find it in `trio` took 2 % of a put
        admission = self.admission
        if not admission.is_kept:
            try:
                message = self.put_nowait(
                    payload, delay=delay, at=at, id=id, headers=headers, expires=expires
                )
            except QueueFull:
                pass
            else:
                await cancel_shielded_checkpoint()
                return message
        self._check_here()
        return await admission.accept_or_wait(admission.stamp(payload, delay, at, id, headers, expires))

    @trio.lowlevel.enable_ki_protection
    def put_nowait(
        self,
        payload: bytes,
        *,
        delay: Delay | None = None,
        at: datetime | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        expires: Delay | None = None,
    ) -> Message:
        """Accept a message, or raise `QueueFull` if there is no room or others wait for room.

        Else like `put`; but it waits for no journal. That has the message when `await flush()` has returned:
        until then it is at risk, as `statistics()` says.
        """
        # The common call is done right here, for a call costs as much as all the work of one of these
        # lines: `Admission.stamp`, `Ledger.try_reserve`, `Schedule.put` and the waking of the leader, in step
        # with what they do. Whatever is not common, or is to be refused, goes the long way. What is reserved
        # or coming is not looked at: with a journal there is no short way, and other threads, whose messages
        # are coming, put by their `Remote` alone. The thread is, for the long way asks Trio for the time,
        # which raises in another one, and this way does not.
        ledger = self._ledger
        if (
            type(payload) is bytes
            and (type(delay) is float or type(delay) is int)
            and 0 <= delay < LATEST
            and at is None
            and id is None
            and headers is None
            and expires is None
            and ledger.has_short_way
            and get_ident() == self._thread
            and ledger.pending < ledger.capacity
            and (pending_bytes := ledger.pending_bytes + len(payload)) <= ledger.limit_bytes
            and not ledger.waiters
        ):
            due = self._read_clock() + self._clock_offset + delay
            ledger.accepted += 1
            ledger.pending += 1
            ledger.pending_bytes = pending_bytes
            number = next(self._numbers)
            self._inbox.append((due, number, payload))
            if len(self._inbox) >= INBOX:
                self._schedule.sort_in()
            if due < self._alarm.until:
                self._alarm.ring()
            return Message(number, payload, due)
        self._check_here()
        return self.admission.accept(self.admission.stamp(payload, delay, at, id, headers, expires))

    @trio.lowlevel.enable_ki_protection
    async def hold(self, message: Message, timeout: float = 0.0) -> None:  # noqa: ASYNC109 (for room alone)
        """For `Fallback`, which has stamped and checked this message: take it in, with its id.

        Waits up to `timeout` seconds for room, and then raises `QueueFull`; without one, not at all. Returns
        when the journal has it, if there is one; else raises like `put`.
        """
        ledger = self._ledger
        entry = plain_entry(message) if timeout == 0 and ledger.has_short_way else None
        if entry is not None and ledger.has_room(size := len(entry[2])):
            # The common one, as in `put_nowait`: nothing is to be refused, and nobody to know of it first.
            ledger.accept(size)
            self._schedule.put(entry)
            await cancel_shielded_checkpoint()
            return
        stamped = self.admission.stamp_held(message)
        if timeout == 0:
            await self.admission.accept_safely(stamped)
            return
        with trio.move_on_after(timeout):
            await self.admission.accept_or_wait(stamped)
            return
        raise QueueFull(f"no room within {timeout} s")

    @trio.lowlevel.enable_ki_protection
    def cancel(self, id: str) -> bool:
        """Take a message out again.

        True: it will never be sent; should the process be killed before `flush` has returned, a journal may
        still bring it back. False: it is unknown, being sent, or finished. Raises `RuntimeError` if the queue
        was opened with `cancellable=False`.
        """
        number = self._waiting_number(id, "cancel")
        if number is None or not self._pending.cancel(number):
            return False
        self._look_again()
        return True

    @trio.lowlevel.enable_ki_protection
    def reschedule(self, id: str, *, delay: Delay | None = None, at: datetime | None = None) -> bool:
        """Give a message another execute-at, earlier or later: `delay` from now, or `at`, as for `put`.

        True: it has that, and is as new but for its attempts; should the process be killed before `flush` has
        returned, a journal may bring it back under the old one. False: it is unknown, being sent, or
        finished. Raises like `put` for a time that is wrong, and `RuntimeError` if the queue was opened with
        `cancellable=False`.
        """
        self._check_here()
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(trio.current_time(), delay, at, wall=wall)
        return self.move(id, due, arguments.terms(None, at))

    @trio.lowlevel.enable_ki_protection
    def move(self, id: str, due: float, terms: Terms | None) -> bool:
        """For `Remote`: `reschedule` to an instant on Trio's clock."""
        number = self._waiting_number(id, "reschedule")
        at = None if terms is None else terms[1]
        if number is None or not self._pending.reschedule(number, next(self._numbers), due, at):
            return False
        self._look_again()
        return True

    def _check_here(self) -> None:
        """Raise where nothing may be asked of it: `QueueClosed` in a forked child, else `RuntimeError`."""
        self.admission.check_process()
        self._check_thread()

    def _check_thread(self) -> None:
        if get_ident() != self._thread and self._ended_at is None:  # it would change under the loop's hands
            raise RuntimeError(
                "a queue of Trio's is for the thread that its loop runs in: from another one use "
                "trio.from_thread.run_sync, or open it by localdelay.threads"
            )

    def _waiting_number(self, id: str, what: str) -> int | None:
        self._check_here()
        if not self.is_cancellable:
            raise RuntimeError(f"{what} needs a queue that was opened with cancellable=True")
        return self._pending.number(id)

    def _look_again(self) -> None:
        if self.admission.closed:
            # It may have been the last one, for which the workers and the hand-backs of a drain wait.
            self._alarm.ring()
            self._schedule.later_arrived.unpark_all()

    @trio.lowlevel.enable_ki_protection
    def is_pending(self, id: str) -> bool:
        """Whether a message with this id is accepted and not finished.

        An id that the caller chose is pending also while its message waits for room.
        """
        self._check_thread()
        return self._pending.number(id) is not None

    def is_known(self, id: str) -> bool:
        """For `Fallback`: whether a message with this id is pending, as far as is known without waiting."""
        return self.is_pending(id)

    @trio.lowlevel.enable_ki_protection
    def messages(self) -> list[Message]:
        """Every pending message, in due order; a retry stands where its next send is.

        This takes about a microsecond for each of them, in which nothing else happens in the queue.
        """
        self._check_thread()
        return self._pending.messages()

    @trio.lowlevel.enable_ki_protection
    def pause(self) -> None:
        """Stop sending; sends that have begun go on, and puts are still accepted."""
        self._check_here()
        if self.admission.closed:
            raise QueueClosed("a queue that drains cannot be paused")
        self._workers.pause()

    @trio.lowlevel.enable_ki_protection
    def resume(self) -> None:
        """Go on sending."""
        self._check_here()
        self._workers.resume()

    @trio.lowlevel.enable_ki_protection
    def resize(
        self,
        *,
        capacity: int | None = None,
        workers: int | None = None,
        capacity_bytes: int | NotGiven | None = NOT_GIVEN,
    ) -> None:
        """Change the capacity (messages), the workers, or `capacity_bytes` (None: no limit).

        Nothing that is pending is lost and no send is interrupted: a queue that holds more than its new
        capacity accepts nothing until it holds less, and a worker too many leaves when it is idle. A put
        that waits with a message larger than the new `capacity_bytes` raises `ValueError`.
        """
        self._check_here()
        self.core.resize(capacity, workers, capacity_bytes)

    @trio.lowlevel.enable_ki_protection
    def statistics(self) -> Statistics:
        """What the queue holds and has done, and how late it was.

        It looks at each message that waits for a retry or is overdue: some milliseconds for 100,000 of them.
        """
        self._check_thread()
        now = trio.current_time() if self._ended_at is None else self._ended_at
        return Statistics(
            **self.core.figures(now, self._schedule.next_due()),
            puts_waiting=len(self._ledger.waiters),
            closed=self.admission.closed,
        )

    @trio.lowlevel.enable_ki_protection
    async def drain(self, grace: float | None = None, hand_back: HandBack | None = None) -> DrainReport:
        """Close the queue, empty it as far as the grace allows, end the workers, and say what became of all.

        `grace` is in seconds; None waits until all is sent. What comes due within it is sent on time; for
        the rest, `await hand_back(message, remaining_seconds)` is called at once, up to 100 at a time, as the
        limit allows, and again with the retry policy's waits where it fails. Whatever is still running at the
        end of the grace is cancelled. What is left then stays in the journal; without one it is in the
        report's `remaining`, and stays pending. What is to become of all is planned (`plan_drain`), logged
        and reported. A queue can be drained once: a second call raises `QueueClosed`, and one from inside a
        send or a hand-back `RuntimeError`. If the caller is cancelled meanwhile, the workers are ended at
        once, and everything unfinished is still in `messages()`. Without a grace there is nothing to hand
        back. Beyond the grace a journal that hangs is waited for, 5 s here and 10 s where the block is left;
        and the report takes as long as `messages()` where much remains.
        """
        seconds = arguments.check_seconds("grace", grace, zero=True)
        if hand_back is not None:
            arguments.check_async("hand_back", hand_back)
        self._check_here()
        return await self.draining.drain(seconds, hand_back)

    @trio.lowlevel.enable_ki_protection
    def cut_short(self) -> None:
        """End the grace of a drain that is under way, now; it returns what it returns at the end of one."""
        self.draining.cut_short()

    @trio.lowlevel.enable_ki_protection
    async def flush(self) -> None:
        """Wait until the journal has all that was accepted. Raises `JournalError` if it can't be written."""
        self._check_here()
        await self._pending.keeper.flush()

    @property
    def at_risk(self) -> int:
        """Messages that a crash right now would lose, as in `statistics()`."""
        return self._pending.keeper.at_risk[0]

    @property
    def limit(self) -> Limit | None:
        """For `Fallback`: what it shares unless it was given another."""
        return self.core.limit

    async def begin(self, nursery: trio.Nursery, journal: Journal | None) -> None:
        """For `open_delay_queue`: start the workers, and take in what the journal holds. `JournalError`."""
        self.draining.nursery = nursery
        forks.tell(self)
        held = [] if journal is None else await self.admission.open_journal(journal)
        valve = self._workers.valve
        if valve.pace.rate is None:
            nursery.start_soon(self._workers.run)
            await self.admission.recover(held)
        else:  # what is overdue must not go before all of it has its time
            await self.admission.recover(held)
            valve.catch_up(trio.current_time())
            nursery.start_soon(self._workers.run)

    def forget(self) -> None:
        """For `forks`: this is a forked child, in which nothing is to be sent."""
        self.admission.forget()
        self._workers.forget()

    async def leave(self) -> None:
        """For `open_delay_queue`: its block is left normally."""
        if self.admission.is_forked:
            self._workers.stop()
        else:
            await self.draining.leave()

    async def end(self) -> None:
        """For `open_delay_queue`: the workers have ended. Close the journal, and say what is left."""
        if self.admission.is_forked:
            return  # the journal is the parent's, too
        self.draining.close()
        await self._pending.keeper.close()
        self._pending.spool()
        self._ended_at = trio.current_time()
        left, size = self._ledger.pending, self._ledger.pending_bytes
        if left:
            is_lost = self._pending.keeper.unkept() is None
            why = "the journal is gone" if self.admission.is_kept else "`journal=PATH` keeps them"
            kept = f", lost with this process: {why}" if is_lost else ""
            line = "the queue was left with %s (%s) pending%s"
            log(logging.WARNING, line, counted(left, "message"), format_size(size), kept)
