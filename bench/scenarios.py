"""The scenarios of `bench.peers`, of which each sample is one for one contender.

Each is one coroutine for all worlds: it waits by its loop alone.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from localdelay.benchmark.contenders import Opened
from localdelay.benchmark.load import CHUNK, Delays, Loop
from localdelay.benchmark.process import resident_bytes
from localdelay.benchmark.result import Settings
from localdelay.benchmark.round import Round

from .contenders import CONTENDERS, PROGRAM, Asked
from .loops import run
from .samples import BODY_BYTES, Result, body, waited_for_a_core
from .times import Times

_HOUR = 3600.0
_WARM_UP = 2000
_REHEARSED = 1000
_HOLD_BEFORE = 0.05
_LOOK = 0.005
_SETTLE = 0.2
"""Seconds, for a queue in a thread of its own to take in what it was given."""
_LONGEST_BURST = 60.0
_TRIES = 4
_PRODUCERS = 8
_PRODUCED_DELAYS = 50
"""Milliseconds: what they put falls due from at once to a twentieth of a second later."""
_ROOM = 20_000


def _open(
    name: str, loop: Loop, times: Times, workers: int = 20, room: int | None = None
) -> AbstractAsyncContextManager[Opened]:
    opener = CONTENDERS[name].open
    if opener is None:
        raise ValueError(f"{name} is a program")
    capacity = len(times.begun) if room is None else room
    return opener(Asked(times=times, loop=loop, capacity=capacity, workers=workers))


async def put_nowait(loop: Loop, contender: str, messages: int) -> Result:
    """Microseconds of processor time a call, and calls/s by the wall."""
    bodies = [body(number) for number in range(messages)]
    async with _open(contender, loop, Times(loop.clock, messages + _WARM_UP)) as queue:
        put = queue.put_nowait
        for payload in bodies[:_WARM_UP]:
            put(payload, delay=_HOUR)
        cpu, began = time.process_time(), time.perf_counter()
        for payload in bodies:
            put(payload, delay=_HOUR)
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"put_us": 1e6 * cpu / messages, "puts": messages / took}


async def await_put(loop: Loop, contender: str, messages: int) -> Result:
    """Microseconds of processor time an awaited call, and a checkpoint of the loop, which is a part of it."""
    bodies = [body(number) for number in range(messages)]
    async with _open(contender, loop, Times(loop.clock, messages + _WARM_UP)) as queue:
        put = queue.put
        assert put is not None
        for payload in bodies[:_WARM_UP]:
            await put(payload, delay=_HOUR)
        began = time.process_time()
        for payload in bodies:
            await put(payload, delay=_HOUR)
        took = time.process_time() - began
    began, checkpoint = time.process_time(), loop.checkpoint
    for _ in range(messages):
        await checkpoint()
    return {
        "await_us": 1e6 * took / messages,
        "checkpoint_us": 1e6 * (time.process_time() - began) / messages,
    }


async def memory(loop: Loop, contender: str, messages: int) -> Result:
    """Resident bytes a pending message beyond its payload's 500; None where there is no /proc to tell."""
    async with _open(contender, loop, Times(loop.clock, messages + _WARM_UP)) as queue:

        async def fill(first: int, stop: int) -> int | None:
            for number in range(first, stop):
                if queue.put is None:
                    queue.put_nowait(body(number), delay=_HOUR)
                else:
                    await queue.put(body(number), delay=_HOUR)
                if number % CHUNK == CHUNK - 1:
                    await loop.checkpoint()
            await loop.sleep_until(loop.clock() + _SETTLE)
            gc.collect()
            return resident_bytes()

        before = await fill(0, _WARM_UP)
        after = await fill(_WARM_UP, _WARM_UP + messages)
    if before is None or after is None:
        return {"failed": "this system does not tell"}
    return {"beyond_payload": (after - before) / messages - BODY_BYTES}


async def all_at_once(loop: Loop, contender: str, messages: int, workers: int, margin: float = 0.5) -> Result:
    """Messages a second, when all of them are due before the first is sent.

    They are put with one delay for all, so they become due in the order of their puts; meanwhile the queue is
    held, or the loop that it lives on. From when it is let go until the last send begins. The delay is
    thrice what the puts should take, and `margin` seconds; where the first is due before the last is put, it
    is done once more with twice the delay, and so on.
    """
    delay = margin + 3 * messages * await _seconds_a_put(loop, contender, workers)
    for _ in range(_TRIES):
        found = await _burst(loop, contender, messages, workers, delay)
        if found is not None:
            return found
        delay *= 2
    return {"failed": "the first was due before the last was put"}


