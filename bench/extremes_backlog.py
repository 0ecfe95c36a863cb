"""The scene `backlog`: twelve million messages wait while 100,000/s go in and out."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from resource import RUSAGE_SELF, getrusage

import trio

import localdelay
from localdelay.benchmark.load import CHUNK, Delays, Pace, number_in, offer, precise_loop, putter
from localdelay.benchmark.meter import Meter
from localdelay.benchmark.process import resident_bytes
from localdelay.benchmark.result import Distribution

from .extremes_probes import Arrivals, Collections, Heartbeat, Steps, account
from .figures import Figure
from .samples import BODY_BYTES, body, distribution, ms, progress, waited_for_a_core

WORKERS = 20
_HOUR = 3600.0
_ROUNDS = 31
_ROUND = 2_000
_SPARE = 2 * _ROUNDS * _ROUND
_ALLOWANCE = 2.0
"""How many times the calibrated time the fill may take before the first of its messages is due."""


async def in_chunks(count: int) -> AsyncIterator[int]:
    """The numbers below this; after each chunk of them the others on the loop have their turn."""
    for number in range(count):
        yield number
        if number % CHUNK == 0:
            await trio.lowlevel.checkpoint()


async def backlog(pending: int, rate: float, seconds: float) -> list[Figure]:
    """`pending` messages wait, while for `seconds` `rate` messages a second come in and as many fall due.

    The fill goes at full speed and is due from `start` on, `rate` messages a second, in the order of the
    puts; from `start` on the load puts `rate` messages a second with a delay of `pending / rate` seconds.
    So the number that waits stays what it is, as in a service that has been at it for hours.
    """
    delay = pending / rate
    clock: Callable[[], float] = trio.lowlevel.current_clock().current_time
    pace, delays = Pace(rate, rate, seconds), Delays((delay,))
    meter, incoming = Meter(pace, delays, 0, clock), pace.total
    start = math.inf

    def due(number: int) -> float:
        """By the schedule: the load is due a delay after its put should be, the fill from the start on."""
        return meter.due(number) if number < incoming else start + (number - incoming) / rate

    arrivals = Arrivals(clock, expected=incoming + pending, due=due)
    heart, steps, collections = Heartbeat(), Steps(), Collections()
    capacity = incoming + pending + _SPARE
    with collections.watched(), trio.CancelScope() as scope:
        async with (
            _open(arrivals, _SPARE) as empty,
            _open(arrivals, capacity) as queue,
            trio.open_nursery() as nursery,
        ):
            cost = await _calibrate(empty)
            gc.collect()
            before = resident_bytes()
            nursery.start_soon(heart.run)

            start = clock() + _ALLOWANCE * cost * pending + 1
            meter.start(start)
            probed = _ROUNDS * _ROUND
            heart.enter("filling")
            began = clock()
            await _fill(queue, incoming, pending - probed, start, rate, clock)
            filled_in = clock() - began
            heart.enter("probing")
            ratio = await _cost_ratio(queue, empty, incoming + pending, start + delay, rate, clock)
            full = resident_bytes()
            heart.enter("waiting")
            progress(
                f"  {pending:,} pending after {filled_in:.1f} s; they fall due in {start - clock():.1f} s"
            )
            await trio.sleep_until(start)
            heart.enter("running")
            trio.lowlevel.add_instrument(steps)
            pauses_from, waited = time.perf_counter(), waited_for_a_core()
            put_run = putter(queue.put_nowait, delays, size=BODY_BYTES, seed=1, refuse=lambda: None)
            with precise_loop() as loop:
                await offer(pace, loop, start, put_run, meter.put)
            await trio.sleep_until(start + seconds)
            waited_after = waited_for_a_core()
            peak = 1024 * getrusage(RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
            trio.lowlevel.remove_instrument(steps)
            heart.enter("ended")
            progress("  counting every message")

            # One instant, without an await: what was sent and what waits must be everything that was put.
            now, books = clock(), queue.statistics()
            sent = len(arrivals.late)
            collections_made = len(collections.runs[2])
            pause, running_pause = collections.longest(2), collections.longest(2, pauses_from)
            collecting = collections.total(pauses_from) / seconds
            gc.disable()  # the snapshot makes an object of each message, and is no part of what is measured
            waiting = queue.messages()
            told = account(arrivals, incoming + pending, books, waiting)
            overdue = [message for message in waiting if message.execute_at < now]
            late = distribution([*arrivals.late, *(now - due(number_in(one.payload)) for one in overdue)])
            left = len(waiting)
            del waiting
            gc.enable()
            scope.cancel()
    put_late = Distribution.of(meter.puts.take())
    _, step, step_cpu, task = steps.longest_step(pauses_from)
    robbed = None if waited is None or waited_after is None else (waited_after - waited) / seconds
    per_message = None if full is None or before is None else (full - before) / pending - BODY_BYTES
    return [
        Figure("lateness p50", ms(late.p50), "ms"),
        Figure("lateness p99", ms(late.p99), "ms", 2.0),
        Figure("lateness max", ms(late.max), "ms", 100.0),
        Figure("the load's own lateness p99", ms(put_late.p99), "ms", 10.0),
        Figure("sent in the run", sent),
        Figure("overdue at its end", len(overdue)),
        Figure("pending at its end", left),
        Figure("lost", told.lost, at_most=0),
        Figure("twice", told.twice, at_most=0),
        Figure("early", told.early, at_most=0),
        Figure("books that don't add up", bool(told.books), at_most=0, note=told.books),
        Figure("resident memory, peak", peak / 1e9, "GB", 9.0),
        Figure("beyond the payload, a message", per_message, "B", 200.0),
        Figure("put_nowait, full / empty", ratio, "×", 1.5),
        Figure("fill, a message", 1e6 * filled_in / (pending - probed), "µs"),
        Figure("stall while filling, max", 1e3 * heart.longest("filling"), "ms", 100.0),
        Figure("  99.9 % of the beats", 1e3 * heart.p999("filling"), "ms"),
        Figure("stall while running, max", 1e3 * heart.longest("running"), "ms", 100.0),
        Figure("  99.9 % of the beats", 1e3 * heart.p999("running"), "ms"),
        Figure("  longest step of a task", 1e3 * step, "ms", note=f"in {task}"),
        Figure("  processor time of it", 1e3 * step_cpu, "ms"),
        Figure("others had its core", None if robbed is None else 100 * robbed, "%"),
        Figure("full collections, all", collections_made),
        Figure("  the longest while running", 1e3 * running_pause, "ms"),
        Figure("  the longest of all", 1e3 * pause, "ms"),
        Figure("all collections, share of the run", 100 * collecting, "%"),
    ]


def _open(arrivals: Arrivals, capacity: int) -> AbstractAsyncContextManager[localdelay.DelayQueue]:
    return localdelay.open_delay_queue(
        send_batch=arrivals.send_batch, capacity=capacity, workers=WORKERS, cancellable=False
    )


async def _calibrate(queue: localdelay.DelayQueue) -> float:
    """Seconds that a put of the fill takes here, about."""
    began = time.perf_counter()
    for number in range(_ROUND):
        queue.put_nowait(body(number), delay=_HOUR)
    await trio.lowlevel.checkpoint()
    return (time.perf_counter() - began) / _ROUND


async def _fill(
    queue: localdelay.DelayQueue,
    first: int,
    count: int,
    start: float,
    rate: float,
    clock: Callable[[], float],
) -> None:
    """Put `count` messages, numbered from `first`; the k-th is due at start + k / rate."""
    put_nowait = queue.put_nowait
    async for number in in_chunks(count):
        # The clock is read for every message: a delay that is computed from an older reading would make each
        # chunk's first messages due before the last ones of the chunk before.
        put_nowait(body(first + number), delay=max(0.0, start + number / rate - clock()))
        if number and number % max(1, count // 10) == 0:
            progress(f"  {number:,} put")


async def _cost_ratio(
    queue: localdelay.DelayQueue,
    empty: localdelay.DelayQueue,
    end: int,
    last_due: float,
    rate: float,
    clock: Callable[[], float],
) -> float:
    """What a put costs with millions pending, over what it costs with next to none; processor time.

    It is the end of the fill, in runs of 2,000 puts; each run is due where the fill would have it end. The
    two queues take turns, in one process, so that the machine's drift and the collector's share are the same.
    """
    costs: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(_ROUNDS, 0, -1):
        first = end - turn * _ROUND
        for is_full, target in ((True, queue), (False, empty)):
            bodies = [body(number) for number in range(first, first + _ROUND)]
            delay = max(0.0, last_due - turn * _ROUND / rate - clock()) if is_full else _HOUR
            put_nowait = target.put_nowait
            began = time.process_time()
            for payload in bodies:
                put_nowait(payload, delay=delay)
            costs[is_full].append(time.process_time() - began)
            await trio.lowlevel.checkpoint()
    return statistics.median(costs[True]) / statistics.median(costs[False])
