"""Draining: the queue takes nothing more, sends what comes due within the grace, and hands back the rest.

To leave the block is to drain without a grace. In this order, and each step bounded by the grace: puts are
refused; what runs beside the workers ends, so that what it holds is theirs again; puts that have room already
end their commits; the workers send what comes due before the horizon, the end of the grace, while what lies
beyond it is handed back; and the workers end. Only then is the journal told to write what is left, whatever
the grace, for a few seconds at most: who is killed meanwhile loses no more than by not trying. What it has is
spooled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from localdelay.drain_plan import UNSAID, DrainPlan, plan_drain, until_said_again, wait_said
from localdelay.entry import Entry, message_of, moved
from localdelay.errors import JournalError, QueueClosed
from localdelay.keeping import End
from localdelay.limit import RateLimit
from localdelay.logs import log
from localdelay.nurseries import bare_nursery, is_within
from localdelay.statistics import DrainReport

from .admission import Admission
from .core import Core
from .handing_back import HandBacks
from .pending import Pending
from .sending import HandBack
from .valve import TRIED

HAND_BACKS_IN_FLIGHT = 100

_PLANS = "localdelay.drain"
"""The logger of what a drain is going to do."""
_SPOOL_TIMEOUT = 5.0


def ended_inside(call: str = "drain") -> RuntimeError:
    """What to raise for a call that is made from inside what it would wait for."""
    return RuntimeError(f"{call} was called from inside a send or a hand-back, for which it would wait")


class Draining:
    """The drain of one queue. There is at most one."""

    def __init__(self, core: Core, admission: Admission, hand_backs: HandBacks) -> None:
        self._pending = core.pending
        self._schedule = core.pending.schedule
        self._workers = core.workers
        self._core = core
        self._admission = admission
        self._hand_backs = hand_backs
        self._limit = core.limit
        self.nursery: trio.Nursery
        """The queue's, while it is open."""
        self._beside: dict[trio.CancelScope, Callable[[], None]] = {}
        self._beside_ended = trio.lowlevel.ParkingLot()
        self._drained: trio.Event | None = None  # made when a drain begins, set when it has ended
        self._deadline = math.inf  # the end of its grace
        self._step = trio.CancelScope()  # that which is under way, and is bounded by that

    @trio.lowlevel.enable_ki_protection
    def run_beside(self, run: Callable[[], Awaitable[None]], stop: Callable[[], None]) -> None:
        """Run this beside the workers.

        When nothing more is taken in, `stop` is called, and it is to end; else it is cancelled.
        """
        self._admission.check_open()
        scope = trio.CancelScope()
        # At once: a drain that begins before the task does has to wait for it, too.
        self._beside[scope] = stop
        self.nursery.start_soon(self._run_beside, run, scope)

    @trio.lowlevel.enable_ki_protection
    async def _run_beside(self, run: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            with scope:
                await run()
        finally:
            del self._beside[scope]
            self._beside_ended.unpark_all()

    def close(self) -> None:
        """Take in nothing any more."""
        self._admission.close()
        for stop in self._beside.values():
            stop()

    def cut_short(self) -> None:
        """The grace of a drain that is under way ends now."""
        if self._drained is not None:
            self._deadline = self._step.deadline = min(self._deadline, trio.current_time())

    @contextmanager
    def _within_grace(self) -> Iterator[None]:
        """A step that is cancelled at the end of the grace."""
        with trio.CancelScope(deadline=self._deadline) as self._step:
            yield

    async def wait_drained(self) -> None:
        """Wait for the end of a drain that has begun."""
        if self._drained is not None:
            await self._drained.wait()

    async def leave(self) -> None:
        """Leave the block normally: a drain without a grace, unless there was or is one."""
        if self._drained is None:
            await self.drain(math.inf, None)
        else:
            await self.wait_drained()

    async def drain(self, seconds: float, hand_back: HandBack | None) -> DrainReport:
        """Empty the queue as far as `seconds` allow, end the workers, and say what became of all."""
        # The workers run there, and what runs beside them: who waits for these must be neither.
        if is_within(self.nursery):
            raise ended_inside()
        if self._drained is not None:
            raise QueueClosed("the queue is drained already, or draining")
        self._drained = trio.Event()
        self._deadline = trio.current_time() + seconds
        self.close()
        before = list(self._pending.ledger.ended)
        try:
            await self._end_beside()
            await self._end_commits()
            if self._deadline < math.inf:
                self._schedule.set_horizon(self._deadline)
            # Cut off up to here: nothing has left the order, and `messages()` says what is left.
            plan = self._plan(hands_back=hand_back is not None)
            if self._deadline < math.inf:
                log(logging.INFO, "draining, %s", plan, to=_PLANS)
            await self._empty(hand_back)
            await self._flush()
            self._pending.spool()
        finally:
            # A cancellation may come before the workers are told to end; else this changes nothing.
            await self._stop()
            self._drained.set()
        return report_of(plan, before, self._pending)

    async def _end_beside(self) -> None:
        """Wait for what runs beside, and then end it: what it had in hand is the workers' again."""
        try:
            with self._within_grace():
                while self._beside:
                    await self._beside_ended.park()
        finally:
            for scope in self._beside:
                scope.cancel()
            with trio.CancelScope(shield=True):
                while self._beside:
                    await self._beside_ended.park()

    async def _end_commits(self) -> None:
        """Wait for the puts that have room already: with the end of their commits they are accepted."""
        with self._within_grace():
            while self._pending.ledger.reserved:
                await trio.lowlevel.checkpoint()  # a put that was refused has yet to give its room back
                await self._pending.keeper.written()

    def _plan(self, *, hands_back: bool) -> DrainPlan:
        now = trio.current_time()
        ledger, limit = self._pending.ledger, self._limit
        near, last_due = self._schedule.near()
        sends = self._core.delivery.send_time.summary()
        send_seconds = sends.sum / sends.count if sends.count else 0.0
        rate = self._core.delivery.valve.limit_rate
        if rate is not None and limit is not None and limit.adapts:
            rate = max(rate, TRIED)
        return plan_drain(
            pending=ledger.pending,
            due=near + self._schedule.taken,
            grace=max(0.0, self._deadline - now),
            last_due_in=max(0.0, last_due - now),
            senders=self._workers.count * self._core.batch_most,
            send_seconds=send_seconds,
            hand_backs=HAND_BACKS_IN_FLIGHT if hands_back and self._deadline < math.inf else 0,
            hand_back_seconds=send_seconds,
            rate=rate,
            tokens=max(0.0, limit.available) if isinstance(limit, RateLimit) else 0.0,
            journal=self._pending.keeper.unkept() is not None,
        )

    async def _empty(self, hand_back: HandBack | None) -> None:
        """Let the workers send what comes due within the grace, and end them.

        What lies beyond the schedule's horizon is handed back at once, many in flight. Returns
        as soon as nothing more can be done, and at the end of the grace at the latest: whatever is still
        running then is cancelled and pending again. The same goes for a caller that is cancelled meanwhile.
        """
        self._pending.is_given_away = hand_back is not None
        self._workers.close()
        in_line = trio.Lock()
        try:
            with self._within_grace():
                async with bare_nursery() as nursery:
                    if hand_back is not None:
                        for _ in range(HAND_BACKS_IN_FLIGHT):
                            nursery.start_soon(self._give_away, hand_back, in_line)
                    saying = trio.CancelScope()
                    if self._deadline == math.inf:
                        nursery.start_soon(self._say, saying)
                    await self._workers.finished.wait()
                    saying.cancel()
                    self._schedule.later_arrived.unpark_all()  # who hands back sees that no more comes
        finally:
            await self._stop()

    async def _say(self, saying: trio.CancelScope) -> None:
        """Say what is waited for without a bound, where that takes a while: at once, and now and then."""
        with saying:
            began = trio.current_time()
            while True:
                waited = trio.current_time() - began
                plan = self._plan(hands_back=False)
                is_said = plan.pending > 0 and max(plan.seconds, waited) >= UNSAID
                if is_said:
                    size = self._pending.ledger.pending_bytes
                    log(logging.WARNING, "%s", wait_said(plan, size, time.time()), to=_PLANS)
                await trio.sleep(until_said_again(waited) if is_said else UNSAID)

    @trio.lowlevel.enable_ki_protection
    async def _give_away(self, hand_back: HandBack, in_line: trio.Lock) -> None:
        """Hand back what lies beyond the horizon, until nothing does and nothing more can come there."""
        schedule = self._schedule
        while True:
            entry = await self._next_allowed(in_line)
            if entry is not None:
                await self._hand_backs.give_or_put_off(entry, hand_back)
                await trio.lowlevel.checkpoint()  # for it may not have waited, and then nobody else would run
                continue
            next_later = schedule.next_later()
            if self._workers.finished.is_set() and next_later == math.inf:
                return
            if not self._pending.has_to_give:
                schedule.alarm.ring()  # the workers stay until then
            with trio.CancelScope(deadline=next_later):
                await schedule.later_arrived.park()

    async def _next_allowed(self, in_line: trio.Lock) -> Entry | None:
        """Take out what is to be handed back next, as soon as the limit allows, if there is anything.

        Sends of due messages, which may owe the limit tokens, come first.
        """
        limit = self._limit
        if limit is None:
            return self._pending.lend_later(trio.current_time())
        if self._core.keys is not None:
            return await self._next_of_any_key()
        async with in_line:  # or all of them would wake for each token
            # What is there may come due or be cancelled meanwhile: then no token is taken for it.
            while (  # noqa: ASYNC110 (nobody can tell when others take the next token)
                self._schedule.has_later(now := trio.current_time()) and not limit.try_acquire()
            ):
                await trio.sleep(limit.wait)
            # By the same time: what was put off, and is due a moment later, has no token.
            entry = self._pending.lend_later(now)
            if entry is not None and limit.cost is not None:
                limit.owe(limit.price(message_of(entry), True) - 1)
            return entry

    async def _next_of_any_key(self) -> Entry | None:
        """The same by key: what a limit does not let go is put off, so that it holds up no other key's."""
        schedule, valve = self._schedule, self._core.delivery.valve
        while (entry := self._pending.lend_later(now := trio.current_time())) is not None:
            when = valve.of([entry]).next_hand_back(entry, now)
            if when <= now:
                return entry
            if when < schedule.horizon:
                self._pending.again(moved(entry, when), schedule.put_off)
            else:
                self._pending.again(entry, schedule.set_aside)
            await trio.lowlevel.checkpoint()  # for they may be many
        return None

    async def _stop(self) -> None:
        """End the workers at once; what they held is pending again."""
        self._workers.stop()
        with trio.CancelScope(shield=True):
            await self._workers.finished.wait()

    async def _flush(self) -> None:
        with trio.move_on_after(_SPOOL_TIMEOUT, shield=True):
            try:
                await self._pending.keeper.flush()
            except JournalError as error:
                log(logging.ERROR, "what is pending could not be written to the journal: %s", error)


def report_of(plan: DrainPlan, before: Sequence[int], pending: Pending) -> DrainReport:
    """What has become of all since `before`, which is what the ledger said had ended by then."""
    ended = [now - then for now, then in zip(pending.ledger.ended, before, strict=True)]
    return DrainReport(
        plan=plan,
        sent=ended[End.SENT],
        handed_back=ended[End.HANDED_BACK],
        spooled=ended[End.SPOOLED],
        dead=ended[End.DEAD],
        cancelled=ended[End.CANCELLED],
        remaining=pending.messages(),
    )
