"""A `send` or `send_batch` that waits for what becomes of its messages."""

from __future__ import annotations

from collections.abc import Sequence

from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    checkpoint,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from localdelay.message import Message
from localdelay.settling import raise_failures


class Sending:
    """What its messages have come to so far. Of the Trio thread alone.

    The task that waits is woken without a `trio.Event` between, which would take half as long again.
    """

    __slots__ = ("_count", "_failed", "_task", "abandoned", "unsettled")

    def __init__(self, count: int = 1) -> None:
        self._count = self.unsettled = count
        self.abandoned = False
        """Nobody waits any more."""
        self._failed: dict[int, Exception] = {}
        self._task: Task | None = None

    def settle(self, position: int, error: Exception | None) -> bool:
        """The message at this position is confirmed, or has failed. Whether it was the last of them."""
        if error is not None:
            self._failed[position] = error
        self.unsettled -= 1
        if self.unsettled == 0:
            if self._task is not None:
                reschedule(self._task)
                self._task = None
            return True
        return False  # below nothing, where all was ended before

    def end(self, error: Exception) -> None:
        """Fail whatever has not failed yet, confirmed or not: nothing more will be heard."""
        for position in range(self._count):
            self._failed.setdefault(position, error)
        self.unsettled = 1
        self.settle(0, self._failed[0])

    @enable_ki_protection  # or a task that does not wait would be woken
    async def of_one(self) -> None:
        """Wait for the only message, and raise what it failed with."""
        if self.unsettled:
            self._task = current_task()
            await wait_task_rescheduled(self._abandon)
        else:
            await checkpoint()
        if self._failed:
            raise self._failed.pop(0)

    @enable_ki_protection
    async def of_all(self, messages: Sequence[Message]) -> None:
        """Wait for all of them; raise as `Broker.send_batch` does."""
        if self.unsettled:
            self._task = current_task()
            await wait_task_rescheduled(self._abandon)
        else:
            await checkpoint()
        raise_failures(messages, self._failed)

    def _abandon(self, _: RaiseCancelT) -> Abort:
        self._task = None
        self.abandoned = True
        return Abort.SUCCEEDED
