"""A delay queue on a Trio loop in a thread of its own, as every other thread sees it.

Messages and calls come over in one list, in their order, and what has gathered between two turns of the
loop comes over at once: a hop a message would cost ten times the message. A message is accepted in the
thread that puts it. What is on its way to the loop counts as pending there, and whoever waits for room does
so on the loop: while somebody does, nothing is accepted past him. So the loop has room for all that arrives.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from typing import Any, Generic, TypeVar

import trio

from localdelay import arguments
from localdelay.entry import chosen_id
from localdelay.errors import LocalDelayError, QueueClosed, QueueFull
from localdelay.message import Message, number_of, numbers
from localdelay.nurseries import bare
from localdelay.queue.admission import Stamped, already_pending, stamp
from localdelay.queue.ledger import Ledger
from localdelay.queue.queue import DelayQueue, open_delay_queue
from localdelay.timer import clock_parts

from . import exits

_T = TypeVar("_T")

_AT_ONCE = 512
"""So much comes over in one turn of the loop: what is due must not wait for it."""


class Cut(LocalDelayError):
    """The call was cancelled before it had done anything."""


class Call(Generic[_T]):
    """Something to be done on the loop, and what came of it."""

    def __init__(self, act: Callable[[], _T | Awaitable[_T]]) -> None:
        self._act = act
        self.scope = trio.CancelScope()
        self.done: Future[_T] = Future()

    def begin(self, nursery: trio.Nursery) -> None:
        """Do it, or begin to. On the loop."""
        try:
            result = self._act()
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            self.done.set_exception(error)
            return
        if isinstance(result, Awaitable):
            try:
                nursery.start_soon(self._finish, result)
            except RuntimeError:  # the block has been left meanwhile
                result.close()  # type: ignore[union-attr]  # a coroutine
                self.done.set_exception(QueueClosed("the queue has ended"))
        else:
            self.done.set_result(result)

    async def _finish(self, result: Awaitable[_T]) -> None:
        failure: BaseException = Cut("cancelled")
        try:
            with self.scope:
                self.done.set_result(await result)
                return
        except Exception as error:  # noqa: BLE001 (raised where it is waited for)
            failure = error
        except BaseException:
            failure = QueueClosed("the queue has ended")
            raise
        finally:
            if not self.done.done():
                self.done.set_exception(failure)


class Remote:
    """One queue and its thread. Every method may be called from any thread but the loop's own."""

    def __init__(self, *, drain_on_exit: float | None, **options: Any) -> None:
        self._drain_on_exit = arguments.check_seconds("drain_on_exit", drain_on_exit, zero=False)
        self._options = options
        self._lock = threading.RLock()  # a handler of signals may come in the midst of a put
        self._arrivals: deque[Stamped | Call[Any]] = deque()
        self._called = False  # whether the loop knows that there is something
        self._sent_over = 0  # messages; `_arrived` of them are in the queue
        self._sent_over_bytes = 0
        self._arrived = 0
        self._arrived_bytes = 0
        self._waiting = 0  # puts that wait for room
        self._chosen: set[str] = set()  # ids on their way
        self._closed = False
        self._ended = False
        self._forked = False
        self._numbers = numbers()
        self._ready = threading.Event()
        self.ended: Future[None] = Future()
        """When the thread has ended, and what it failed with."""
        self._queue: DelayQueue
        self._ledger: Ledger
        self._scope: trio.CancelScope
        self._token: trio.lowlevel.TrioToken
        self._calls: trio.Nursery
        self._leave: trio.Event
        self._clock: Callable[[], float]
        self._thread = threading.Thread(target=self._run, name="localdelay", daemon=True)

    def start(self) -> None:
        """Start the thread, and return when the queue is open. Raises as `open_delay_queue` does."""
        self._thread.start()
        self._ready.wait()
        if self.ended.done():
            self.ended.result()

    @property
    def clock(self) -> Callable[[], float]:
        """The loop's clock, in seconds, to be read from any thread."""
        return self._clock

    @property
    def queue(self) -> DelayQueue:
        """The queue, for its loop's thread."""
        return self._queue

    def stamp(
        self,
        payload: bytes,
        delay: float | None,
        at: datetime | None,
        id: str | None,
        headers: Mapping[str, str] | None,
    ) -> Stamped:
        """Check the arguments of a put, and fix when its message is due and how it is called."""
        wall = arguments.wall_clock(at)
        due = arguments.execute_at(self._clock(), delay, at, wall=wall)
        if id is not None:
            arguments.check_id(id)
            if number_of(id) is not None and self.ask(lambda: self._queue.is_pending(id)):
                raise already_pending(id)
            if self._is_known(id):
                raise already_pending(id)
        return stamp(self._next_number(), arguments.check_payload(payload), due, id, headers)

    def accept(self, stamped: Stamped) -> Message:
        """Accept what was stamped, or raise `QueueFull`, `QueueClosed` or `ValueError`."""
        self._ledger.check_size(stamped[3])
        with self._lock:
            if not self._try_claim(stamped):
                raise QueueFull(self._ledger.describe())
            self._send_over(stamped)
        return stamped[0]

    def accept_or_wait(self, stamped: Stamped, *, waits: bool) -> Call[Message] | None:
        """Accept what was stamped, now (None) or as soon as there is room, behind all who wait already.

        Unless it `waits` for that it raises `QueueFull`. Where there is a journal the call ends when that has
        the message.
        """
        self._ledger.check_size(stamped[3])
        chosen = chosen_id(stamped[2])

        async def wait() -> Message:
            try:
                return await self._queue.admission.accept_or_wait(stamped)
            finally:
                with self._lock:
                    self._chosen.discard(chosen)
                    self._waiting -= 1

        async def commit() -> Message:
            try:
                self._arrived += 1
                self._arrived_bytes += stamped[3]
                return await self._queue.admission.accept_claimed(stamped)
            finally:
                self._chosen.discard(chosen)

        with self._lock:
            if self._try_claim(stamped):
                if not self._queue.is_kept:
                    self._send_over(stamped)
                    return None
                call: Call[Message] = Call(commit)
            elif waits:
                self._claim_id(chosen)
                self._waiting += 1
                call = Call(wait)
            else:
                raise QueueFull(self._ledger.describe())
            self._send_over(call)
        return call

    def put(self, stamped: Stamped, timeout: float) -> Message:
        """Accept what was stamped, blocking for room, for `timeout` seconds at most; then `QueueFull`."""
        if self._is_here():
            return self.accept(stamped)  # on its own loop nobody could wait
        call = self.accept_or_wait(stamped, waits=timeout > 0)
        if call is None:
            return stamped[0]
        try:
            return call.done.result(timeout if 0 < timeout < math.inf else None)
        except TimeoutError:
            self.cancel(call)
            try:
                return call.done.result()
            except Cut:
                raise QueueFull(f"no room within {timeout:g} s") from None
        except BaseException:
            self.cancel(call)
            raise

    def ask(self, act: Callable[[], _T]) -> _T:
        """Do this on the loop, after all that was put before, and wait for what it returns."""
        if self._forked:
            raise QueueClosed("this is a forked child: the queue is with its parent")
        if self._ended:
            return act()  # its thread is gone, and nobody else is at the queue
        if self._is_here():
            raise RuntimeError("this was called on the queue's own loop, which it would wait for")
        return self.begin(act).done.result()

    def drain(self, act: Callable[[], Awaitable[_T]]) -> Call[_T]:
        """Begin to drain; no more is put from now on."""
        self.close()
        return self.begin(act)

    def begin(self, act: Callable[[], _T | Awaitable[_T]]) -> Call[_T]:
        """Have this done on the loop, after all that was put before; an async function may take its time."""
        call: Call[_T] = Call(act)
        with self._lock:
            if self._ended:
                call.done.set_exception(QueueClosed("the queue has ended"))
            else:
                self._send_over(call)
        return call

    def cancel(self, call: Call[Any]) -> None:
        """Cancel a call; what has come of it by then is in its future."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call.scope.cancel)

    def close(self) -> None:
        """Take no more messages. Those that were accepted arrive."""
        with self._lock:
            self._closed = True

    def leave(self, *, at_once: bool) -> None:
        """Have the queue end as leaving its block does, normally or by an exception; then `ended` is set."""
        if sys.is_finalizing():
            return  # the interpreter takes its objects apart, and lets no thread run that holds a lock
        self.close()
        if self._ended:
            return
        act = self._scope.cancel if at_once else self._leave.set
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(act)

    def result(self) -> None:
        """Wait for the end, and for that of the thread; raise what it failed with."""
        if sys.is_finalizing():
            return
        try:
            self.ended.result()
        finally:
            self._thread.join()

    def pending(self) -> tuple[int, int]:
        """Messages that are accepted and not finished, and their bytes, nearly: others go on meanwhile."""
        ledger = self._ledger
        return (
            ledger.pending + self._sent_over - self._arrived,
            ledger.pending_bytes + self._sent_over_bytes - self._arrived_bytes,
        )

    def at_risk(self) -> tuple[int, int]:
        """Those of them that a crash would lose, and their bytes."""
        at_risk, at_risk_bytes = self._queue.keeper.at_risk
        return (
            at_risk + self._sent_over - self._arrived,
            at_risk_bytes + self._sent_over_bytes - self._arrived_bytes,
        )

    def drain_on_exit(self) -> None:
        """See `exits.Running`."""
        grace = self._drain_on_exit
        if grace == math.inf:
            return
        drained = self.drain(lambda: self._queue.drain(grace)).done
        try:
            drained.result(grace + 1.0)
        except QueueClosed:
            # It is draining already, and that may have the time.
            waiting: Call[None] = self.begin(self._queue.wait_drained)
            waiting.done.result(grace)

    def forget(self) -> None:
        """See `exits.Running`."""
        self._forked = True
        self._lock = threading.RLock()  # the thread that held it may be missing
        self._end(None)

    def _try_claim(self, stamped: Stamped) -> bool:
        """Take room for a message that is to come over, if there is any."""
        if self._closed:
            raise QueueClosed("the queue takes no more messages")
        size = stamped[3]
        besides = self._sent_over - self._arrived
        besides_bytes = self._sent_over_bytes - self._arrived_bytes
        if self._waiting or not self._ledger.fits(size, besides=besides, besides_bytes=besides_bytes):
            return False
        self._claim_id(chosen_id(stamped[2]))
        self._sent_over += 1
        self._sent_over_bytes += size
        return True

    def _claim_id(self, id: str | None) -> None:
        if id is None:
            return
        if self._is_known(id):
            raise already_pending(id)
        self._chosen.add(id)

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _is_known(self, id: str) -> bool:
        return id in self._chosen or self._queue.is_chosen(id)

    def _next_number(self) -> int:
        with self._lock:
            return next(self._numbers)

    def _send_over(self, arrival: Stamped | Call[Any]) -> None:
        self._arrivals.append(arrival)
        if not self._called:
            self._called = True
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._take_over)

    def _take_over(self) -> None:
        # Before the first is taken: what comes after the last one calls again.
        self._called = False
        self._take(_AT_ONCE)
        if self._arrivals and not self._called:
            self._called = True
            self._token.run_sync_soon(self._take_over)

    def _take(self, most: int) -> None:
        admission, arrivals = self._queue.admission, self._arrivals
        for _ in range(min(most, len(arrivals))):
            arrival = arrivals.popleft()
            if isinstance(arrival, Call):
                arrival.begin(self._calls)
                continue
            admission.accept_reserved(arrival)
            self._chosen.discard(chosen_id(arrival[2]))
            self._arrived_bytes += arrival[3]
            self._arrived += 1

    def _run(self) -> None:
        try:
            trio.run(self._serve, restrict_keyboard_interrupt_to_checkpoints=True)
        except BaseException as error:  # noqa: BLE001 (raised where somebody waits for it)
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        exits.leave(self)
        with self._lock:
            self._closed = self._ended = True
        for call in self._arrivals:
            if isinstance(call, Call):
                call.done.set_exception(QueueClosed("the queue has ended"))
        self._arrivals.clear()
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
        self._ready.set()

    async def _serve(self) -> None:
        try:
            await self._main()
        except BaseExceptionGroup as group:
            raise bare(group) from None

    async def _main(self) -> None:
        self._leave = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        read_clock, offset = clock_parts()
        self._clock = lambda: read_clock() + offset
        async with trio.open_nursery() as self._calls:
            with trio.CancelScope() as self._scope:
                async with open_delay_queue(**self._options) as self._queue:
                    self._ledger = self._queue.ledger
                    exits.watch(self)
                    self._ready.set()
                    try:
                        await self._leave.wait()
                    finally:
                        self.close()
                        self._take(len(self._arrivals))  # what was accepted is in the queue when it ends
            self._calls.cancel_scope.cancel()
