"""The scenes of `bench.valve` with due sends: a quota that counts them apart, and a broker that is away.

In virtual time; what a valve or a queue is opened with stands under its name in the table.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import trio
import trio.testing

from localdelay import (
    AdaptiveLimit,
    BreakerPolicy,
    Fallback,
    Message,
    ProbePolicy,
    RateLimit,
    Throttled,
    open_delay_queue,
)
from localdelay.costs import APSARA_ROCKETMQ

from .samples import Result
from .valve_scenes import Windows

QUOTA = 1000
"""Calls in each whole second; a delayed publish counts as five."""
OFFERED = 500.0
"""Delayed messages a second."""
VALVES: dict[str, Callable[[], dict[str, Any]]] = {
    "always ask": lambda: {"breaker": None, "limit": None},
    "breaker": lambda: {"breaker": BreakerPolicy(), "limit": None},
    "adaptive, all count 1": lambda: {"limit": AdaptiveLimit()},
    "adaptive, with costs": lambda: {"limit": AdaptiveLimit(cost=APSARA_ROCKETMQ)},
    "RateLimit, all count 1": lambda: {"breaker": None, "limit": RateLimit(QUOTA)},
    "RateLimit with costs": lambda: {"breaker": None, "limit": RateLimit(QUOTA, cost=APSARA_ROCKETMQ)},
}
RATE = 200
"""Messages that come due in each second."""
WORKERS = 20
SEND_TIME = 0.005
"""Seconds that a send takes, also one that fails."""
_BEFORE, _AFTER = 5, 65
"""Seconds of traffic before it, and after it."""
_DOWN: dict[str, Any] = {"raises": ConnectionResetError}
_REFUSES: dict[str, Any] = {"raises": Throttled}
OUTAGES: dict[str, dict[str, Any]] = {
    "down, each retried on its own": {**_DOWN, "probe": None, "limit": None},
    "down, probed": {**_DOWN, "probe": ProbePolicy(), "limit": AdaptiveLimit},
    "refuses all, each retried on its own": {**_REFUSES, "probe": None, "limit": None},
    "refuses all, adaptive": {**_REFUSES, "probe": ProbePolicy(), "limit": AdaptiveLimit},
}
FLOORS = {
    "adaptive, with costs": {"refused": 5.0, "late": 0.2},
    "down, probed": {"calls": 150, "gone": 6.0},
    "refuses all, adaptive": {"calls": 150, "gone": 6.0},
}
"""The most of each figure where costs are told and the quota is not, and where one probes."""


@attrs.frozen
class Drawn:
    """What came of the quota with one valve, once what is held is due."""

    native: float
    """Delayed publishes a second that the primary took."""
    refused: float
    """Due sends a second that it refused."""
    late: float
    """Seconds: the 99th percentile of the lateness at the first send that was taken."""


@attrs.frozen
class Outlived:
    """What came of the outage."""

    calls: int
    """Sends that were tried while it lasted."""
    overdue: int
    """Messages that were due and not sent when it ended."""
    gone: float
    """Seconds from its end until none was overdue."""


def play_quota(valve: str, *, seed: int = 1, delay: float = 120.0) -> Drawn:
    """Play twice the delay; the second half counts."""
    random.seed(seed)  # the jitter of breakers, limits and retries
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play_quota, VALVES[valve](), seed, delay, clock=clock)


async def _play_quota(options: dict[str, Any], seed: int, delay: float) -> Drawn:
    quota, begun = Windows(QUOTA), trio.current_time()
    native = refused = 0
    late: list[float] = []

    async def publish_delayed(message: Message, seconds: float) -> None:
        nonlocal native
        if not quota(trio.current_time(), 5):
            raise Throttled
        native += trio.current_time() >= begun + delay

    async def send(message: Message) -> None:
        nonlocal refused
        if not quota(trio.current_time()):
            refused += 1
            raise Throttled
        late.append(trio.current_time() - message.execute_at)

    drawn, now = random.Random(seed), 0.0
    async with open_delay_queue(send, capacity=1_000_000, workers=50, limit=options["limit"]) as queue:
        fallback = Fallback(publish_delayed, queue, **options)
        while (now := now + drawn.expovariate(OFFERED)) < 2 * delay:
            await trio.sleep_until(begun + now)
            await fallback.publish(b"", delay=delay)
        await queue.drain(0.0)
    late.sort()
    return Drawn(native / delay, refused / delay, late[int(0.99 * len(late))])


def play_outage(scene: str, *, seed: int = 1, seconds: float = 60.0) -> Outlived:
    """Play an outage of so many seconds."""
    random.seed(seed)  # the jitter of probes, limits and retries
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play_outage, OUTAGES[scene], seconds, clock=clock)


async def _play_outage(options: dict[str, Any], seconds: float) -> Outlived:
    begins = trio.current_time() + _BEFORE
    ends = begins + seconds
    calls = 0

    async def send(message: Message) -> None:
        nonlocal calls
        is_out = begins <= trio.current_time() < ends
        calls += is_out
        await trio.sleep(SEND_TIME)
        if is_out:
            raise options["raises"]

    limit = options["limit"] and options["limit"]()
    async with open_delay_queue(
        send, capacity=1_000_000, workers=WORKERS, probe=options["probe"], limit=limit
    ) as queue:
        for number in range(int((ends - begins + _BEFORE + _AFTER) * RATE)):
            queue.put_nowait(b"", delay=number / RATE)
        await trio.sleep_until(ends)
        overdue = queue.statistics().pending - _AFTER * RATE  # all that is not due yet comes after it
        late = seconds
        while late > 2 * SEND_TIME:  # what comes due meanwhile is sent within so long
            await trio.sleep(0.1)
            late = queue.statistics().oldest_overdue
        gone = trio.current_time() - ends
        await queue.drain(0.0)
    return Outlived(calls, overdue, gone)


def missed(name: str, found: Drawn | Outlived) -> list[str]:
    """Which floors were not reached."""
    return [
        f"{name}: {figure} {getattr(found, figure):.3g}, over {most:g}"
        for figure, most in FLOORS.get(name, {}).items()
        if getattr(found, figure) > most
    ]


def quota_table(quota: Result) -> tuple[tuple[str, ...], Iterator[tuple[str, ...]]]:
    """Head and rows of the quota's table."""
    return ("valve", "native/s", "due sends refused/s", "lateness p99"), (
        (valve, f"{drawn['native']:.0f}", f"{drawn['refused']:.1f}", f"{drawn['late']:.2f} s")
        for valve, drawn in quota.items()
    )


def outage_table(outage: Result) -> tuple[tuple[str, ...], Iterator[tuple[str, ...]]]:
    """Head and rows of the outage's table."""
    return ("broker and queue", "calls meanwhile", "overdue at its end", "all gone after"), (
        (name, f"{found['calls']:,}", f"{found['overdue']:,}", f"{found['gone']:.1f} s")
        for name, found in outage.items()
    )
