"""The scene of `bench.valve` in which publishes and due sends draw on a quota that counts them apart."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio
import trio.testing

from localdelay import (
    AdaptiveLimit,
    BreakerPolicy,
    Fallback,
    Message,
    RateLimit,
    Throttled,
    open_delay_queue,
)
from localdelay.costs import APSARA_ROCKETMQ

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
REFUSED_MOST, LATE_MOST = 5.0, 0.2
"""The floors where costs are told and the quota is not: due sends refused a second, and seconds."""
HEAD = ("valve", "native/s", "due sends refused/s", "lateness p99")


@attrs.frozen
class Drawn:
    """What came of the quota with one valve, once what is held is due."""

    native: float
    """Delayed publishes a second that the primary took."""
    refused: float
    """Due sends a second that it refused."""
    late: float
    """Seconds: the 99th percentile of the lateness at the first send that was taken."""


def play(valve: str, *, seed: int = 1, delay: float = 120.0) -> Drawn:
    """Play twice the delay in virtual time; the second half counts."""
    random.seed(seed)  # the jitter of breakers, limits and retries
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play, VALVES[valve](), seed, delay, clock=clock)


async def _play(options: dict[str, Any], seed: int, delay: float) -> Drawn:
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


def missed(played: Mapping[str, Drawn]) -> list[str]:
    """Which floors were not reached."""
    drawn = played["adaptive, with costs"]
    figures = [("due sends refused/s", drawn.refused, REFUSED_MOST), ("lateness", drawn.late, LATE_MOST)]
    return [f"the quota: {name} {value:.3g}, over {most:g}" for name, value, most in figures if value > most]


def row(valve: str, drawn: dict[str, float]) -> tuple[str, ...]:
    """A row of the table."""
    return valve, f"{drawn['native']:.0f}", f"{drawn['refused']:.1f}", f"{drawn['late']:.2f} s"
