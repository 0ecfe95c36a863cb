"""Stopping an instance: send what comes due within the grace, and give the rest back to Redis."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from localdelay.drain_plan import DrainPlan

if TYPE_CHECKING:
    from localdelay.redis_plan.queue import Parts

_LOOK_EVERY = 0.01
_LAST_WORDS = 2.0
"""Seconds for which an instance that ends tries to tell Redis what it gives back."""


def plan(parts: Parts, grace: float) -> DrainPlan:
    """What is to become of what this instance has claimed; what it will claim meanwhile is not in it."""
    now = trio.current_time()
    deadline = now + grace if grace < math.inf else now
    dues = [entry[0] for entry in parts.schedule.entries() if entry[0] < deadline]
    pending = parts.ledger.pending
    send = len(dues) + parts.schedule.taken
    seconds = max(0.0, max(dues, default=now) - now)
    return DrainPlan(
        pending=pending,
        grace=grace,
        send=send,
        hand_back=0,
        spool=pending - send,
        remain=0,
        seconds=min(grace, seconds),
    )


async def drain(parts: Parts, grace: float) -> None:
    """Claim and send what comes due within the grace; then end the workers, and give the rest back."""
    deadline = trio.current_time() + grace
    workers, claimer = parts.workers, parts.claimer
    try:
        if grace < math.inf:
            workers.resume()
            claimer.paused = False
            claimer.change_until(deadline)
            await _until_nothing_is_due(parts, deadline)
        claimer.paused = True
        await claimer.settle()
        parts.arrivals.closed = True
        parts.leases.keep_within = -1.0
        parts.leases.release_all()
        workers.close()
        with trio.CancelScope(deadline=deadline):
            await workers.finished.wait()
    finally:
        claimer.paused = True
        await end(parts)


async def end(parts: Parts) -> None:
    """End the workers at once, and tell Redis what it does not know, for a short time."""
    parts.arrivals.closed = True
    parts.workers.stop()
    with trio.CancelScope(shield=True):
        await parts.workers.finished.wait()
        parts.leases.release_all()
        with trio.move_on_after(_LAST_WORDS):
            while parts.held.untold:
                if not parts.link.is_connected or not await parts.held.tell_all():
                    await trio.sleep(_LOOK_EVERY)  # there may be a connection in a moment


async def _until_nothing_is_due(parts: Parts, deadline: float) -> None:
    while (now := trio.current_time()) < deadline:
        await parts.claimer.settle()
        next_due = min(parts.schedule.next_due(), parts.claimer.next_due())
        if next_due > deadline and not parts.schedule.taken:
            return
        await trio.sleep(min(max(_LOOK_EVERY, min(next_due, deadline) - now), deadline - now))
