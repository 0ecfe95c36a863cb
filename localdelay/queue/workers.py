"""The pool of workers, who take turns to wait for the next due message.

Leader and followers (the pattern of java.util.concurrent.DelayQueue). One idle worker, the leader,
sleeps until the next message is due; the other idle ones, the followers, sleep without a timer. A worker
that has taken a message wakes one follower before it sends, and that one looks for the next message: it
takes it if it is due, and becomes the leader if it is not. So one timer is armed whatever the size of
the pool, and while sends return at once, one wake-up serves a whole run of due messages.

What must hold: while a worker is idle, either one of them leads or one is on its way to look ("stirred").
A worker that stops being idle, or leaves, therefore calls `_stir`; and the schedule, whose `alarm` is the
instant to which the leader sleeps, wakes it where a message comes in that is due earlier.

The leader may also be a worker that waits for company for its batch, or one whose turn is over and that lets
the other tasks run. Then what is due is "reserved": nobody else takes anything until it looks again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Protocol, runtime_checkable

import trio

from localdelay.entry import Entry
from localdelay.nurseries import is_within
from localdelay.timer import Timer, TimerKind, clock_parts, open_timer

from . import wall
from .sending import Delivery
from .taking import Taking
from .worker import Worker

_TURN = 1024
_TURN_SECONDS = 0.001
"""A worker whose sends never wait lets the other tasks run after so many sends, or seconds."""


@runtime_checkable
class BringsWorkers(Protocol):
    """A send whose calls run elsewhere than on the loop: it brings what feeds them."""

    def make_workers(self, taking: Taking, delivery: Delivery, timer: TimerKind, count: int) -> Workers:
        """The workers of a queue that has this send."""


class Workers:
    """The nursery of workers."""

    def __init__(self, taking: Taking, delivery: Delivery, timer: TimerKind, count: int) -> None:
        self._taking = taking
        self._delivery = delivery
        self._pending = taking.pending
        self._schedule = taking.pending.schedule
        self._batch = taking.batch
        self.valve = taking.valve
        """What lets messages go."""
        self._timer_kind: TimerKind = timer
        self._alarm = self._schedule.alarm
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._workers: set[Worker] = set()
        self._followers: dict[Worker, trio.lowlevel.Task] = {}
        self._leader: Worker | None = None
        self._stirred: Worker | None = None
        self._is_over = False
        self._pending.at_work = self.taken
        self.bring_in: Callable[[], bool] = bool  # which says False, as long as there is no other thread
        """Takes in what other threads have put; whether there was anything."""
        self.count = count
        self.finished = trio.Event()

    @property
    def paused(self) -> bool:
        """Whether no message is taken until `resume`."""
        return self._taking.is_paused

    @property
    def busy(self) -> int:
        """Workers that have messages in hand, which they send, give up, or gather company for."""
        return sum(bool(worker.entries) for worker in self._workers)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Keep the pool at work until `close` was called and nothing is left to take, or until `stop`."""
        self._alarm.timer = open_timer(self._timer_kind)
        try:
            with self._scope:
                async with trio.open_nursery() as watch:
                    watch.start_soon(self._watch)
                    watch.start_soon(wall.watch, self._pending)
                    async with trio.open_nursery() as self._nursery:
                        self._hire()
                    watch.cancel_scope.cancel()
        finally:
            self._nursery = None
            self.valve.wants_nothing()
            self._alarm.until = -math.inf
            self.finished.set()
            self._alarm.timer.close()
            self._alarm.timer = Timer()

    def is_inside(self) -> bool:
        """Whether the task that asks is a worker's, or runs in a nursery of one."""
        return is_within(self._nursery)

    def taken(self) -> Iterator[Entry]:
        """What the workers have taken and not settled yet."""
        return chain.from_iterable(worker.entries for worker in self._workers)

    def pause(self) -> None:
        """Take no message from now on; sends that have begun go on."""
        self._taking.bars.add("paused")
        self.valve.wants_nothing()
        self._alarm.ring()  # who gathers has messages that a keeper may let others send meanwhile

    def forget(self) -> None:
        """This is a forked child: take nothing any more."""
        # Nobody is woken: the child shares its parent's epoll, and would take the parent's timer out of it.
        self._taking.bars.add("paused")

    def resume(self) -> None:
        """Take messages again."""
        self._taking.bars.discard("paused")
        self._alarm.ring()

    def resize(self, count: int) -> None:
        """Change the number of workers; idle ones go first, and no send is interrupted."""
        self.count = count
        if not self._workers:
            return  # not begun, or ended
        self._hire()
        surplus = len(self._workers) - count
        while surplus > 0 and self._followers:
            self._wake_follower()
            surplus -= 1
        if surplus > 0:
            self._alarm.ring()

    def close(self) -> None:
        """Let the workers leave once the schedule is empty."""
        self._taking.close()
        self.resume()
        while self._followers:
            self._wake_follower()

    def stop(self) -> None:
        """End all at once: sends are cancelled, and their messages are pending again."""
        self._taking.bars.add("stopped")
        self._scope.cancel()

    def _hire(self) -> None:
        assert self._nursery is not None  # noqa: S101 (the callers have seen that it is open)
        for _ in range(self.count - len(self._workers)):
            worker = Worker()
            self._workers.add(worker)
            self._nursery.start_soon(self._work, worker)

    @trio.lowlevel.enable_ki_protection
    async def _work(self, worker: Worker) -> None:
        try:
            while worker in self._workers:
                # One scope serves many sends, for a scope a send costs more than all the rest of it. One that
                # the watchdog has cancelled is used up; it ends that cancellation, and another is opened.
                worker.timed_out = False
                with trio.CancelScope() as worker.scope:
                    await self._serve(worker)
        except BaseException:
            self.stop()  # or another worker would take the message that this one puts back, and send it
            raise
        finally:
            # What it has not settled is pending again; and if it led, or was to, somebody else has to.
            self._workers.discard(worker)
            self._put_back(worker)
            self._stir()

    async def _serve(self, worker: Worker) -> None:
        """Take due messages and send them until this worker is to leave or its scope is used up."""
        if worker.failure is not None:
            await self._delivery.settle(worker)
        read_clock, offset = clock_parts()
        now = began = read_clock() + offset
        turn = 0
        fill, deliver = self._taking.fill, self._delivery.deliver
        while not worker.timed_out:
            if len(self._workers) > self.count:
                self._workers.discard(worker)
                self._alarm.ring()  # who may wait for the probe that this one has sent last
                return
            full = fill(worker, now)
            if not worker.entries:
                # While something is being sent, it may fail, and then there is work for all again. That there
                # is none any more stays so: it is found out once, and not by each of thousands of workers.
                self._is_over = self._is_over or (
                    self._taking.closing and self._taking.is_done and not self.busy
                )
                if self._is_over:
                    self._workers.discard(worker)
                    self._alarm.ring()
                    return
                await self._wait(worker)
                now = began = read_clock() + offset
                turn = 0
                if now >= self.valve.next_mark:
                    self.valve.mark(now)
                continue
            if not full and self._batch.max_wait and not self._taking.closing:
                await self._gather(worker)
                now = began = read_clock() + offset
                if not worker.entries:
                    continue
            if self._leader is None and self._stirred is None and self._followers:
                self._stir()
            now = await deliver(worker, now)
            turn += 1
            if (turn == _TURN or now - began > _TURN_SECONDS) and not worker.timed_out:
                await self._pass_the_turn(worker)
                now = began = read_clock() + offset
                turn = 0

    async def _pass_the_turn(self, worker: Worker) -> None:
        """Let the other tasks run, and no other worker take a turn of its own in the same pass."""
        if self._leader is not None:
            await trio.lowlevel.checkpoint()
            return
        self._leader = worker
        self._taking.bars.add("reserved")
        try:
            await trio.lowlevel.checkpoint()  # cut off here it has nothing in hand
        finally:
            # Still this one: who gathers takes the lead over from others, but nobody can begin to meanwhile,
            # for while it is reserved nobody takes anything to gather company for.
            self._leader = None
            self._taking.bars.discard("reserved")

    async def _gather(self, worker: Worker) -> None:
        """Wait for company, as the leader, until the batch is full or its first message must go."""
        last_call = worker.entries[0][0] + self._batch.max_wait
        full = False
        while not full and not self._taking.closing and trio.current_time() < last_call:
            self._taking.bars.add("reserved")
            try:
                # Cut off here: what it has gathered stands in its `entries`, and is put back by `_work`.
                await self._lead(worker, last_call)
            finally:
                self._taking.bars.discard("reserved")
            if self._taking.bars or self.valve.probe.is_shut:
                self._taking.release(worker)
                return
            full = self._taking.fill(worker, trio.current_time())

    def _put_back(self, worker: Worker) -> None:
        for entry in worker.entries:
            self._pending.again(entry)
        worker.clear()

    def _until(self) -> float:
        """Until when there is nothing to do, with all that other threads have put; sets the alarm."""
        until = self._taking.until()
        # Now that the alarm is set, and not before: who puts after this look looks at that.
        if self.bring_in():
            until = self._taking.until()
            if self.bring_in():
                return 0.0  # at once: there may be more
        return until

    async def _lead(self, worker: Worker, at_most: float = math.inf) -> None:
        if self._leader is not None:
            self._alarm.ring()  # who gathers takes over from a leader that is about to wake anyway
        self._leader = worker
        try:
            # Cut off here, with all of the pool: nobody leads, and the alarm is off.
            await self._alarm.timer.sleep_until(min(at_most, self._until()))
        finally:
            if self._leader is worker:
                self._leader = None
                self._alarm.until = -math.inf

    async def _wait(self, worker: Worker) -> None:
        """Wait for a reason to look: as the leader until the next message is due, else for a turn."""
        if self._leader is None:
            await self._lead(worker)
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            # Only where nobody has woken it: one that was looks once, as was promised, before it is cut off.
            del self._followers[worker]
            return trio.lowlevel.Abort.SUCCEEDED

        self._followers[worker] = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)
        if self._stirred is worker:
            self._stirred = None

    def _stir(self) -> None:
        if self._leader is None and self._stirred is None and self._followers:
            self._stirred = self._wake_follower()

    def _wake_follower(self) -> Worker:
        worker, task = self._followers.popitem()
        trio.lowlevel.reschedule(task)
        return worker

    @trio.lowlevel.enable_ki_protection
    async def _watch(self) -> None:
        """End the sends that take too long."""
        if self._delivery.send_timeout < math.inf:
            await self._delivery.watchdog.run(self._workers)
