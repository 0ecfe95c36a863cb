"""The life of a queue: its journal is opened, messages come back from there, it is drained, and it ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from operator import itemgetter

import trio

from localdelay.drain_plan import DrainPlan, plan_drain
from localdelay.entry import size_of
from localdelay.errors import JournalError, QueueClosed
from localdelay.journal.commits import Committer
from localdelay.journal.record import Journal
from localdelay.journal.recovery import recovered
from localdelay.limit import RateLimit
from localdelay.statistics import DrainReport

from . import draining as drain
from .admission import Admission
from .draining import HAND_BACKS_IN_FLIGHT, Grace
from .ids import Ids
from .ledger import Ledger
from .schedule import Schedule
from .sending import Delivery, HandBack
from .workers import Workers

logger = logging.getLogger("localdelay")
plan_logger = logging.getLogger("localdelay.drain")

_CHUNK = 2000  # recovered messages, between which other tasks run
_SPOOL_TIMEOUT = 5.0


class Life:
    """What happens to a queue as a whole, from its opening to its end."""

    def __init__(
        self,
        schedule: Schedule,
        ledger: Ledger,
        delivery: Delivery,
        workers: Workers,
        admission: Admission,
        ids: Ids,
        *,
        limit: RateLimit | None,
        batch: int,
    ) -> None:
        self._schedule = schedule
        self._ledger = ledger
        self._delivery = delivery
        self._workers = workers
        self._admission = admission
        self._ids = ids
        self._limit = limit
        self._batch = batch
        self._nursery: trio.Nursery | None = None
        self._beside: dict[trio.CancelScope, Callable[[], None]] = {}
        self._beside_ended = trio.lowlevel.ParkingLot()
        self._drained: trio.Event | None = None  # made when a drain begins, set when it has ended
        self._grace: Grace | None = None
        self.committer: Committer | None = None
        self.ended_at: float | None = None

    async def begin(
        self, nursery: trio.Nursery, journal: Journal | None, numbers: Iterator[int], rate: float | None
    ) -> None:
        """Start the workers; take in what the journal holds, if there is one. Raises `JournalError`."""
        self._nursery = nursery
        if journal is None:
            nursery.start_soon(self._run)
            return
        committer = Committer(journal)
        held = await committer.open(next(numbers))
        self.committer = self._delivery.committer = committer
        self._admission.use(committer)
        self._ledger.largest = journal.largest
        nursery.start_soon(self._run)
        pending = [kept for kept in held if kept[-1] is None]
        dead = len(held) - len(pending)
        del held
        pending.sort(key=itemgetter(1))  # by when they are due
        wall = time.time()
        now = trio.current_time()
        rest = iter(pending)
        while chunk := list(islice(rest, _CHUNK)):
            on_time, paced = recovered(chunk, wall=wall, now=now, rate=rate, before=self._ledger.recovered)
            self._admission.recover(on_time, paced)
            await trio.lowlevel.checkpoint()
        if pending or dead:
            line = "%d messages came back from the journal, %d of them overdue; it has %d dead letters"
            logger.info(line, len(pending), sum(kept[1] <= wall for kept in pending), dead)

    @trio.lowlevel.enable_ki_protection
    async def _run(self) -> None:
        await self._workers.run(self._delivery)

    def run_beside(self, run: Callable[[], Awaitable[None]], stop: Callable[[], None]) -> None:
        """Run this beside the workers. When nothing more is taken in, `stop` is called, and it is to end."""
        self._admission.check_open()
        assert self._nursery is not None  # noqa: S101 (it is open as long as the queue is)
        scope = trio.CancelScope()
        self._beside[scope] = stop
        self._nursery.start_soon(self._run_beside, run, scope)

    @trio.lowlevel.enable_ki_protection
    async def _run_beside(self, run: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            with scope:
                await run()
        finally:
            del self._beside[scope]
            self._beside_ended.unpark_all()

    async def drain(self, seconds: float, hand_back: HandBack | None) -> DrainReport:
        """See `DelayQueue.drain`."""
        if self._workers.has(trio.lowlevel.current_task()):
            raise RuntimeError("drain was called from inside a send, for which it would wait")
        if self._drained is not None:
            raise QueueClosed("the queue is drained already, or draining")
        self._drained = trio.Event()
        self._grace = grace = Grace(seconds)
        self._close()
        ledger = self._ledger
        before = (ledger.sent, ledger.handed_back, ledger.spooled, ledger.dead, ledger.cancelled)
        try:
            await self._end_beside(grace)
            await self._end_commits(grace)
            if grace.deadline < math.inf:
                self._schedule.set_horizon(grace.deadline)
            plan = self._plan(grace, hands_back=hand_back is not None)
            if grace.deadline < math.inf:
                plan_logger.info("draining, %s", plan)
            await drain.empty(
                self._schedule,
                self._delivery,
                self._workers,
                grace=grace,
                hand_back=hand_back,
                limit=self._limit,
            )
            await self._flush()
            self._spool()
        finally:
            # A cancellation may come before the workers are told to end; else this changes nothing.
            self._workers.stop()
            with trio.CancelScope(shield=True):
                await self._workers.finished.wait()
            self._drained.set()
        return DrainReport(
            plan=plan,
            sent=ledger.sent - before[0],
            handed_back=ledger.handed_back - before[1],
            spooled=ledger.spooled - before[2],
            dead=ledger.dead - before[3],
            cancelled=ledger.cancelled - before[4],
            remaining=self._delivery.messages(),
        )

    def cut_short(self) -> None:
        """The grace of a drain that is under way ends now."""
        if self._grace is not None:
            self._grace.end()

    async def leave(self) -> None:
        """Leave the block normally: a drain without a grace, unless there was or is one."""
        if self._drained is None:
            await self.drain(math.inf, None)
        else:
            await self._drained.wait()

    async def wait_drained(self) -> None:
        """Wait for the end of a drain that has begun."""
        if self._drained is not None:
            await self._drained.wait()

    async def end(self) -> None:
        """The workers have ended: close the journal, and say what is left."""
        self._close()
        if self.committer is not None:
            await self.committer.close()
            self._spool()
        self.ended_at = trio.current_time()
        if self._ledger.pending:
            logger.warning(
                "the queue was left with %d messages of %d bytes pending",
                self._ledger.pending,
                self._ledger.pending_bytes,
            )

    def _plan(self, grace: Grace, *, hands_back: bool) -> DrainPlan:
        now = trio.current_time()
        near, last_due = self._schedule.near()
        sends = self._delivery.send_time.summary()
        send_seconds = sends.sum / sends.count if sends.count else 0.0
        return plan_drain(
            pending=self._ledger.pending,
            due=near + self._ledger.sending,
            grace=max(0.0, grace.deadline - now),
            last_due_in=max(0.0, last_due - now),
            senders=self._workers.count * self._batch,
            send_seconds=send_seconds,
            hand_backs=HAND_BACKS_IN_FLIGHT if hands_back and grace.deadline < math.inf else 0,
            hand_back_seconds=send_seconds,
            rate=None if self._limit is None else self._limit.rate,
            tokens=0.0 if self._limit is None else max(0.0, self._limit.available),
            journal=self.committer is not None,
        )

    def _close(self) -> None:
        self._admission.close()
        for stop in self._beside.values():
            stop()

    async def _end_beside(self, grace: Grace) -> None:
        """Wait for what runs beside, and then end it: what it had in hand is the workers' again."""
        try:
            with grace.bound():
                while self._beside:
                    await self._beside_ended.park()
        finally:
            for scope in self._beside:
                scope.cancel()
            with trio.CancelScope(shield=True):
                while self._beside:
                    await self._beside_ended.park()

    async def _end_commits(self, grace: Grace) -> None:
        """Wait for the puts that have room already: with the end of their commits they are accepted."""
        if self.committer is not None:
            with grace.bound():
                while self._ledger.reserved:
                    await trio.lowlevel.checkpoint()  # what has just got its room has yet to begin its commit
                    await self.committer.written()

    async def _flush(self) -> None:
        if self.committer is not None:
            with trio.move_on_after(_SPOOL_TIMEOUT, shield=True):
                try:
                    await self.committer.flush()
                except JournalError as error:
                    logger.error("what is pending could not be written to the journal: %s", error)

    def _spool(self) -> None:
        """What the journal has is safe there, and pending no more; what it has not stays."""
        if self.committer is None:
            return
        left = self.committer.unkept()
        spooled = self._schedule.waiting + self._schedule.retrying - len(left)
        size = self._ledger.pending_bytes - sum(size_of(entry[2]) for entry in left)
        self._schedule.clear()
        self._ids.clear()
        for entry in left:
            self._ids.take(entry[1], entry[2])
            self._schedule.keep(*entry)
        self._ledger.spooled += spooled
        self._ledger.release(size, spooled)
