"""A delay queue on a Trio loop in a thread of its own, as every other thread sees it.

What is put comes to it by its `Intake`. All else is done on the loop, after all that was put before.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from datetime import datetime
from os import PathLike
from typing import Any, Required, TypeVar

import trio

from localdelay import arguments, forks
from localdelay.arguments import LATEST, Delay
from localdelay.errors import QueueClosed, QueueFull
from localdelay.fallback.router import World
from localdelay.hops import for_a_thread
from localdelay.journal.record import Journal
from localdelay.keys import Key
from localdelay.logs import log, told
from localdelay.message import Message, number_of
from localdelay.nurseries import bare_nursery
from localdelay.queue.admission import Stamped, already_pending, full_inside, stamp
from localdelay.queue.core import CoreOptions
from localdelay.queue.queue import DelayQueue
from localdelay.queue.sending import HandBack
from localdelay.statistics import DrainReport
from localdelay.timer import clock_parts
from localdelay.worlds import check_threads

from . import exits
from .calls import Call, Cut, EachThreads
from .intake import Intake
from .movable import MovableClock

_T = TypeVar("_T")


class Options(CoreOptions, total=False):
    """What the faces' queues are opened with as `localdelay.open_delay_queue` is."""

    capacity: Required[int]
    cancellable: bool
    catch_up_rate: float | None
    key: Key | None
    journal: Journal | str | PathLike[str] | None


