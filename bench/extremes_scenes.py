"""The scenes of `bench.extremes`, each of which answers with its figures."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Literal

import attrs
import trio

import localdelay
from localdelay.benchmark.process import resident_bytes

from .extremes_backlog import WORKERS, backlog, in_chunks
from .extremes_probes import Arrivals, Collections, Heartbeat, Steps, account, longest
from .figures import Figure
from .samples import BODY_BYTES, Result, body, distribution, progress

_HOUR = 3600.0
_WARM_UP = 2_000
_TURN = 0.003
"""Seconds between two puts, and two looks at the statistics, in `burst`."""
_SPARE = 1_000_000
_SETTLE = 0.1
_SECONDS_A_PUT = 12e-6
"""Allowed for each put before the first message of a burst is due."""
FROZEN = "frozen"
"""What the child says on standard output when it is to be stopped."""


async def _ignore(_: object) -> None:
    """Send nothing."""


async def cancel(messages: int, when: Literal["at once", "later"]) -> list[Figure]:
    """Put messages that are due in an hour and cancel each, at once or when all are put: what remains."""
    collections = Collections()
    async with localdelay.open_delay_queue(
        _ignore, capacity=messages + _WARM_UP, workers=WORKERS, cancellable=True
    ) as queue:
        await _put_and_cancel(queue, _WARM_UP, when)
        gc.collect()
        before = resident_bytes()
        began = time.perf_counter()
        with collections.watched():
            await _put_and_cancel(queue, messages, when)
        took = time.perf_counter() - began
        gc.collect()
        after = resident_bytes()
        trimmed = resident_bytes() if _trim() else None
        books = queue.statistics()
    left = messages + _WARM_UP - books.cancelled + books.pending
    return [
        Figure("resident memory, grown by", _growth(before, after), "%", 20.0),
        Figure("  after malloc_trim", _growth(before, trimmed), "%"),
        Figure("not cancelled", left, at_most=0),
        Figure("put and cancel, a message", 1e6 * took / messages, "µs"),
    ]


def _growth(before: int | None, after: int | None) -> float | None:
    """In percent."""
    return None if before is None or after is None else 100 * (after / before - 1)


def _trim() -> bool:
    """Have the C library return to the system what it holds free; False where it can't be asked to."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim(0)
    return True


async def _put_and_cancel(queue: localdelay.DelayQueue, messages: int, when: str) -> None:
    ids: list[str] = []
    async for number in in_chunks(messages):
        accepted = queue.put_nowait(body(number), delay=_HOUR)
        if when == "at once":
            queue.cancel(accepted.id)
        else:
            ids.append(accepted.id)
    async for number in in_chunks(len(ids)):
        queue.cancel(ids[number])


