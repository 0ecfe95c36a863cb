"""`localdelay bench`: a broker, the warm-up, what is recorded, and the signals that end it early."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import trio

from localdelay import arguments
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.process import machine, machine_bytes, resident_bytes
from localdelay.benchmark.result import BenchError, Distribution, Result, Settings, held_up_to
from localdelay.benchmark.round import Round, held, metered
from localdelay.brokers import STDOUT, Broker, check_url, hide_secrets, open_broker
from localdelay.message import Message
from localdelay.queue.batch import BatchPolicy
from localdelay.queue.opening import open_delay_queue
from localdelay.queue.queue import DelayQueue
from localdelay.signals import Stopped, heard

_TICK = 0.1
_GIVE_UP_AFTER = 3.0
"""Seconds. Where sends have failed for so long and none has succeeded, none will."""
_FEW_PENDING = 15_000
"""With fewer pending than this, the growth of memory says nothing about one message."""
_BATCH_BYTES = 1_000_000


Watch: TypeAlias = Callable[[Round, Meter], object]
"""Is shown how far a run is, several times a second."""


def check(settings: Settings) -> None:
    """Raise a `ValueError` for what can't be run here: it names the argument."""
    if settings.to == STDOUT:
        raise ValueError("to must be a broker: standard output is for the report")
    if settings.to is not None:
        with arguments.renamed("url", "to"):
            check_url(settings.to)
    there = machine_bytes()
    if there is not None and settings.expected_bytes > there:
        raise ValueError(
            f"delay is too long for this rate and size: {settings.expected_pending:,} messages would wait "
            f"and take {settings.expected_bytes / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB"
        )


def run(settings: Settings, watch: Watch) -> Result:
    """Run it. Ctrl-C and SIGTERM end it at once, with what was recorded until then.

    Raises `ValueError` as `check` does, `ConnectionError` and `ModuleNotFoundError` as `open_broker` does,
    `BenchError` where every send fails, and `Stopped` where a signal came too early.
    """
    check(settings)
    one = Run(settings, watch)

    async def go() -> None:
        async with heard((signal.SIGINT, signal.SIGTERM), one.stop):
            await one.go()

    trio.run(go)
    return one.result()


