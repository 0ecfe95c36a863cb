"""One sample of one scenario for one contender, in a process of its own.

`python -m bench.scenarios KIND ARGUMENTS`, ARGUMENTS a JSON object, prints one JSON object.
`bench.speed` starts these; that is the script to run.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
from array import array
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import trio
import trio.testing

import localdelay

from .contenders import BARE, Contender, open_contender
from .load import BODY_BYTES, Generator, body, draw_delays, percentiles

Result: TypeAlias = dict[str, Any]
_HOUR = 3600.0
_WARM_UP = 2000
_STATM = Path("/proc/self/statm")
_SCHEDSTAT = Path("/proc/self/schedstat")


def _microseconds(seconds: float, messages: int) -> float:
    return seconds / messages * 1e6


def _resident_bytes() -> int | None:
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _waited_for_a_core() -> float | None:
    """Seconds that this process could have run and others ran instead, where Linux tells."""
    if not _SCHEDSTAT.exists():
        return None
    return int(_SCHEDSTAT.read_text().split()[1]) / 1e9


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


async def closed_loop(contender: str, messages: int) -> Result:
    """One caller, as fast as it can: microseconds of processor time a message."""
    return {
        "put_nowait": await _put_nowait(contender, messages),
        "await_put": await _await_put(contender, messages),
        "checkpoint": await _checkpoint(messages),
        "put_take_send": None if contender == BARE else await _put_take_send(contender, messages),
    }


async def _put_nowait(contender: str, messages: int) -> float:
    bodies = [body(number) for number in range(messages)]
    with trio.CancelScope() as scope:
        async with open_contender(contender, _ignore, capacity=messages + _WARM_UP) as queue:
            put_nowait = queue.put_nowait
            for payload in bodies[:_WARM_UP]:
                put_nowait(payload, delay=_HOUR)
            began = time.process_time()
            for payload in bodies:
                put_nowait(payload, delay=_HOUR)
            took = time.process_time() - began
            scope.cancel()
    return _microseconds(took, messages)


async def _await_put(contender: str, messages: int) -> float:
    bodies = [body(number) for number in range(messages)]
    with trio.CancelScope() as scope:
        async with open_contender(contender, _ignore, capacity=messages + _WARM_UP) as queue:
            put = queue.put
            for payload in bodies[:_WARM_UP]:
                await put(payload, delay=_HOUR)
            began = time.process_time()
            for payload in bodies:
                await put(payload, delay=_HOUR)
            took = time.process_time() - began
            scope.cancel()
    return _microseconds(took, messages)


async def _checkpoint(messages: int) -> float:
    began = time.process_time()
    for _ in range(messages):
        await trio.lowlevel.checkpoint()
    return _microseconds(time.process_time() - began, messages)


async def _put_take_send(contender: str, messages: int) -> float:
    bodies = [body(number) for number in range(messages)]
    sent = count()
    async with open_contender(contender, lambda _: next(sent), capacity=messages) as queue:
        await trio.testing.wait_all_tasks_blocked()
        put_nowait = queue.put_nowait
        began = time.process_time()
        for payload in bodies:
            put_nowait(payload, delay=0.0)
    took = time.process_time() - began
    if (arrived := next(sent)) != messages:
        raise AssertionError(f"{contender} sent {arrived} of {messages} messages")
    return _microseconds(took, messages)


def _ignore(_: float) -> None:
    """Record nothing."""


async def open_loop(
    contender: str, rate: float, seconds: float, delay: tuple[float, float], seed: int, workers: int
) -> Result:
    """`rate` messages a second for `seconds`, each due after a delay drawn from `delay`, all in seconds.

    What has not been sent by half of `seconds` plus 2 s after the last one was due is given up.
    """
    messages = round(rate * seconds)
    delays = draw_delays(messages, *delay, seed)
    clock: Callable[[], float] = trio.lowlevel.current_clock().current_time
    generator = Generator(clock, rate=rate, delays=delays)
    late = array("d")
    keep = late.append
    queue: Contender | None = None
    gc.collect()
    waited = _waited_for_a_core()
    wall, cpu = clock(), time.process_time()
    with trio.move_on_after(seconds + delay[1] + seconds / 2 + 2):
        async with open_contender(
            contender, lambda execute_at: keep(clock() - execute_at), capacity=messages, workers=workers
        ) as queue:
            await generator.offer(queue.put_nowait)
    cpu, wall = time.process_time() - cpu, clock() - wall
    waited_after = _waited_for_a_core()
    return {
        "offered": messages,
        "put": generator.done,
        "sent": len(late),
        "unsent": messages - len(late),
        "early": sum(1 for lateness in late if lateness < 0),
        "lateness": attrs.asdict(percentiles(late)),
        "put_lateness": attrs.asdict(generator.lateness()),
        "own": _own_figures(queue),
        "cpu_us": _microseconds(cpu, max(1, len(late) or generator.done)),
        "waited_share": None if waited is None or waited_after is None else (waited_after - waited) / wall,
        "seconds": wall,
    }


async def memory(contender: str, messages: int) -> Result:
    """Resident bytes a pending message beyond its payload's 500; None where there is no /proc to tell."""
    with trio.CancelScope() as scope:
        async with open_contender(contender, _ignore, capacity=messages + _WARM_UP) as queue:
            for number in range(_WARM_UP):
                queue.put_nowait(body(number), delay=_HOUR)
            gc.collect()
            before = _resident_bytes()
            for number in range(_WARM_UP, _WARM_UP + messages):
                queue.put_nowait(body(number), delay=_HOUR)
            gc.collect()
            after = _resident_bytes()
            scope.cancel()
    if before is None or after is None:
        return {"messages": messages, "beyond_payload": None}
    return {"messages": messages, "beyond_payload": (after - before) / messages - BODY_BYTES}


SCENARIOS: dict[str, Callable[..., Awaitable[Result]]] = {
    "closed": closed_loop,
    "open": open_loop,
    "memory": memory,
}


def main(kind: str, arguments: str) -> None:
    # A block that is left with messages pending says so in the log, which here is on purpose.
    logging.getLogger("localdelay").setLevel(logging.ERROR)

    async def run() -> Result:
        return await SCENARIOS[kind](**json.loads(arguments))

    print(json.dumps(trio.run(run)))


if __name__ == "__main__":
    main(*sys.argv[1:])
