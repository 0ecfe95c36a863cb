"""The hot path costs no more than it did: counts that are the same on every machine, and one wide ratio.

A function call, a bytecode, an object that stays: none of them depends on how fast or how busy the machine
is. They stand for time well enough to catch what would undo the work on it, and badly enough that the bench
is still needed.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import trio
import trio.testing

import localdelay
from localdelay import DelayQueue, Message

COUNTED = {
    # What was counted a message (the largest of CPython 3.11, 3.12 and 3.13; of `publish, held` and the
    # bytecodes of `await put` 3.11's). Functions in C count as calls. `put` is one `put_nowait`; `one by
    # one` and `batch` are what comes after it until it is sent, Trio's share included: with `send` and 20
    # workers, and with `send_batch` and batches of 500. `publish` is one through a `Fallback` whose breaker
    # is closed and whose primary does nothing; `publish, held` one that finds it open. `pending` is what a
    # message adds while it waits: blocks of Python's own allocator (a payload over 512 bytes has none), and
    # references that a full collection follows.
    "put: calls": 10.1,
    "put: bytecodes": 173.0,
    "put, cancellable: calls": 10.3,
    "put, cancellable: bytecodes": 176.0,
    "one by one: calls": 26.6,
    "one by one: bytecodes": 541.0,
    "one by one: task steps": 0.02,
    "batch: calls": 1.4,
    "batch: bytecodes": 42.0,
    "batch: task steps": 0.01,
    "await put: bytecodes": 664.0,
    "await put: task steps": 1.0,
    "publish: calls": 39.1,
    "publish: bytecodes": 733.0,
    "publish, held: calls": 87.1,
    "publish, held: bytecodes": 1241.0,
    "pending: blocks": 0.22,
    "pending, cancellable: blocks": 0.28,
    "pending: collector's visits": 0.11,
    "pending, cancellable: collector's visits": 0.11,
}
HEADROOM = 1.15
TRACKED = 0.05
"""Objects a message: one container for twenty messages, but none for each."""
PUT_OVER_BARE_CHANNEL = 4.0

HOUR = 3600.0
MESSAGES = 4_096
WARM_UP = 512
PAYLOADS = [number.to_bytes(500, "big") for number in range(MESSAGES)]


class Counter:
    """Counts what happens in this thread while one of its context managers is open."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def calls(self) -> Iterator[None]:
        def count(frame: FrameType, event: str, argument: object) -> None:
            if event in ("call", "c_call"):
                self.count += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            yield
        finally:
            sys.setprofile(before)

    @contextmanager
    def bytecodes(self) -> Iterator[None]:
        def trace(frame: FrameType, event: str, argument: object) -> Any:
            if event == "opcode":
                self.count += 1
            else:
                frame.f_trace_opcodes = True
                frame.f_trace_lines = False
            return trace

        before = sys.gettrace()
        # CPython 3.12 counts nothing unless it is asked for before the tracing begins.
        sys._getframe().f_trace_opcodes = True
        sys.settrace(trace)
        try:
            yield
        finally:
            sys.settrace(before)

    @contextmanager
    def steps(self) -> Iterator[None]:
        counter = self

        class Steps(trio.abc.Instrument):
            def before_task_step(self, task: trio.lowlevel.Task) -> None:
                counter.count += 1

        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        try:
            yield
        finally:
            trio.lowlevel.remove_instrument(steps)


KINDS: dict[str, Callable[[Counter], Any]] = {
    "calls": Counter.calls,
    "bytecodes": Counter.bytecodes,
    "task steps": Counter.steps,
}


def run(scene: Callable[[trio.testing.MockClock], Awaitable[float]]) -> float:
    """Run on a clock that stands still until it is told to jump, with no collection in between."""
    clock = trio.testing.MockClock()
    gc.collect()
    gc.disable()
    try:
        return trio.run(scene, clock, clock=clock)
    finally:
        gc.enable()


async def send(message: Message) -> None:
    """Send one message to nobody."""


async def publish_delayed(message: Message, delay: float) -> None:
    """Publish one message to nobody."""


async def send_batch(messages: Sequence[Message]) -> None:
    """Send a batch to nobody."""


def open_queue(*, cancellable: bool = False, batch: bool = False) -> Any:
    sender: dict[str, Any] = {"send_batch": send_batch} if batch else {"send": send}
    capacity = MESSAGES + WARM_UP
    return localdelay.open_delay_queue(**sender, capacity=capacity, workers=20, cancellable=cancellable)


async def warm_up(queue: DelayQueue, clock: trio.testing.MockClock) -> None:
    """Make whatever is made only once, on the way in and on the way out."""
    for payload in PAYLOADS[:WARM_UP]:
        queue.put_nowait(payload, delay=HOUR)
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(HOUR)
    await trio.testing.wait_all_tasks_blocked()
    assert queue.statistics().sent == WARM_UP


def cost_of_put(kind: str, *, cancellable: bool) -> float:
    async def scene(clock: trio.testing.MockClock) -> float:
        counter = Counter()
        async with open_queue(cancellable=cancellable) as queue:
            await warm_up(queue, clock)
            put_nowait = queue.put_nowait
            with KINDS[kind](counter):
                for payload in PAYLOADS:
                    put_nowait(payload, delay=HOUR)
            clock.jump(HOUR)
        return counter.count / MESSAGES

    return run(scene)


def cost_of_await_put(kind: str) -> float:
    async def scene(clock: trio.testing.MockClock) -> float:
        counter = Counter()
        async with open_queue() as queue:
            await warm_up(queue, clock)
            with KINDS[kind](counter):
                for payload in PAYLOADS:
                    await queue.put(payload, delay=HOUR)
            clock.jump(HOUR)
        return counter.count / MESSAGES

    return run(scene)