class Run:
    """One run; `run` is the way to start it, and this for a test with a clock or a broker of its own."""

    def __init__(self, settings: Settings, watch: Watch, broker: Broker | None = None) -> None:
        self._settings = settings
        self._shown_to = watch
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
            async with AsyncExitStack() as stack:
                broker, warm_up = self._broker, self._settings.warm_up
                if broker is None and self._settings.to is not None:
                    broker = await stack.enter_async_context(open_broker(self._settings.to))
                few = _FEW_PENDING
                if warm_up is not None:
                    # What it has left free, the first messages of the rest fill without any growth.
                    few = max(few, 20 * await _Trial(warm_up, broker).go())
                self._recorded = _Trial(self._settings, broker, few)
                await self._recorded.go(self._shown_to)

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

    def __init__(self, settings: Settings, broker: Broker | None, few: int = 0) -> None:
        """`few`: with fewer pending than this, memory is not told."""
        self._settings = settings
        self._broker = broker
        self._few = few
        self._queue: DelayQueue | None = None
        self._at_peak: tuple[int, int] = (0, 0)  # messages, resident bytes
        self._resident_before = resident_bytes()
        self._cpu = self._seconds = self._began_at = 0.0

    async def go(self, watch: Watch | None = None) -> int:
        """Put it, and wait until it is sent; how many were pending at most.

        Raises `BenchError` if sends failed and none succeeded.
        """
        settings = self._settings
        with metered(settings) as (self._round, self._meter):
            one, meter = self._round, self._meter
            cpu = time.process_time()
            async with open_delay_queue(
                **_sending(meter, self._broker, settings),
                capacity=settings.capacity(machine_bytes()),
                workers=settings.workers,
                cancellable=settings.cancellable,
                timer=settings.timer,
                limit=None,  # what the broker refuses at this rate is part of what is measured
            ) as queue:
                start = trio.current_time()
                meter.start(start)
                self._began_at = time.time() + settings.delays.shortest
                self._queue = queue
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch, watch, nursery.cancel_scope)
                        # What was given up is pending in the round's cheap count, and not in the queue's.
                        await one.go(queue.put_nowait, start, lambda: not queue.statistics().pending)
                        nursery.cancel_scope.cancel()
                finally:
                    self._cpu = time.process_time() - cpu
                    self._seconds = trio.current_time() - start
                # Not before: it takes time to drain many, and they would be late by that.
                await queue.drain(grace=0.0)
        if meter.failure is not None and not meter.sent:
            raise BenchError(f"no send succeeds: {self._failure()}")
        return one.peak

    async def _watch(self, watch: Watch | None, scope: trio.CancelScope) -> None:
        one, meter = self._round, self._meter
        while True:
            await trio.sleep(_TICK)
            now, pending, resident = trio.current_time(), one.pending, resident_bytes()
            if resident is not None and pending > self._at_peak[0]:
                self._at_peak = (pending, resident)
            if watch is not None:
                watch(one, meter)
            if meter.failed_at is not None and now - meter.failed_at > _GIVE_UP_AFTER and not meter.sent:
                scope.cancel()

    def _failure(self) -> str | None:
        error = self._meter.failure
        if error is None:
            return None
        text = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())
        return hide_secrets(text, self._settings.to or "")

    def result(self, stopped_by: int | None) -> Result | None:
        """What it came to; None where it has not begun."""
        if self._queue is None:
            return None
        settings, meter, own = self._settings, self._meter, self._queue.statistics()
        (pending, resident), before = self._at_peak, self._resident_before
        grown = None if before is None or pending < self._few else (resident - before) / pending
        return Result(
            settings=settings,
            machine=machine(),
            began_at=self._began_at,
            seconds=self._seconds,
            stopped_by=stopped_by,
            offered=settings.pace.total,
            put=own.accepted,
            refused=self._round.refused,
            sent=own.sent,
            unsent=own.pending,
            dead=own.dead,
            early=meter.early,
            failures=own.failures,
            throttled=own.throttled,
            failure=self._failure(),
            latency=Distribution.of(meter.total),
            queue_lateness=Distribution.of_summary(own.lateness),
            put_lateness=Distribution.of(meter.puts.take()),
            send_time=Distribution() if self._broker is None else Distribution.of_summary(own.send_time),
            # Half for the put and half for the send: with all sent, this is the cost of one.
            cpu_us_per_message=self._cpu / (own.accepted + own.sent) * 2e6 if own.accepted else None,
            cpu_share=self._cpu / self._seconds if self._seconds else None,
            peak_pending=self._round.peak,
            resident_bytes_per_pending=grown,
            held=held(meter, settings) if stopped_by is None else None,
            held_up_to=held_up_to(settings, meter.intervals),
            intervals=meter.intervals,
        )


def _sending(meter: Meter, broker: Broker | None, settings: Settings) -> dict[str, Any]:
    """How the queue sends: with the broker's own send, or nothing, and the meter in front of it."""

    async def send(message: Message) -> None:
        meter.begin(message.execute_at, message.payload)
        if broker is None:
            meter.sent += 1
            return
        try:
            await broker.send(message)
        except BaseException as error:
            meter.fail((message,), error)
            raise
        meter.end((message,))

    async def send_batch(messages: Sequence[Message]) -> None:
        meter.begin_batch(messages)
        try:
            if broker is not None:
                await broker.send_batch(messages)
        except BaseException as error:
            meter.fail(messages, error)
            raise
        meter.end(messages)

    if settings.batch is None:
        return {"send": send}
    most = max(_BATCH_BYTES, settings.batch * settings.size)
    return {"send_batch": send_batch, "batch": BatchPolicy(max_messages=settings.batch, max_bytes=most)}
