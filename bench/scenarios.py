"""One sample of one scenario for one contender, in a process of its own.

`python -m bench.scenarios KIND ARGUMENTS`, ARGUMENTS a JSON object, prints one JSON object.
`bench.speed` starts these; that is the script to run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext

import trio

import localdelay
from localdelay.benchmark.load import CHUNK
from localdelay.benchmark.process import resident_bytes

from .contenders import BARE, CALL_AT, Contender, open_contender
from .pace import BODY_BYTES, Outcome, Pace, Recorder, body, draw_delays, offer, take_turns
from .samples import Result, waited_for_a_core
from .worlds import AsyncioWorld, TrioWorld, World

_HOUR = 3600.0
_WARM_UP = 2000
_REHEARSED = 1000
_HOLD_BEFORE = 0.05
_SETTLE = 0.01
"""Seconds until the workers of whichever contender have begun to wait."""


def _microseconds(seconds: float, messages: int) -> float:
    return seconds / messages * 1e6


def _own_figures(queue: Contender | None) -> Result | None:
    if not isinstance(queue, localdelay.DelayQueue):
        return None
    statistics = queue.statistics()
    late = statistics.lateness
    return {
        "accepted": statistics.accepted,
        "sent": statistics.sent,
        "pending": statistics.pending,
        "lateness": {name: getattr(late, name) for name in ("count", "p50", "p90", "p99", "p999", "max")},
    }


def world_of(contender: str) -> World:
    """The event loop that the contender lives in, which must be the one that runs."""
    return AsyncioWorld() if contender == CALL_AT else TrioWorld()


async def closed_loop(contender: str, messages: int) -> Result:
    """One caller, as fast as it can: microseconds of processor time a message."""
    return {
        **await put_nowait(contender, messages),
        **await await_put(contender, messages),
        "put_take_send": None if contender == BARE else await _put_take_send(contender, messages),
    }


async def put_nowait(contender: str, messages: int) -> Result:
    """Microseconds of processor time a call."""
    world = world_of(contender)
    bodies = [body(number) for number in range(messages)]
    recorder = Recorder(world.clock)
    async with (
        world.move_on_at(math.inf) as give_up,
        open_contender(contender, recorder, capacity=messages + _WARM_UP) as queue,
    ):
        put = queue.put_nowait
        for payload in bodies[:_WARM_UP]:
            put(payload, delay=_HOUR)
        began = time.process_time()
        for payload in bodies:
            put(payload, delay=_HOUR)
        took = time.process_time() - began
        give_up()
    return {"put_nowait": _microseconds(took, messages)}


async def await_put(contender: str, messages: int) -> Result:
    """Microseconds of processor time an awaited call, and a checkpoint, which is a part of it. For Trio."""
    world = TrioWorld()
    bodies = [body(number) for number in range(messages)]
    recorder = Recorder(world.clock)
    async with (
        world.move_on_at(math.inf) as give_up,
        open_contender(contender, recorder, capacity=messages + _WARM_UP) as queue,
    ):
        put = queue.put
        for payload in bodies[:_WARM_UP]:
            await put(payload, delay=_HOUR)
        began = time.process_time()
        for payload in bodies:
            await put(payload, delay=_HOUR)
        took = time.process_time() - began
        give_up()
    return {"await_put": _microseconds(took, messages), "checkpoint": await _checkpoint(messages)}


async def _checkpoint(messages: int) -> float:
    began = time.process_time()
    for _ in range(messages):
        await trio.lowlevel.checkpoint()
    return _microseconds(time.process_time() - began, messages)


async def _put_take_send(contender: str, messages: int) -> float:
    world = world_of(contender)
    bodies = [body(number) for number in range(messages)]
    recorder = Recorder(world.clock)
    async with open_contender(contender, recorder, capacity=messages) as queue:
        await world.sleep_until(world.clock() + _SETTLE)
        put = queue.put_nowait
        began = time.process_time()
        for payload in bodies:
            put(payload, delay=0.0)
    took = time.process_time() - began
    if (sent := len(recorder.late)) != messages:
        raise AssertionError(f"{contender} sent {sent} of {messages} messages")
    return _microseconds(took, messages)


async def all_at_once(contender: str, messages: int, workers: int, margin: float = 0.5) -> Result:
    """Messages a second, when all of them are due before the first is sent.

    They are put with one delay for all, so they become due in the order of their puts; meanwhile the event
    loop (or the threads' lock) is held. From when it is let go until all is sent. None if the first was due
    before the last was put: the delay is thrice what the puts should take, and `margin` seconds.
    """
    delay = margin + 3 * messages * await _seconds_a_put(contender, workers)
    world = world_of(contender)
    recorder = Recorder(world.clock)
    async with open_contender(contender, recorder, capacity=messages, workers=workers) as queue:
        gc.collect()
        first_due = world.clock() + delay
        await _put_all(world, queue, messages, delay)
        last_due = world.clock() + delay
        in_time = last_due - delay < first_due
        await world.sleep_until(first_due - _HOLD_BEFORE)
        with getattr(queue, "hold", nullcontext)():
            while (remaining := last_due - world.clock()) > 0:
                time.sleep(remaining)  # noqa: ASYNC251 (to hold the loop is what is meant)
        released = world.clock()
    took = world.clock() - released
    early = sum(late < 0 for late in recorder.late)
    return {"drained": messages / took if in_time and took else None, "early": early}


async def _seconds_a_put(contender: str, workers: int) -> float:
    world = world_of(contender)
    recorder = Recorder(world.clock)
    async with (
        world.move_on_at(math.inf) as give_up,
        open_contender(contender, recorder, capacity=_REHEARSED, workers=workers) as queue,
    ):
        began = world.clock()
        await _put_all(world, queue, _REHEARSED, _HOUR)
        took = world.clock() - began
        give_up()
    return took / _REHEARSED


async def _put_all(world: World, queue: Contender, messages: int, delay: float) -> None:
    for number in range(messages):
        queue.put_nowait(body(number), delay=delay)
        if number % CHUNK == CHUNK - 1:
            await world.checkpoint()


async def open_loop(
    contender: str,
    rate: float,
    seconds: float,
    delay: Sequence[float],
    seed: int,
    workers: int,
    in_turn: bool = False,
    patience: float | None = None,
) -> Result:
    """`rate` messages a second for `seconds`, each due after a delay between the two of `delay`.

    With `in_turn`, `delay` has any number of delays, which the messages take in turn. What has not been
    sent `patience` seconds after the last one was due (half of `seconds` plus 2) is given up.
    """
    world = world_of(contender)
    messages = round(rate * seconds)
    delays = take_turns(messages, delay) if in_turn else draw_delays(messages, min(delay), max(delay), seed)
    recorder = Recorder(world.clock)
    pace = Pace(world.clock, rate=rate, delays=delays)
    gc.collect()
    waited = waited_for_a_core()
    began, cpu = world.clock(), time.process_time()
    if patience is None:
        patience = seconds / 2 + 2
    async with (
        world.move_on_at(began + seconds + max(delay) + patience),
        open_contender(contender, recorder, capacity=messages, workers=workers) as queue,
    ):
        await offer(world, pace, queue.put_nowait)
    cpu, wall = time.process_time() - cpu, world.clock() - began
    waited_after = waited_for_a_core()
    outcome = Outcome(messages, recorder.late, pace.runs, rate, cpu, wall)
    return {
        **outcome.figures(),
        "own": _own_figures(queue),
        "waited_share": None if waited is None or waited_after is None else (waited_after - waited) / wall,
    }


async def memory(contender: str, messages: int) -> Result:
    """Resident bytes a pending message beyond its payload's 500; None where there is no /proc to tell."""
    world = world_of(contender)
    recorder = Recorder(world.clock)
    async with (
        world.move_on_at(math.inf) as give_up,
        open_contender(contender, recorder, capacity=messages + _WARM_UP) as queue,
    ):
        for number in range(_WARM_UP):
            await queue.put(body(number), delay=_HOUR)
        gc.collect()
        before = resident_bytes()
        for number in range(_WARM_UP, _WARM_UP + messages):
            await queue.put(body(number), delay=_HOUR)
        gc.collect()
        after = resident_bytes()
        give_up()
    if before is None or after is None:
        return {"messages": messages, "beyond_payload": None}
    return {"messages": messages, "beyond_payload": (after - before) / messages - BODY_BYTES}


SCENARIOS: dict[str, Callable[..., Awaitable[Result]]] = {
    "closed": closed_loop,
    "put": put_nowait,
    "await": await_put,
    "burst": all_at_once,
    "open": open_loop,
    "memory": memory,
}


async def sample(kind: str, arguments: Result) -> Result:
    """One sample, in the event loop that its contender needs."""
    return await SCENARIOS[kind](**arguments)


def main(kind: str, text: str) -> None:
    # A block that is left with messages pending says so in the log, which here is on purpose.
    logging.getLogger("localdelay").setLevel(logging.ERROR)
    arguments = json.loads(text)
    if arguments["contender"] == CALL_AT:
        print(json.dumps(asyncio.run(sample(kind, arguments))))
    else:
        print(json.dumps(trio.run(sample, kind, arguments)))


if __name__ == "__main__":
    main(*sys.argv[1:])