def cost_of_publish(kind: str, *, held: bool) -> float:
    async def scene(clock: trio.testing.MockClock) -> float:
        counter = Counter()
        async with open_queue() as queue:
            fallback = localdelay.Fallback(publish_delayed, queue)
            if held:
                fallback.force_open()
            for payload in PAYLOADS[:WARM_UP]:
                await fallback.publish(payload, delay=HOUR)
            with KINDS[kind](counter):
                for payload in PAYLOADS:
                    await fallback.publish(payload, delay=HOUR)
            done = fallback.statistics()
            assert (done.local if held else done.primary) == WARM_UP + MESSAGES
            clock.jump(HOUR)
        return counter.count / MESSAGES

    return run(scene)


def cost_of_leaving(kind: str, *, batch: bool) -> float:
    async def scene(clock: trio.testing.MockClock) -> float:
        counter = Counter()
        async with open_queue(batch=batch) as queue:
            await warm_up(queue, clock)
            for payload in PAYLOADS:
                queue.put_nowait(payload, delay=HOUR)
            await trio.testing.wait_all_tasks_blocked()
            with KINDS[kind](counter):
                clock.jump(HOUR)
                await trio.testing.wait_all_tasks_blocked()
            assert queue.statistics().sent == WARM_UP + MESSAGES
        return counter.count / MESSAGES

    return run(scene)


def what_stays(measure: Callable[[], int], *, cancellable: bool) -> float:
    async def scene(clock: trio.testing.MockClock) -> float:
        with trio.CancelScope() as scope:
            async with open_queue(cancellable=cancellable) as queue:
                await warm_up(queue, clock)
                gc.collect()
                before = measure()
                for payload in PAYLOADS:
                    queue.put_nowait(payload, delay=HOUR)
                gc.collect()
                stayed = measure() - before
                assert queue.statistics().pending == MESSAGES
                scope.cancel()
        return stayed / MESSAGES

    return run(scene)


def visits() -> int:
    """References that one full collection follows: what it takes grows with them."""
    return sum(len(gc.get_referents(tracked)) for tracked in gc.get_objects())


MEASURES: dict[str, Callable[[], float]] = {
    "put: calls": lambda: cost_of_put("calls", cancellable=False),
    "put: bytecodes": lambda: cost_of_put("bytecodes", cancellable=False),
    "put, cancellable: calls": lambda: cost_of_put("calls", cancellable=True),
    "put, cancellable: bytecodes": lambda: cost_of_put("bytecodes", cancellable=True),
    "one by one: calls": lambda: cost_of_leaving("calls", batch=False),
    "one by one: bytecodes": lambda: cost_of_leaving("bytecodes", batch=False),
    "one by one: task steps": lambda: cost_of_leaving("task steps", batch=False),
    "batch: calls": lambda: cost_of_leaving("calls", batch=True),
    "batch: bytecodes": lambda: cost_of_leaving("bytecodes", batch=True),
    "batch: task steps": lambda: cost_of_leaving("task steps", batch=True),
    "await put: bytecodes": lambda: cost_of_await_put("bytecodes"),
    "await put: task steps": lambda: cost_of_await_put("task steps"),
    "publish: calls": lambda: cost_of_publish("calls", held=False),
    "publish: bytecodes": lambda: cost_of_publish("bytecodes", held=False),
    "publish, held: calls": lambda: cost_of_publish("calls", held=True),
    "publish, held: bytecodes": lambda: cost_of_publish("bytecodes", held=True),
    "pending: blocks": lambda: what_stays(sys.getallocatedblocks, cancellable=False),
    "pending, cancellable: blocks": lambda: what_stays(sys.getallocatedblocks, cancellable=True),
    "pending: collector's visits": lambda: what_stays(visits, cancellable=False),
    "pending, cancellable: collector's visits": lambda: what_stays(visits, cancellable=True),
}


@pytest.mark.parametrize("what", MEASURES)
def test_the_hot_path_costs_no_more_than_it_did(what: str) -> None:
    """So many calls, bytecodes, task steps, memory blocks or visits a message, and 15 % on top."""
    measured = MEASURES[what]()
    print(f"{what}: {measured:.3f}")
    assert 0 < measured <= HEADROOM * COUNTED[what]


@pytest.mark.parametrize("cancellable", [False, True])
def test_the_collector_tracks_no_pending_message(cancellable: bool) -> None:
    """However many messages wait, a full collection has none of them to walk."""
    stayed = what_stays(lambda: len(gc.get_objects()), cancellable=cancellable)
    print(f"tracked objects a message: {stayed:.4f}")
    assert stayed < TRACKED


def test_a_put_is_not_many_times_a_bare_memory_channel() -> None:
    """Processor time beside a `send_nowait` of a tuple with a clock read, in turns, median over median."""

    async def scene(clock: trio.testing.MockClock) -> float:
        ours: list[float] = []
        bare: list[float] = []
        sending, receiving = trio.open_memory_channel[tuple[float, bytes]](float("inf"))
        with trio.CancelScope() as scope, sending, receiving:
            async with open_queue() as queue:
                for start in range(0, MESSAGES, 256):
                    payloads = PAYLOADS[start : start + 256]
                    began = time.thread_time()
                    for payload in payloads:
                        queue.put_nowait(payload, delay=HOUR)
                    between = time.thread_time()
                    for payload in payloads:
                        sending.send_nowait((trio.current_time() + HOUR, payload))
                    ended = time.thread_time()
                    ours.append(between - began)
                    bare.append(ended - between)
                scope.cancel()
        return statistics.median(ours) / statistics.median(bare)

    ratio = run(scene)
    print(f"put_nowait: {ratio:.2f} times a bare channel")
    assert ratio <= PUT_OVER_BARE_CHANNEL
