"""`localdelay bench`: a broker, the warm-up, what is recorded, and the signals that end it early."""

from __future__ import annotations

import signal
import time
from typing import Protocol

import attrs
import trio

from localdelay.benchmark.process import machine, machine_bytes, resident_bytes
from localdelay.benchmark.result import BenchError, Distribution, Result, Settings, held_up_to
from localdelay.benchmark.round import Round
from localdelay.benchmark.sending import senders
from localdelay.brokers import STDOUT, Broker, check_url, hide_secrets, open_broker
from localdelay.lateness import Latencies
from localdelay.queue.queue import DelayQueue, open_delay_queue
from localdelay.signals import Stopped, heard

_TICK = 0.1
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


def check(settings: Settings) -> None:
    """Raise a `ValueError` for what can't be run here: it names the argument."""
    if settings.to == STDOUT:
        raise ValueError("to must be a broker: standard output is for the report")
    if settings.to is not None:
        try:
            check_url(settings.to)
        except ValueError as error:
            raise ValueError(f"to {str(error).partition(' ')[2]}") from None
    there = machine_bytes()
    if there is not None and settings.expected_bytes > there:
        raise ValueError(
            f"delay is too long for this rate and size: {settings.expected_pending:,} messages would wait "
            f"and take {settings.expected_bytes / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB"
        )


def run(settings: Settings, watcher: Watcher) -> Result:
    """Run it. Ctrl-C and SIGTERM end it at once, with what was recorded until then.

    Raises `ValueError` as `check` does, `ConnectionError` and `ModuleNotFoundError` as `open_broker` does,
    `BenchError` where every send fails, and `Stopped` where a signal came too early.
    """
    check(settings)
    one = Run(settings, watcher)

    async def go() -> None:
        async with heard((signal.SIGINT, signal.SIGTERM), one.stop):
            await one.go()

    trio.run(go)
    return one.result()


class Run:
    """One run; `run` is the way to start it, and this for a test with a clock or a broker of its own."""

    def __init__(self, settings: Settings, watcher: Watcher, broker: Broker | None = None) -> None:
        self._settings = settings
        self._watcher = watcher
        self._broker = broker
        self._scope = trio.CancelScope()
        self._recorded: _Trial | None = None
        self._stopped_by: int | None = None

    def stop(self, signum: int) -> None:
        """End it at once, because of this signal."""
        if self._stopped_by is None:
            self._stopped_by = signum
        self._scope.cancel()

    async def go(self) -> None:
        """Run it to its end, or until `stop`. Raises what `open_broker` raises, and `BenchError`."""
        with self._scope:
            if self._broker is not None or self._settings.to is None:
                await self._through(self._broker)
            else:
                async with open_broker(self._settings.to) as broker:
                    await self._through(broker)

    async def _through(self, broker: Broker | None) -> None:
        warm_peak = 0
        if self._settings.warm_up is not None:
            warm_up = _Trial(self._settings.warm_up, broker)
            await warm_up.go()
            warm_peak = warm_up.peak
        self._recorded = _Trial(self._settings, broker, warm_peak)
        await self._recorded.go(self._watcher)

    def result(self) -> Result:
        """What it came to; `Stopped` where it was stopped before the first message was due."""
        result = None if self._recorded is None else self._recorded.result(self._stopped_by)
        if self._stopped_by is not None and (result is None or not result.latency.count):
            raise Stopped(self._stopped_by)
        if result is None:
            raise RuntimeError("go comes first")
        return result


class _Trial:
    """One load through a queue of its own: the warm-up, or what is recorded."""

    def __init__(self, settings: Settings, broker: Broker | None, warm_peak: int = 0) -> None:
        self._settings = settings
        self._round = Round(settings)
        self._sends_something = broker is not None
        self._senders = senders(self._round.meter, broker, settings)
        self._queue: DelayQueue | None = None
        self._warm_peak = warm_peak
        self._resident: tuple[int, int] = (0, 0)  # at the peak: messages, bytes
        self._resident_before: int | None = None
        self._cpu = self._seconds = self._began_at = 0.0
        self._seen = 0  # intervals that are in the next two
        self._together = Latencies()
        self._p99: float | None = None

    @property
    def peak(self) -> int:
        """Messages pending at most."""
        return self._round.peak

    async def go(self, watcher: Watcher | None = None) -> None:
        """Put it, and wait until it is sent. Raises `BenchError` if sends failed and none succeeded."""
        settings, one = self._settings, self._round
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
                start = one.clock()
                self._began_at = time.time() + settings.delays.shortest
                self._queue = queue
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, watcher, nursery.cancel_scope)
                        # What was given up is pending in the round's cheap count, and not in the queue's.
                        await one.go(queue.put_nowait, start, lambda: not queue.statistics().pending)
                        nursery.cancel_scope.cancel()
                finally:
                    self._cpu = time.process_time() - cpu
                    self._seconds = one.clock() - start
                # Not before: it takes time to drain many, and they would be late by that.
                await queue.drain(grace=0.0)
        finally:
            one.meter.finish()
        if one.meter.failure is not None and not one.meter.sent:
            raise BenchError(f"no send succeeds: {self._failure()}")

    async def _watch(self, watcher: Watcher | None, scope: trio.CancelScope) -> None:
        one = self._round
        while True:
            await trio.sleep(_TICK)
            resident = resident_bytes()
            if resident is not None and one.pending > self._resident[0]:
                self._resident = (one.pending, resident)
            if watcher is not None:
                watcher.progress(self._progress())
            failed_at = one.meter.failed_at
            if failed_at is not None and one.clock() - failed_at > _GIVE_UP_AFTER and not one.meter.sent:
                scope.cancel()

    def _progress(self) -> Progress:
        one = self._round
        fresh = one.meter.intervals[self._seen :]
        if fresh:
            self._seen += len(fresh)
            self._together = Latencies.together([self._together, *fresh])
            self._p99 = self._together.at(0.99)[0]
        return Progress(one.clock() - one.start, one.put, one.meter.sent, one.pending, self._p99)

    def _failure(self) -> str | None:
        error = self._round.meter.failure
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
        one, meter = self._round, self._round.meter
        own = self._queue.statistics()
        return Result(
            settings=self._settings,
            machine=machine(),
            began_at=self._began_at,
            seconds=self._seconds,
            stopped_by=stopped_by,
            offered=self._settings.pace.total,
            put=own.accepted,
            refused=one.refused,
            sent=own.sent,
            unsent=own.pending,
            dead=own.dead,
            early=meter.early,
            failures=own.failures,
            throttled=own.throttled,
            failure=self._failure(),
            latency=Distribution.of(Latencies.together(meter.intervals)),
            queue_lateness=Distribution.of_summary(own.lateness),
            put_lateness=Distribution.of(meter.puts.take()),
            send_time=Distribution.of_summary(own.send_time) if self._sends_something else Distribution(),
            # Half for the put and half for the send: with all sent, this is the cost of one.
            cpu_us_per_message=self._cpu / (own.accepted + own.sent) * 2e6 if own.accepted else None,
            cpu_share=self._cpu / self._seconds if self._seconds else None,
            peak_pending=one.peak,
            resident_bytes_per_pending=self._resident_bytes_per_pending(),
            held=one.is_held() if stopped_by is None else None,
            held_up_to=held_up_to(self._settings, meter.intervals),
            intervals=meter.intervals,
        )
