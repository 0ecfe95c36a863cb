"""One worker, and the watchdog that ends a send which takes longer than `send_timeout`.

From its begin to its end such a send goes through these places:

1. `Delivery.deliver` writes the worker's `send_deadline`, and wakes the watchdog if that has nothing to do.
2. `Watchdog.run` sleeps until the first deadline of all. Then it notes `timed_out`, and cancels the `scope`
   of this worker and of nobody else.
3. The cancellation comes out of the send. By `timed_out` `deliver` knows it from that of the pool, after
   which a message is pending as before, and notes a `TooSlowError` as the worker's `failure`. It can't settle
   that: in a scope that is cancelled each wait would be cut off, the dead-letter hook's too.
4. So the worker leaves its scope, which ends the cancellation, and begins in another one by settling the
   failure like that of any other send (`Workers._work`, `_serve`, `Delivery.settle`).

A send that returns all the same, in the very instant or because it swallows the cancellation, was sent; its
worker only changes its scope. One that raises something else failed with that.
"""

from __future__ import annotations

import math

import trio

from localdelay.entry import Entry


class Worker:
    """What one worker has in hand, and how its send goes."""

    __slots__ = ("began", "entries", "failure", "is_paid", "scope", "send_deadline", "size", "timed_out")

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # what it has taken and not settled yet
        self.size = 0  # bytes of these, where they are a batch
        self.is_paid = True  # whether the limit was asked for these, where it limits: it gets back no others
        self.failure: Exception | None = None
        self.began = 0.0  # the send that has failed
        self.send_deadline = math.inf
        """When its send must have ended, in seconds on Trio's clock; infinite where it has none under way."""
        self.scope = trio.CancelScope()
        """All that it does, until one of its sends has timed out."""
        self.timed_out = False

    def clear(self) -> None:
        """What it has taken has ended, or is back in the order."""
        self.entries.clear()
        self.size = 0
        self.failure = None


class Watchdog:
    """One task for the whole pool: a timer a send would cost more than the rest of it."""

    __slots__ = ("asleep",)

    def __init__(self) -> None:
        self.asleep: trio.lowlevel.Task | None = None
        """Its task, while it has nothing to watch."""

    def wake(self) -> None:
        """A send has begun: look at the deadlines."""
        assert self.asleep is not None  # noqa: S101 (or there is no reason to)
        trio.lowlevel.reschedule(self.asleep)
        self.asleep = None  # at once: nobody else may wake it before it has run

    async def run(self, workers: set[Worker]) -> None:
        """Watch over these, until it is cancelled: that harms nothing, for then their sends are, too."""
        while True:
            soonest = min((worker.send_deadline for worker in workers), default=math.inf)
            if soonest == math.inf:
                self.asleep = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._abort)
                continue
            # Whoever begins a send meanwhile need not wake it: all have the same time, and none ends before.
            await trio.sleep_until(soonest)
            now = trio.current_time()
            for worker in workers:
                if worker.send_deadline <= now:
                    worker.send_deadline = math.inf
                    worker.timed_out = True
                    worker.scope.cancel()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self.asleep = None
        return trio.lowlevel.Abort.SUCCEEDED
