"""Stopping a service when it is told to: a signal, then a drain within the time that is left."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Awaitable, Callable, Sequence

import trio

from localdelay import arguments
from localdelay.logs import log
from localdelay.signals import heard
from localdelay.statistics import DrainReport

from .queue import DelayQueue
from .sending import HandBack


async def run_until_signal(
    queue: DelayQueue,
    service: Callable[[], Awaitable[object]] | None = None,
    *,
    grace: float,
    hand_back: HandBack | None = None,
    signals: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
) -> DrainReport:
    """Run a service beside its queue until it returns or a signal comes; then drain the queue.

    With the first signal `await service()` is cancelled, and when it has ended the queue is drained as by
    `DelayQueue.drain`, `grace` seconds after the signal at the latest (but for a journal that hangs, which
    is waited for as it says there). A second signal ends the drain at
    once: what is left then stays in the journal, or is in the report's `remaining`. Without a service it only
    waits for the signal. Where the service has returned by itself, the first signal changes nothing: the
    grace has begun by then. Give a grace shorter than what kills the process: Kubernetes does so
    `terminationGracePeriodSeconds` after the signal. To be called on the main thread. An error of the service
    is raised as it is, and nothing is drained then.
    """
    seconds = arguments.check_seconds("grace", grace, zero=True)
    if hand_back is not None:
        arguments.check_async("hand_back", hand_back)
    running = trio.CancelScope()
    deadline = math.inf
    signalled = again = False

    def stop(signum: int) -> None:
        nonlocal deadline, signalled, again
        if not signalled:
            signalled = True
            deadline = min(deadline, trio.current_time() + seconds)
            left = deadline - trio.current_time()
            line = "%s: stopping within %.3g s"
            log(logging.INFO, line, signal.Signals(signum).name, max(0.0, left))
            running.cancel()
        else:
            log(logging.INFO, "%s again: stopping now", signal.Signals(signum).name)
            again = True
            queue.cut_short()

    async with heard(signals, stop):
        with running:
            await (service or trio.sleep_forever)()
        if deadline == math.inf:
            deadline = trio.current_time() + seconds
        left = 0.0 if again else max(0.0, deadline - trio.current_time())
        return await queue.drain(left, hand_back)