class Remote:
    """One queue and its thread. Every method may be called from any thread but the loop's own."""

    def __init__(
        self,
        opened: Callable[[], AbstractAsyncContextManager[DelayQueue]],
        is_inside: Callable[[], bool],
        *,
        drain_on_exit: float | None,
        clock: MovableClock | None,
    ) -> None:
        arguments.check_kind("clock", clock, MovableClock | None, "a MovableClock or None")
        self._test_clock = clock
        self.is_inside = is_inside  # whether this is asked from inside a send, or a hook
        self._drain_on_exit = arguments.check_seconds("drain_on_exit", drain_on_exit, zero=False)
        self._opened = opened
        self.intake = Intake()
        """How messages come in."""
        self._ended = False
        self._numbers = EachThreads()
        self._is_open: Future[None] = Future()
        self.ended: Future[None] = Future()
        """When the thread has ended, and what it failed with."""
        self.clock: Callable[[], float]
        """The loop's clock, in seconds, to be read from any thread."""
        self.queue: DelayQueue
        """The queue, for its loop's thread."""
        self._read_clock: Callable[[], float]
        self._offset: float
        self._latest: float  # a delay below it goes the short way: none where each message has a key
        self._scope: trio.CancelScope
        self._token: trio.lowlevel.TrioToken
        self._calls: trio.Nursery
        self._leave: trio.Event
        self._thread = threading.Thread(target=self._run, name="localdelay", daemon=True)

    def start(self) -> Future[None]:
        """Start the thread. What is returned is done when the queue is open, or fails as opening it does."""
        check_threads()
        self._thread.start()
        return self._is_open

    def runs(self) -> bool:
        """Whether its thread has begun, and has not ended; where `start` was interrupted it may begin yet."""
        return self._thread.is_alive()

    def stamp(
        self,
        payload: bytes,
        delay: Delay | None,
        at: datetime | None,
        id: str | None,
        headers: Mapping[str, str] | None,
        expires: Delay | None,
        *,
        asks: float | None = math.inf,
    ) -> Stamped:
        """Check the arguments of a put, and fix when its message is due and how it is called."""
        if (
            at is None
            and id is None
            and headers is None
            and expires is None
            and type(payload) is bytes
            and (type(delay) is float or type(delay) is int)
            and 0 <= delay < self._latest
        ):  # the common call, in a third of the time
            number, due = self._numbers.take(), self._read_clock() + self._offset + delay
            return Message(number, payload, due), (due, number, payload), len(payload)
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(self.clock(), delay, at, wall=wall)
        terms = arguments.terms(expires, at)
        chosen = None if id is None else self._check_id(id, asks)  # None: the caller asks the loop
        payload, keys = arguments.check_payload(payload), self.queue.core.keys
        return stamp(self._numbers.take(), payload, due, chosen, headers, terms, keys)

    def reschedule(self, id: str, delay: Delay | None, at: datetime | None) -> Callable[[], bool]:
        """Check the arguments of a `reschedule`, and return what is to be asked."""
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(self.clock(), delay, at, wall=wall)
        return lambda: self.queue.move(id, due, arguments.terms(None, at))

    def accept_or_wait(self, stamped: Stamped, *, waits: bool) -> Call[Message] | None:
        """Accept what was stamped, now (None) or as soon as there is room, behind all who wait already.

        Unless it `waits` for that it raises `QueueFull`. Where there is a journal the call ends when that has
        the message.
        """
        if not self.queue.admission.is_kept:
            if self.intake.try_accept(stamped):
                return None
        elif self.intake.try_accept(stamped, comes=False):
            return self.begin(lambda: self.intake.commit(stamped))
        with self.intake.lock:
            self.intake.check_open()
            if not waits or self.is_inside():
                ledger = self.intake.ledger
                raise full_inside(ledger) if waits else QueueFull(ledger.describe())
            self.intake.line_up(stamped)
            return self.begin(lambda: self.intake.wait_for_room(stamped))

    def put(self, stamped: Stamped, timeout: float) -> Message:
        """Accept what was stamped, blocking for room, for `timeout` seconds at most; then `QueueFull`."""
        if self._is_here():  # nobody could wait on its own loop, on which nothing runs but sends and hooks
            if not self.intake.try_accept(stamped):
                raise full_inside(self.intake.ledger)
            return stamped[0]
        if (call := self.accept_or_wait(stamped, waits=timeout > 0)) is None:
            return stamped[0]
        try:
            return call.done.result(for_a_thread(timeout) if timeout > 0 else None)
        except TimeoutError:
            self.cancel(call)
            try:
                return call.done.result()
            except Cut:
                raise QueueFull(f"no room within {timeout:g} s") from None
        except BaseException:
            self.cancel(call)
            raise

    def ask(self, act: Callable[[], _T], within: float = math.inf) -> _T:
        """Do this on the loop, after all that was put before, and wait for it so long: `TimeoutError`."""
        return act() if self.is_alone() else self.wait(lambda: self.begin(act), within)

    def is_alone(self) -> bool:
        """Whether its thread is gone, and any other may be at the queue. `QueueClosed` in a forked child."""
        if self.intake.is_forked:
            raise forks.not_ours()
        return self._ended

    def check_elsewhere(self) -> None:
        """Raise a `RuntimeError` on the queue's own loop: nothing can be waited for there."""
        if self._is_here():
            raise RuntimeError("this was called on the queue's own loop, which it would wait for")

    def wait(self, begin: Callable[[], Call[_T]], within: float = math.inf) -> _T:
        """Wait for what comes of what this begins; an interrupted caller cancels it."""
        self.is_alone()
        self.check_elsewhere()
        call = begin()
        try:
            return call.done.result(for_a_thread(within))
        except BaseException:
            self.cancel(call)
            raise

    def drain(self, grace: float | None, hand_back: HandBack | None = None) -> Call[DrainReport]:
        """Begin to drain; no more is put from now on."""
        self.close()
        return self.begin(lambda: self.queue.drain(grace, hand_back))

    def begin(self, act: Callable[[], _T | Awaitable[_T]]) -> Call[_T]:
        """Have this done on the loop, after all that was put before; an async function may take its time."""
        call: Call[_T] = Call(act)
        try:
            if self._ended:
                raise trio.RunFinishedError
            self._token.run_sync_soon(self._begin, call)
        except trio.RunFinishedError:
            is_forked = self.intake.is_forked
            call.done.set_exception(forks.not_ours() if is_forked else QueueClosed("the queue has ended"))
        except BaseException:
            # An interrupt, and nobody can tell whether the loop has heard of it. What was claimed for it must
            # not stay so: there it begins now at the latest, and is cut off.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._cut, call)
            raise
        return call

    def cancel(self, call: Call[Any]) -> None:
        """Cancel a call; what has come of it by then is in its future."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call.scope.cancel)

    def close(self) -> None:
        """Take no more messages. Those that were accepted arrive."""
        if not self.intake.close() and (clock := self._test_clock) is not None:
            # From here on the test waits for the queue, and can't move it.
            _: Call[None] = self.begin(lambda: clock.run_on(self.queue.core.workers.finished.wait))

    def leave(self, *, at_once: bool) -> None:
        """Have the queue end as leaving its block does, normally or by an exception; then `ended` is set."""
        if sys.is_finalizing():
            return  # the interpreter takes its objects apart, and lets no thread run that holds a lock

        def leave(_: Future[None]) -> None:
            self.close()
            if not self._ended:
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._scope.cancel if at_once else self._leave.set)

        # Now; but one that is not open yet can't be told anything, and must not stay when nobody is there.
        self._is_open.add_done_callback(leave)

    def drop(self) -> None:
        """Have the queue end at once, and wait for nothing: who had it has dropped it without a word."""
        costs_nothing = self._ended or sys.is_finalizing()
        self.leave(at_once=True)
        if not costs_nothing:
            line = "a queue was dropped without close(), and ends: keep it for as long as it is to send"
            log(logging.WARNING, line)

    def result(self) -> None:
        """Wait for the end, and for that of the thread; raise what it failed with."""
        if sys.is_finalizing() or not (self.runs() or self.ended.done()):
            return
        try:
            self.ended.result()
        finally:
            if self.ended.done():  # and not Ctrl-C, who would have to wait for all of it
                self._thread.join()

    def wait_ended(self) -> None:
        """Wait for the end, whatever it comes to: somebody else has it raised."""
        if not sys.is_finalizing():
            self.ended.exception()

    def pending(self) -> tuple[int, int]:
        """Messages that are accepted and not finished, and their bytes, nearly: others go on meanwhile."""
        ledger = self.intake.ledger
        return ledger.pending + ledger.coming, ledger.pending_bytes + ledger.coming_bytes

    def world(self, hand_back: HandBack) -> World:
        """Where a fallback before this queue lives; what is to call its primary, awaited on the loop."""
        queue = self.queue
        return World(self.clock, lambda: self.at_risk()[0], queue.limit, queue, hand_back, self.begin)

    def at_risk(self) -> tuple[int, int]:
        """Those of them that a crash would lose, and their bytes."""
        at_risk, at_risk_bytes = self.queue.core.pending.keeper.at_risk
        return at_risk + self.intake.ledger.coming, at_risk_bytes + self.intake.ledger.coming_bytes

    def drain_on_exit(self) -> None:
        """Drain it, for as long as its user has allowed, if he has."""
        grace = self._drain_on_exit
        if grace == math.inf:
            return
        drained = self.drain(grace).done
        try:
            drained.result(for_a_thread(grace + 1.0))
        except QueueClosed:
            # It is draining already, and that may have the time.
            waiting: Call[None] = self.begin(self.queue.draining.wait_drained)
            waiting.done.result(for_a_thread(grace))

    def forget(self) -> None:
        """This is a forked child, in which the thread is missing."""
        self.intake.forget()
        self.ended = Future()  # who waits for the parent's is told on a loop, whose lock may be held likewise
        self._end(None)

    def _check_id(self, id: str, asks: float | None) -> str:
        chosen = arguments.check_id(id)
        is_known = self.intake.is_chosen(chosen)
        if asks is not None and number_of(chosen) is not None and not is_known:
            try:
                is_known = self.ask(lambda: self.queue.is_pending(chosen), asks)
            except TimeoutError:
                told = f"the queue is too busy to say within {asks:g} s whether id {chosen!r} is pending"
                raise QueueFull(f"{told}: await put") from None
        if is_known:
            raise already_pending(chosen)
        return chosen

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _begin(self, call: Call[Any]) -> None:
        self.intake.bring_in(math.inf)
        call.begin(self._calls)

    def _cut(self, call: Call[Any]) -> None:
        call.scope.cancel()
        if not call.has_begun:
            self._begin(call)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            trio.run(self._serve, clock=self._test_clock, restrict_keyboard_interrupt_to_checkpoints=True)
        except BaseException as raised:  # noqa: BLE001 (raised where somebody waits for it)
            error = raised
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        if error is not None and self._is_open.done():  # maybe nobody waits for it, and puts find it shut
            log(logging.ERROR, "the queue has ended by an error: %s", told(error))
        exits.leave(self)
        self.intake.close()
        self._ended = True
        for future in (self.ended, self._is_open):
            if not future.done():
                future.set_result(None) if error is None else future.set_exception(error)

    async def _serve(self) -> None:
        self._leave = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._read_clock, self._offset = read_clock, offset = clock_parts()
        self.clock = lambda: read_clock() + offset
        async with bare_nursery() as self._calls:
            with trio.CancelScope() as self._scope:
                async with self._opened() as self.queue:
                    self.intake.open(self.queue, self._token.run_sync_soon)
                    self._latest = LATEST if self.queue.core.keys is None else -math.inf
                    exits.watch(self)
                    forks.tell(self)
                    self._is_open.set_result(None)
                    try:
                        await self._leave.wait()
                    finally:
                        self.close()
                        self.intake.bring_in(math.inf)  # what was accepted is in the queue when it ends
            self._calls.cancel_scope.cancel()
