"""One load through one queue: the warm-up, or what is recorded."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from localdelay.benchmark.load import NUMBER_BYTES, Generator, filling
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.process import machine, machine_bytes, resident_bytes
from localdelay.benchmark.result import Distribution, Result, Settings, held, held_up_to
from localdelay.benchmark.sending import BenchError, senders
from localdelay.brokers import Broker, hide_secrets
from localdelay.errors import QueueFull
from localdelay.lateness import Latencies
from localdelay.queue.queue import DelayQueue, open_delay_queue
from localdelay.timer import open_timer

TICK = 0.1
_LOOK = 0.01
_LOOKS = 50
_GIVE_UP_AFTER = 3.0
"""Seconds. Where sends have failed for so long and none has succeeded, none will."""
_FEW_PENDING = 15_000
"""With fewer pending than this, the growth of memory says nothing about one message."""


@attrs.frozen
class Progress:
    """How far a run is, for a display."""

    elapsed: float
    """Seconds since the first put."""
    put: int
    sent: int
    pending: int
    p99: float | None
    """Seconds, over all intervals that are over; None before the first one is."""


class Watcher(Protocol):
    """Sees a run progress, several times a second."""

    def progress(self, progress: Progress) -> None:
        """It has come this far."""


class Round:
    """One load, through one queue: the warm-up, or what is recorded."""

    def __init__(self, settings: Settings, broker: Broker | None, warm_peak: int = 0) -> None:
        self._settings = settings
        self._clock = trio.lowlevel.current_clock().current_time
        self._pace = settings.pace
        self._meter = Meter(self._pace, settings.delays, settings.seed, self._clock)
        self._sends_something = broker is not None
        self._senders = senders(self._meter, broker, settings)
        self._generator: Generator
        self._queue: DelayQueue | None = None
        self._refused = 0
        self.peak = 0
        """Messages pending at most."""
        self._resident: tuple[int, int] = (0, 0)  # at the peak: messages, bytes
        self._warm_peak = warm_peak
        self._resident_before: int | None = None
        self._cpu = self._seconds = self._began_at = 0.0
        self._seen = 0  # intervals that are in the next two
        self._together = Latencies()
        self._p99: float | None = None

    async def go(self, watcher: Watcher | None = None) -> None:
        """Put it, and wait until it is sent, or until it is plain that it won't be in time."""
        settings, meter = self._settings, self._meter
        gc.collect()
        self._resident_before = resident_bytes()
        cpu = time.process_time()
        try:
            async with open_delay_queue(
                **self._senders,
                capacity=settings.capacity(machine_bytes()),
                workers=settings.workers,
                cancellable=settings.cancellable,
                timer=settings.timer,
            ) as queue:
                start, wall = self._clock(), time.time()
                meter.start(start)
                self._began_at = wall + meter.begins - start
                self._queue = queue
                try:
                    await self._put_and_wait(queue, start, watcher)
                finally:
                    self._cpu = time.process_time() - cpu
                    self._seconds = self._clock() - start
                # Not before: it takes time to drain many, and they would be late by that.
                await queue.drain(grace=0.0)
        finally:
            meter.finish()

    async def _put_and_wait(self, queue: DelayQueue, start: float, watcher: Watcher | None) -> None:
        settings = self._settings
        # Precise also where the queue's own timer is not to be: the load should be on time.
        with contextlib.closing(open_timer("auto")) as timer:
            self._generator = Generator(self._pace, self._clock, timer.sleep_until)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, watcher, nursery.cancel_scope)
                with trio.move_on_after(settings.seconds + settings.patience):
                    await self._generator.offer(self._putter(queue), self._after_puts, start)
                with trio.move_on_after(settings.delays.longest + settings.patience):
                    await self._wait_until_sent(queue)
                nursery.cancel_scope.cancel()

    async def _wait_until_sent(self, queue: DelayQueue) -> None:
        looks = 0
        while self._pending:
            looks += 1
            # What was given up is pending in the count that costs nothing, and not in the queue's own.
            if looks % _LOOKS == 0 and not queue.statistics().pending:
                return
            await trio.sleep(_LOOK)

    def raise_if_none_was_sent(self) -> None:
        """Raise `BenchError` if sends have failed and none has succeeded."""
        if self._meter.failure is not None and not self._meter.sent:
            raise BenchError(f"no send succeeds: {self._failure()}")

    def _putter(self, queue: DelayQueue) -> Callable[[int, int], None]:
        put_nowait = queue.put_nowait
        delays = self._settings.delays.table(self._settings.seed)
        mask = len(delays) - 1
        rest = filling(self._settings.size, self._settings.seed)

        def put_run(first: int, stop: int) -> None:
            for number in range(first, stop):
                try:
                    put_nowait(number.to_bytes(NUMBER_BYTES, "big") + rest, delay=delays[number & mask])
                except QueueFull:
                    self._refused += 1

        return put_run

    def _after_puts(self, first: int, stop: int, began: float, ended: float) -> None:
        self._meter.put(first, stop, began, ended)
        self.peak = max(self.peak, self._pending)

    @property
    def _pending(self) -> int:
        # Not the queue's own statistics: those cost a millisecond, in which nothing is sent.
        return self._generator.done - self._refused - self._meter.sent

    async def _watch(self, watcher: Watcher | None, scope: trio.CancelScope) -> None:
        while True:
            await trio.sleep(TICK)
            resident = resident_bytes()
            if resident is not None and self._pending > self._resident[0]:
                self._resident = (self._pending, resident)
            if watcher is not None:
                watcher.progress(self._progress())
            meter = self._meter
            hopeless = meter.failed_at is not None and self._clock() - meter.failed_at > _GIVE_UP_AFTER
            if hopeless and not meter.sent:
                scope.cancel()  # and then `raise_if_none_was_sent`

    def _progress(self) -> Progress:
        fresh = self._meter.intervals[self._seen :]
        if fresh:
            self._seen += len(fresh)
            self._together = Latencies.together([self._together, *fresh])
            self._p99 = self._together.at(0.99)[0]
        return Progress(
            elapsed=self._clock() - self._generator.start,
            put=self._generator.done - self._refused,
            sent=self._meter.sent,
            pending=self._pending,
            p99=self._p99,
        )

    def _failure(self) -> str | None:
        error = self._meter.failure
        if error is None:
            return None
        text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        return hide_secrets(text, self._settings.to or "")

    def _resident_bytes_per_pending(self) -> float | None:
        pending, resident = self._resident
        before = self._resident_before
        # What the warm-up left free, the first messages fill without any growth.
        enough = pending >= _FEW_PENDING and pending >= 20 * self._warm_peak
        return (resident - before) / pending if before is not None and enough else None

    def result(self, stopped_by: int | None) -> Result | None:
        """What it came to; None where it has not begun."""
        if self._queue is None:
            return None
        settings, meter = self._settings, self._meter
        own = self._queue.statistics()
        offered = self._pace.total
        latency = Distribution.of(Latencies.together(meter.intervals))
        return Result(
            settings=settings,
            machine=machine(),
            began_at=self._began_at,
            seconds=self._seconds,
            stopped_by=stopped_by,
            offered=offered,
            put=own.accepted,
            refused=self._refused,
            sent=own.sent,
            unsent=own.pending,
            dead=own.dead,
            early=meter.early,
            failures=own.failures,
            throttled=own.throttled,
            failure=self._failure(),
            latency=latency,
            queue_lateness=Distribution.of_summary(own.lateness),
            put_lateness=Distribution.of(meter.puts.take()),
            send_time=Distribution.of_summary(own.send_time) if self._sends_something else Distribution(),
            # Half for the put and half for the send: with all sent, this is the cost of one.
            cpu_us_per_message=self._cpu / (own.accepted + own.sent) * 2e6 if own.accepted else None,
            cpu_share=self._cpu / self._seconds if self._seconds else None,
            peak_pending=self.peak,
            resident_bytes_per_pending=self._resident_bytes_per_pending(),
            held=held(latency, offered=offered, sent=own.sent, early=meter.early, stopped_by=stopped_by),
            held_up_to=held_up_to(settings, meter.intervals),
            intervals=meter.intervals,
        )
