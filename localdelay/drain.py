"""Stopping: send what comes due within the grace, hand back the rest, and account for all of it."""

from __future__ import annotations

import math

import trio

from .delivery import Delivery, HandBack
from .groups import bare
from .schedule import Schedule
from .workers import Workers

HAND_BACKS_IN_FLIGHT = 100


async def empty(
    schedule: Schedule, delivery: Delivery, workers: Workers, *, grace: float, hand_back: HandBack | None
) -> None:
    """Let the workers send what comes due within `grace` seconds, and end them.

    What is due at the end of the grace or later is handed back at once, many in flight. Returns as soon
    as nothing more can be done, and at the end of the grace at the latest: whatever is still running
    then is cancelled and pending again. The same goes for a caller that is cancelled meanwhile.
    """
    deadline = trio.current_time() + grace
    if deadline < math.inf:
        schedule.set_horizon(deadline)
    workers.close()

    @trio.lowlevel.enable_ki_protection
    async def give_away(hand_back: HandBack) -> None:
        while True:
            entry = schedule.take_later(trio.current_time())
            if entry is not None:
                await delivery.hand_back_or_put_off(entry, hand_back)
                await trio.lowlevel.checkpoint()  # for it may not have waited, and then nobody else would run
                continue
            next_later = schedule.next_later()
            if workers.finished.is_set() and next_later == math.inf:
                return
            with trio.CancelScope(deadline=next_later):
                await schedule.later_arrived.park()

    failure: BaseException | None = None
    try:
        with trio.CancelScope(deadline=deadline):
            async with trio.open_nursery() as nursery:
                if hand_back is not None:
                    for _ in range(HAND_BACKS_IN_FLIGHT):
                        nursery.start_soon(give_away, hand_back)
                await workers.finished.wait()
                schedule.later_arrived.unpark_all()
    except BaseExceptionGroup as group:
        failure = bare(group)  # a cancellation, or a KeyboardInterrupt in a hand-back
    finally:
        workers.stop()
        with trio.CancelScope(shield=True):
            await workers.finished.wait()
    if failure is not None:
        raise failure