async def _burst(loop: Loop, contender: str, messages: int, workers: int, delay: float) -> Result | None:
    """None if the first was due before all of it was held."""
    clock, times = loop.clock, Times(loop.clock, messages)
    async with _open(contender, loop, times, workers) as queue:
        gc.collect()
        first_due = clock() + delay
        await _put_all(loop, queue, messages, delay)
        last_due = clock() + delay
        await loop.sleep_until(first_due - _HOLD_BEFORE)
        if queue.hold is not None:
            await queue.hold()
        in_time = clock() < first_due
        while in_time and (remaining := last_due - clock()) > 0:
            time.sleep(remaining)  # noqa: ASYNC251 (to hold the loop is what is meant)
        released = clock()
        if queue.release is not None:
            await queue.release()
        if not in_time:
            return None
        await _until_sent(loop, times, messages, released + _LONGEST_BURST)
    if times.sent != messages or any(times.flags):
        return {"failed": f"{times.sent} of {messages} sent, {sum(times.flags)} early"}
    return {"drained": messages / (max(times.begun) - released)}


async def _seconds_a_put(loop: Loop, contender: str, workers: int) -> float:
    async with _open(contender, loop, Times(loop.clock, _REHEARSED), workers) as queue:
        began = loop.clock()
        await _put_all(loop, queue, _REHEARSED, _HOUR)
        return (loop.clock() - began) / _REHEARSED


async def _put_all(loop: Loop, queue: Opened, messages: int, delay: float) -> None:
    for number in range(messages):
        queue.put_nowait(body(number), delay=delay)
        if number % CHUNK == CHUNK - 1:
            await loop.checkpoint()


async def _until_sent(loop: Loop, times: Times, messages: int, over: float) -> None:
    while times.sent < messages and loop.clock() < over:
        await loop.sleep_until(loop.clock() + _LOOK)


async def open_loop(
    loop: Loop,
    contender: str,
    rate: float,
    seconds: float,
    delays: Sequence[float],
    is_range: bool,
    seed: int,
    workers: int,
    patience: float,
) -> Result:
    """`rate` messages a second for `seconds`, each put at its own time, late or not, and due after its delay.

    Latency counts from that time and its delay, not from the put. What is put or sent `patience` seconds
    after its time is given up.
    """
    load = Settings(
        rate=(rate, rate), seconds=seconds, delays=Delays(tuple(delays), is_range), size=BODY_BYTES, seed=seed
    )
    times = Times(loop.clock, load.pace.total)
    async with _open(contender, loop, times, workers) as queue:
        one = Round(load, loop, times, patience)
        waited, cpu = waited_for_a_core(), time.process_time()
        await one.go(queue.put_nowait, loop.clock())
        wall, cpu, waited_after = loop.clock() - one.start, time.process_time() - cpu, waited_for_a_core()
    return {
        **times.figures(load.pace, load.delays, seed, one.start),
        "cpu_us": 1e6 * cpu / max(1, times.sent),
        "waited_share": None if waited is None or waited_after is None else (waited_after - waited) / wall,
    }


async def producers(loop: Loop, contender: str, messages: int, workers: int) -> Result:
    """Puts/s of eight threads at once, while what they have put falls due and is sent. For plain threads.

    They wait for room: there is some for 20,000 messages, where the queue has a bound.
    """
    each = messages // _PRODUCERS
    times = Times(loop.clock, each * _PRODUCERS)
    async with _open(contender, loop, times, workers, _ROOM) as queue:
        put = queue.put_waiting
        assert put is not None

        def produce(first: int) -> None:
            for number in range(first, first + each):
                put(body(number), delay=number % _PRODUCED_DELAYS / 1000)

        threads = [threading.Thread(target=produce, args=(each * at,)) for at in range(_PRODUCERS)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        await _until_sent(loop, times, len(times.begun), loop.clock() + _LONGEST_BURST)
    if times.sent != len(times.begun):
        return {"failed": f"{times.sent} of {len(times.begun)} sent"}
    return {"producers": len(times.begun) / took}


SCENARIOS: dict[str, Callable[..., Coroutine[Any, Any, Result]]] = {
    "put": put_nowait,
    "await": await_put,
    "memory": memory,
    "burst": all_at_once,
    "open": open_loop,
    "producers": producers,
}


async def sample(loop: Loop, kind: str, arguments: Result) -> Result:
    """One sample, on the loop of its contender."""
    return await SCENARIOS[kind](loop, **arguments)


def _in_its_world(kind: str, **arguments: Any) -> Result:
    world = CONTENDERS[arguments["contender"]].world
    assert world != PROGRAM, "it is no Python"
    return run(world, lambda loop: sample(loop, kind, arguments))


SAMPLES = {kind: partial(_in_its_world, kind) for kind in SCENARIOS}
