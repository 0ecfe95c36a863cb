"""Memory: large payloads up to `capacity_bytes`, and a producer that is ten times too fast.

On the virtual clock, in a process of its own: `python -m tests.kit.faults.filled ORDERS`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from trio.testing import MockClock

from localdelay import DelayQueue, Message, QueueFull, open_delay_queue
from tests.kit.conserving import conserve
from tests.kit.faults.gauges import MEGABYTE, begin_peak, peak
from tests.kit.faults.row import Row
from tests.kit.faults.scale import Scale, Watch
from tests.kit.faults.victims import Child

_TIMEOUT = 300.0
_SLACK = 24 * MEGABYTE
"""What an interpreter takes for itself while it works: arenas, caches, a histogram or two."""
_OVERHEAD = 600
"""Bytes that the queue may take for a message besides its payload."""
_FRAGMENTS = 1.25
"""What malloc leaves between large blocks."""

_LARGEST = 2 * MEGABYTE
_PRODUCERS = 8
_BYTES = 64 * MEGABYTE


@attrs.frozen(kw_only=True)
class Orders:
    seed: int
    large: bool
    messages: int = 0
    """Of large payloads."""
    seconds: float = 600.0
    """Virtual, that a producer is too fast."""


@attrs.define
class _Seen:
    """What came out, by the number in the payload."""

    copies: bytearray
    early: int = 0
    refused: int = 0
    accepted: int = 0


def too_large(fault: str, scale: Scale) -> Row:
    """Payloads up to 2 MB from eight producers, through a queue that may hold 64 MB."""
    messages = 4_000 if scale.long else 800
    bound = round(_FRAGMENTS * (_BYTES + (_PRODUCERS + 1) * _LARGEST)) + _SLACK
    seed = scale.random(fault).randrange(1 << 30)
    return _row(fault, Orders(seed=seed, large=True, messages=messages), bound)


def too_fast(fault: str, scale: Scale) -> Row:
    """2,000 puts a second for ten minutes, to the write-up's instance: 24,000 wait, 200 are sent in one."""
    bound = _CAPACITY * (_PAYLOAD + _OVERHEAD) + _SLACK
    seed = scale.random(fault).randrange(1 << 30)
    return _row(fault, Orders(seed=seed, large=False), bound)


def _row(fault: str, orders: Orders, bound: int) -> Row:
    watch = Watch()
    with Child("tests.kit.faults.filled", orders) as child:
        told = child.report(_TIMEOUT)
    grown = told["peak"] - told["before"]
    wrong = [f"{grown:,} bytes more than before are resident, and {bound:,} may be"] * (grown > bound)
    if not told["refused"]:
        wrong.append("it was never full")
    return Row(
        fault=fault,
        cycles=1,
        accepted=told["accepted"],
        arrived=told["arrived"],
        lost=told["accepted"] - told["arrived"],
        duplicated=told["duplicated"],
        allowed_duplicates=0,
        early=told["early"],
        seconds=watch.seconds,
        notes=f"{grown / MEGABYTE:.0f} of {bound / MEGABYTE:.0f} MB, {told['refused']:,} puts found no room",
        wrong=tuple(wrong),
    )


_CAPACITY, _WORKERS, _SEND_TIME, _PAYLOAD = 24_000, 20, 0.1, 500
_RATE, _TICK, _DELAY = 2_000, 0.05, 120.0


def _sender(seen: _Seen, seconds: float) -> Callable[[Message], Awaitable[None]]:
    async def send(message: Message) -> None:
        number, due, _ = message.payload.split(b" ", 2)
        seen.early += trio.current_time() < float(due)
        await trio.sleep(seconds)
        seen.copies[int(number)] += 1

    return send


def _payload(number: int, delay: float, size: int) -> bytes:
    # Rounded down: by its clock it can't be due before what this says.
    due = trio.current_time() + delay - 1e-6
    return (b"%d %.6f " % (number, due)).ljust(size, b".")


async def _fill(orders: Orders) -> dict[str, Any]:
    draws, seen = random.Random(orders.seed), _Seen(bytearray(orders.messages))
    before = begin_peak()

    async def produce(queue: DelayQueue, numbers: range) -> None:
        for number in numbers:
            delay, size = draws.uniform(0.0, 60.0), draws.randint(1_000, _LARGEST)
            payload = _payload(number, delay, size)
            try:
                queue.put_nowait(payload, delay=delay)
            except QueueFull:
                seen.refused += 1
                await queue.put(payload, delay=delay)
            seen.accepted += 1
            await trio.sleep(0.01)

    async with open_delay_queue(
        _sender(seen, 0.05), capacity=1_000_000, capacity_bytes=_BYTES, workers=_WORKERS
    ) as queue:
        async with trio.open_nursery() as nursery:
            for first in range(_PRODUCERS):
                nursery.start_soon(produce, queue, range(first, orders.messages, _PRODUCERS))
    return _told(queue, seen, before)


async def _flood(orders: Orders) -> dict[str, Any]:
    seen = _Seen(bytearray(round(_RATE * orders.seconds)))
    before, number = begin_peak(), 0
    async with open_delay_queue(_sender(seen, _SEND_TIME), capacity=_CAPACITY, workers=_WORKERS) as queue:
        while trio.current_time() < orders.seconds:
            for _ in range(round(_RATE * _TICK)):
                if number == len(seen.copies):
                    break
                try:
                    queue.put_nowait(_payload(number, _DELAY, _PAYLOAD), delay=_DELAY)
                    seen.accepted += 1
                except QueueFull:
                    seen.refused += 1
                number += 1
            await trio.sleep(_TICK)
    return _told(queue, seen, before)


def _told(queue: DelayQueue, seen: _Seen, before: int) -> dict[str, Any]:
    most = peak()
    conserve(queue)
    return {
        "before": before,
        "peak": most,
        "accepted": seen.accepted,
        "arrived": sum(copies > 0 for copies in seen.copies),
        "duplicated": sum(copies - 1 for copies in seen.copies if copies),
        "early": seen.early,
        "refused": seen.refused,
    }


if __name__ == "__main__":
    orders = Orders(**json.loads(sys.argv[1]))
    began_at_zero = MockClock(autojump_threshold=0)
    print(json.dumps(trio.run(_fill if orders.large else _flood, orders, clock=began_at_zero)), flush=True)