async def index(messages: int) -> list[Figure]:
    """Fill a cancellable queue: memory a message at the half, and the longest single put of all."""
    collections = Collections()
    slowest = its_cpu = 0.0
    over = 0
    half: int | None = None
    clock, cpu_clock = time.perf_counter, time.thread_time
    with collections.watched(), trio.CancelScope() as scope:
        async with localdelay.open_delay_queue(
            _ignore, capacity=messages, workers=WORKERS, cancellable=True
        ) as queue:
            gc.collect()
            before = resident_bytes()
            async for number in in_chunks(messages):
                if number == messages // 2:
                    half = resident_bytes()
                payload = body(number)
                cpu, began = cpu_clock(), clock()
                queue.put_nowait(payload, delay=_HOUR)
                took = clock() - began
                over += took > 0.001
                if took > slowest:
                    slowest, its_cpu = took, cpu_clock() - cpu
            scope.cancel()
    per_message = None
    if before is not None and half is not None:
        per_message = (half - before) / (messages // 2) - BODY_BYTES
    return [
        Figure("beyond the payload, a message", per_message, "B", 260.0),
        Figure("longest single put", 1e3 * slowest, "ms", 5.0),
        Figure("  processor time of it", 1e3 * its_cpu, "ms"),
        Figure("  puts over 1 ms", over),
        Figure("  longest full collection", 1e3 * collections.longest(2), "ms"),
    ]


async def idle(messages: int, seconds: float, timer: Literal["auto", "trio"]) -> list[Figure]:
    """Leave a queue alone whose messages are all due in an hour."""
    with trio.CancelScope() as scope:
        async with localdelay.open_delay_queue(
            _ignore, capacity=messages, workers=WORKERS, cancellable=False, timer=timer
        ) as queue:
            async for number in in_chunks(messages):
                queue.put_nowait(body(number), delay=_HOUR)
            await trio.sleep(0.5)
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            began, cpu = time.perf_counter(), time.process_time()
            await trio.sleep(seconds)
            share = (time.process_time() - cpu) / (time.perf_counter() - began)
            trio.lowlevel.remove_instrument(steps)
            scope.cancel()
    return [
        Figure("of one core", 100 * share, "%", 0.1),
        Figure(f"task steps in {seconds:g} s", steps.count),
    ]


async def burst(
    messages: int, sender: Literal["send", "send_batch"], frozen: float, spread: float
) -> list[Figure]:
    """Have `messages` fall due within `spread` seconds and time every step of the loop while they leave.

    With `spread` 0 all are put for the same instant, each with the delay that is left until then: as the
    clock goes on between the caller's reading and the queue's, they are due in no order, within microseconds.

    With `frozen` the process is to be stopped by a signal for so many seconds meanwhile: it says `FROZEN` on
    its standard output when that may begin, and reads from its standard input, as its last act, at which
    instant of `time.perf_counter` it was woken.
    """
    clock: Callable[[], float] = trio.lowlevel.current_clock().current_time
    arrivals = Arrivals(clock, expected=messages + _SPARE, first=messages)
    heart, steps, collections = Heartbeat(), Steps(), Collections()
    others = _Others(first=messages)
    sending = {"send": arrivals.send} if sender == "send" else {"send_batch": arrivals.send_batch}
    opened = localdelay.open_delay_queue(
        **sending,
        capacity=messages + _SPARE,
        workers=WORKERS,
        cancellable=False,
    )
    with collections.watched():
        async with opened as queue, trio.open_nursery() as nursery:
            start = clock() + 1 + _SECONDS_A_PUT * messages
            async for number in in_chunks(messages):
                due = start + spread * number / messages
                queue.put_nowait(body(number), delay=max(0.0, due - clock()))
            gc.collect()  # what the fill left behind is not the burst's
            if clock() > start - _SETTLE:
                raise RuntimeError("this machine is too slow: the burst was due before all of it was put")
            nursery.start_soon(heart.run)
            nursery.start_soon(others.put, queue)
            nursery.start_soon(others.look, queue)
            await trio.sleep_until(start - _SETTLE)
            trio.lowlevel.add_instrument(steps)
            heart.enter("burst")
            woken = time.perf_counter() + (start - clock())
            await trio.sleep_until(start)
            if frozen:
                print(FROZEN, flush=True)
            await arrivals.all_left.wait()
            await trio.sleep(0.2)
            await others.stop()
            nursery.cancel_scope.cancel()
        books, waiting = queue.statistics(), queue.messages()
    told = account(arrivals, messages + others.count, books, waiting)
    if frozen:
        progress("  the process was woken and all have left")
        woken = float(sys.stdin.readline())
    late = distribution(arrivals.late)
    (_, step, step_cpu, task), (_, held, _, _) = steps.longest_step(woken), steps.longest_pass(woken)
    put_target = 10.0 if frozen else None
    return [
        Figure("all have left after", arrivals.all_left_at - woken, "s", 3.0 if frozen else None),
        Figure("longest put answer", 1e3 * longest(others.answers, woken), "ms", put_target),
        Figure("loop held by one step, max", 1e3 * step, "ms", 5.0, note=f"in {task}"),
        Figure("  processor time of it", 1e3 * step_cpu, "ms"),
        Figure("one pass over all tasks, max", 1e3 * held, "ms"),
        Figure("longest gap between heartbeats", 1e3 * heart.longest("burst", woken), "ms"),
        Figure("longest statistics()", 1e3 * longest(others.looks, woken), "ms"),
        Figure("longest collection", 1e3 * max(collections.longest(g, woken) for g in range(3)), "ms"),
        Figure("lateness max", 1e3 * (late.max or 0.0), "ms"),
        Figure("lost", told.lost, at_most=0),
        Figure("twice", told.twice, at_most=0),
        Figure("early", told.early, at_most=0),
        Figure("books that don't add up", bool(told.books), at_most=0, note=told.books),
        Figure("still pending", len(waiting), at_most=0),
    ]


class _Others:
    """Who else uses the loop during a burst, one that puts and one that looks: (began, took) of each call."""

    def __init__(self, first: int) -> None:
        self._first = first
        self.count = 0
        self._stopping = False
        self._stopped = trio.Event()
        self.answers: list[tuple[float, float]] = []
        self.looks: list[tuple[float, float]] = []

    async def put(self, queue: localdelay.DelayQueue) -> None:
        clock = time.perf_counter
        while not self._stopping:
            payload = body(self._first + self.count)
            began = clock()
            await queue.put(payload, delay=0.5)
            self.answers.append((began, clock() - began))
            self.count += 1
            await trio.sleep(_TURN)
        self._stopped.set()

    async def stop(self) -> None:
        """No more puts. Not by a cancellation: then nobody would know whether the last one was accepted."""
        self._stopping = True
        await self._stopped.wait()

    async def look(self, queue: localdelay.DelayQueue) -> None:
        clock = time.perf_counter
        while True:
            began = clock()
            queue.statistics()
            self.looks.append((began, clock() - began))
            await trio.sleep(_TURN)


SCENES: dict[str, Callable[..., Awaitable[list[Figure]]]] = {
    "backlog": backlog,
    "cancel": cancel,
    "index": index,
    "idle": idle,
    "burst": burst,
}


def _played(kind: str, **arguments: Any) -> list[Result]:
    async def play() -> list[Figure]:
        return await SCENES[kind](**arguments)

    return [attrs.asdict(figure) for figure in trio.run(play)]


SAMPLES = {kind: partial(_played, kind) for kind in SCENES}
