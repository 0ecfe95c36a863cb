"""What was accepted and what became of it, and who waits for room."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from localdelay.errors import QueueClosed
from localdelay.keeping import End, Wait


class _Waiter:
    __slots__ = ("enter", "error", "size", "task", "wait")

    def __init__(self, size: int, enter: Callable[[], Wait | None]) -> None:
        self.size = size
        self.enter = enter
        self.wait: Wait | None = None
        self.error: Exception | None = None
        self.task = trio.lowlevel.current_task()


class Ledger:
    """The terms of the conservation equation (`statistics`) that are not the schedule's, and the room.

    Nothing here is derived from anything else: a message that is forgotten somewhere makes the
    equation fail.
    """

    def __init__(self, capacity: int, capacity_bytes: int | None) -> None:
        self.accepted = 0
        self.recovered = 0
        self.ended = [0] * len(End)
        self.pending = 0
        self.pending_bytes = 0
        self.reserved = 0  # room for puts that are not accepted before the journal has them
        self.reserved_bytes = 0
        self.coming = 0  # accepted in another thread, and on their way to this loop
        self.coming_bytes = 0
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.limit_bytes = math.inf if capacity_bytes is None else capacity_bytes
        """`capacity_bytes` as a number."""
        self.largest = math.inf
        """The most bytes that a journal takes for a message."""
        self.has_short_way = True
        """Whether a plain message may go straight into the schedule. The `Admission` says so: not where the
        queue is closed, or in a forked child, nor where a journal has to know of it first, or a key is asked
        for."""
        self.waiters: dict[_Waiter, None] = {}  # in the order of their calls

    def check_size(self, size: int) -> None:
        """Raise `ValueError` for a message that could never fit."""
        if size > self.largest:
            raise ValueError(f"payload and headers of {size} bytes are over the journal's {self.largest}")
        if size > self.limit_bytes:
            raise ValueError(
                f"payload and headers of {size} bytes are over the capacity_bytes of {self.capacity_bytes}"
            )

    def try_reserve(self, size: int) -> bool:
        """Keep room for a message of this many bytes, unless there is none or others wait for it."""
        if not self.has_room(size):
            return False
        self.reserve(size)
        return True

    def has_room(self, size: int) -> bool:
        """Whether there is room for a message of this many bytes, and nobody waits for it."""
        return not self.waiters and self.fits(size)

    def accept_reserved(self, size: int) -> None:
        """Count in a message for which there is room reserved."""
        # In this order: a thread that looks in between (`fits`) must not find room that is not there.
        self.accept(size)
        self.reserved -= 1
        self.reserved_bytes -= size

    def release_reserved(self, size: int) -> None:
        """The message for which there is room reserved does not come: whoever waits may have its room."""
        self.reserved -= 1
        self.reserved_bytes -= size
        self.admit()

    def __str__(self) -> str:
        return f"{self.pending + self.coming:,} of {self.capacity:,} pending"

    def describe(self) -> str:
        """Why there is no room, in a line."""
        # Read as `fits` reads it, in any thread: nothing that takes room may be missing in why there is none.
        reserved, reserved_bytes = self.reserved, self.reserved_bytes
        count, size = self.coming + self.pending, self.coming_bytes + self.pending_bytes
        entering = f", {reserved} of {reserved_bytes} bytes are being taken in" if reserved else ""
        return (
            f"{count} of {self.capacity} messages and {size} bytes are pending{entering}, "
            f"{len(self.waiters)} puts wait for room"
        )

    async def wait_for_room(self, size: int, enter: Callable[[], Wait | None]) -> Wait | None:
        """Wait for room, in the order of the calls; return what `enter` has returned.

        That is called, with the room reserved, by whoever makes the room and in the same step, and not by the
        caller when its turn comes: a cancellation in between finds either nothing done or all.
        """
        waiter = _Waiter(size, enter)
        self.waiters[waiter] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            del self.waiters[waiter]
            self.admit()  # a smaller message behind this one may fit
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if waiter.error is not None:
            raise waiter.error
        return waiter.wait

    def admit(self) -> None:
        """Let in the puts that wait, in order, while there is room."""
        while self.waiters:
            waiter = next(iter(self.waiters))
            if not self.fits(waiter.size):
                return
            # In this order: `enter` may find that nothing is to be kept first, and take the room at once; and
            # who is out of the line can't be cut off any more, so that room is never reserved for nobody.
            del self.waiters[waiter]
            self.reserve(waiter.size)
            waiter.wait = waiter.enter()
            trio.lowlevel.reschedule(waiter.task)

    def resize(self, capacity: int, capacity_bytes: int | None) -> None:
        """Change the room. What is pending stays; a waiting put that can never fit gets a `ValueError`."""
        # A thread that looks in between may take a message in by the room in bytes that there was: it is over
        # the new one then, as what is pending already may be.
        self.capacity = capacity
        self.capacity_bytes = capacity_bytes
        self.limit_bytes = limit = math.inf if capacity_bytes is None else capacity_bytes
        for waiter in [waiter for waiter in self.waiters if waiter.size > limit]:
            self._refuse(
                waiter, ValueError("payload and headers are over the capacity_bytes that was set meanwhile")
            )
        self.admit()

    def close(self) -> None:
        """Refuse the puts that wait, with `QueueClosed`."""
        for waiter in list(self.waiters):
            self._refuse(waiter, QueueClosed("the queue was closed while the put waited for room"))

    def _refuse(self, waiter: _Waiter, error: Exception) -> None:
        del self.waiters[waiter]
        waiter.error = error
        trio.lowlevel.reschedule(waiter.task)

    def fits(self, size: int) -> bool:
        """Whether there is room for so many bytes, besides messages that are not counted in yet."""
        # A message that goes from reserved to pending is in both for a moment. Reserved is read first: read
        # last, the message might have left it, for a thread that has read pending before it got there.
        reserved, reserved_bytes = self.reserved, self.reserved_bytes
        return (
            reserved + self.coming + self.pending < self.capacity
            and reserved_bytes + self.coming_bytes + self.pending_bytes + size <= self.limit_bytes
        )

    def arrive(self, size: int) -> None:
        """A message that another thread has let come is here, and reserved. Under that thread's lock."""
        self.coming -= 1
        self.coming_bytes -= size

    def reserve(self, size: int) -> None:
        """Keep room for a message of this many bytes, whether there is any or not."""
        self.reserved += 1
        self.reserved_bytes += size

    def accept(self, size: int, count: int = 1) -> None:
        """Count a message of this many bytes in, or so many of them together."""
        self.accepted += count
        self.pending += count
        self.pending_bytes += size
