"""The scene of `bench.valve` in which the broker takes no due send for a minute, and then all of them."""

from __future__ import annotations

import random
from typing import Any

import attrs
import trio
import trio.testing

from localdelay import AdaptiveLimit, Message, ProbePolicy, Throttled, open_delay_queue

RATE = 200
"""Messages that come due in each second."""
WORKERS = 20
SEND_TIME = 0.005
"""Seconds that a send takes, also one that fails."""
CALLS_MOST, GONE_MOST = 150, 6.0
"""The floors: calls in a minute of it, and seconds until nothing is overdue any more."""
_BEFORE, _AFTER = 5, 65
"""Seconds of traffic before it, and after it."""
_DOWN: dict[str, Any] = {"raises": ConnectionResetError}
_REFUSES: dict[str, Any] = {"raises": Throttled}
SCENES: dict[str, dict[str, Any]] = {
    "down, each retried on its own": {**_DOWN, "probe": None, "limit": None},
    "down, probed": {**_DOWN, "probe": ProbePolicy(), "limit": AdaptiveLimit},
    "refuses all, each retried on its own": {**_REFUSES, "probe": None, "limit": None},
    "refuses all, adaptive": {**_REFUSES, "probe": ProbePolicy(), "limit": AdaptiveLimit},
}
HEAD = ("broker and queue", "calls meanwhile", "overdue at its end", "all gone after")


@attrs.frozen
class Outlived:
    """What came of the outage."""

    calls: int
    """Sends that were tried while it lasted."""
    overdue: int
    """Messages that were due and not sent when it ended."""
    gone: float
    """Seconds from its end until none was overdue."""


def play(scene: str, *, seed: int = 1, seconds: float = 60.0) -> Outlived:
    """Play an outage of so many seconds in virtual time."""
    random.seed(seed)  # the jitter of probes, limits and retries
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play, SCENES[scene], seconds, clock=clock)


async def _play(options: dict[str, Any], seconds: float) -> Outlived:
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


def missed(scene: str, outlived: Outlived) -> list[str]:
    """Which floors were not reached."""
    figures = [("calls", outlived.calls, CALLS_MOST), ("seconds until all is gone", outlived.gone, GONE_MOST)]
    return [f"{scene}: {name} {value:g}, over {most:g}" for name, value, most in figures if value > most]


def row(scene: str, outlived: dict[str, float]) -> tuple[str, ...]:
    """A row of the table."""
    return scene, f"{outlived['calls']:,}", f"{outlived['overdue']:,}", f"{outlived['gone']:.1f} s"
