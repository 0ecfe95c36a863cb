"""What is on its way to a broker: messages that wait to be written, and messages that are under way.

    put --> [ waiting ] --take--> [ under way ] --settle--> confirmed or failed
              while there is no     until the broker
              connection or room    has answered

Nothing here awaits; all of it belongs to the Trio thread, except `settle_soon`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, checkpoint, current_task, wait_task_rescheduled
from trio.lowlevel import reschedule as wake

from localdelay.hops import Hop
from localdelay.message import Message

# So much is written in one go: it stops the loop, and what is written together is often confirmed together.
_MESSAGES_AT_ONCE = 256
_BYTES_AT_ONCE = 256 * 1024
_BYTES_BESIDES = 300
"""What a message takes besides its payload and headers, about."""


class Parcel:
    """One message on its way: what the driver made of it to be written, and who waits for it."""

    __slots__ = (
        "abandoned",
        "alone",
        "begun",
        "content",
        "handle",
        "only_now",
        "position",
        "sending",
        "size",
        "written",
    )

    def __init__(self, content: Any, size: int, sending: Sending, position: int, begun: float) -> None:
        self.content = content
        self.size = size
        """Bytes."""
        self.sending: Sending | None = sending
        """None once it is settled."""
        self.position = position
        self.begun = begun
        """When it was given, on Trio's clock."""
        self.written = math.inf
        """When it was written, on Trio's clock."""
        self.alone = False
        """It was refused in company: it is written again with nothing else under way, and judged then."""
        self.abandoned = False
        """Nobody waits for it any more: what is not yet with the broker need not get there."""
        self.handle: object = None
        """What the broker knows it by, where it gave one."""
        self.only_now = False
        """It does not wait for a connection."""

    def settle(self, error: Exception | None = None) -> None:
        """It is confirmed, or has failed. The first call counts: an answer may come after the time limit."""
        sending = self.sending
        if sending is None:
            return
        self.sending = None  # and so no circle is left for the collector
        sending.outbox.forget(self)
        if error is not None:
            sending.fail(self.position, error)
        sending.unsettled -= 1
        if sending.unsettled == 0 and sending.task is not None:
            wake(sending.task)
            sending.task = None


class Sending:
    """The messages of one `send` or `send_batch`, and the task that waits for them.

    The task is woken without a `trio.Event` between, which would take half as long again.
    """

    __slots__ = ("failed", "outbox", "parcels", "task", "unsettled")

    def __init__(self, outbox: Outbox, count: int = 1) -> None:
        self.outbox = outbox
        self.parcels: Sequence[Parcel] = ()
        self.unsettled = count
        self.failed: dict[int, Exception] | None = None
        """By position."""
        self.task: Task | None = None

    def fail(self, position: int, error: Exception) -> None:
        """The message at this position has failed."""
        if self.failed is None:
            self.failed = {}
        self.failed[position] = self.outbox.verdict(error)

    async def settled(self) -> None:
        """Wait until all of them are confirmed or have failed."""
        if self.unsettled:
            self.task = current_task()
            await wait_task_rescheduled(self._abandon)
        else:
            await checkpoint()

    def _abandon(self, _: RaiseCancelT) -> Abort:
        self.task = None
        self.outbox.withdraw(self.parcels)
        return Abort.SUCCEEDED


@attrs.frozen
class Gauges:
    """How much is on its way."""

    waiting: int
    under_way: int
    bytes_under_way: int


class Outbox:
    """Messages that wait, and messages under way, within what may be under way at once."""

    def __init__(self, verdict: Callable[[Exception], Exception], messages: int, size: int) -> None:
        """`verdict` says what to raise for an error.

        At most so many messages are under way, and so many bytes unless one message has more.
        """
        self.verdict = verdict
        self._most = messages
        self._most_bytes = size
        self._waiting: OrderedDict[Parcel, None] = OrderedDict()
        self._under_way: dict[Parcel, None] = {}
        self._bytes = 0
        self._alone = False
        self._call = trio.lowlevel.current_trio_token().run_sync_soon
        self._hop: Hop[tuple[Parcel, Exception | None]] = Hop(self._call, _settle_all)

    # For drivers.

    def again(self, parcels: Iterable[Parcel], *, alone: bool = False) -> None:
        """The broker has not taken these, and it need not be their fault: they are written again, first.

        With `alone` each is written with nothing else under way, and what is said of it then is about it.
        """
        for parcel in reversed(list(parcels)):
            if parcel.sending is None or parcel.abandoned:
                parcel.settle()
                continue
            self.forget(parcel)
            parcel.written = math.inf
            parcel.alone = parcel.alone or alone
            self._waiting[parcel] = None
            self._waiting.move_to_end(parcel, last=False)

    def refuse(self, error: Callable[[], Exception], *, only_now: bool = False) -> None:
        """Fail what waits, or what of it does not wait for a connection: the broker takes nothing now."""
        for parcel in list(self._waiting):
            if parcel.only_now or not only_now:
                parcel.settle(error())

    def settle_soon(self, parcel: Parcel, error: Exception | None = None) -> None:
        """Settle a message from any thread; its task goes on in the next turn of the loop."""
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._hop.send((parcel, error))

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        """Call something on the Trio thread, from any thread."""
        with suppress(trio.RunFinishedError):  # then nobody waits any more
            self._call(call, *args)

    def gauges(self) -> Gauges:
        """How much is on its way."""
        return Gauges(len(self._waiting), len(self._under_way), self._bytes)

    # For the publisher.

    def parcel(self, message: Message, content: Any, sending: Sending, position: int, now: float) -> Parcel:
        """A message of a sending, as it is given to the outbox."""
        size = len(message.payload) + _BYTES_BESIDES
        if message.headers:
            size += sum(len(name) + len(value) for name, value in message.headers.items())
        return Parcel(content, size, sending, position, now)

    def put(self, parcel: Parcel) -> None:
        """Let a message wait."""
        self._waiting[parcel] = None

    def is_idle(self) -> bool:
        """Whether nothing is on its way."""
        return not (self._waiting or self._under_way)

    def has_work(self) -> bool:
        """Whether anything waits that may be written now."""
        first = self.oldest_waiting()
        if first is None or self._alone:
            return False
        if first.alone:
            return not self._under_way
        return len(self._under_way) < self._most and self._bytes < self._most_bytes

    def take(self, now: float) -> list[Parcel]:
        """What is to be written next, as far as there is room; it is under way from here on."""
        taken: list[Parcel] = []
        waiting, under_way = self._waiting, self._under_way
        most = 0 if self._alone else min(self._most, len(under_way) + _MESSAGES_AT_ONCE)
        most_bytes = min(self._most_bytes, self._bytes + _BYTES_AT_ONCE)
        while waiting and len(under_way) < most and self._bytes < most_bytes:
            parcel, _ = waiting.popitem(last=False)
            if parcel.alone:
                if under_way:
                    waiting[parcel] = None
                    waiting.move_to_end(parcel, last=False)
                    break
                self._alone = True
                most = 0
            parcel.written = now
            under_way[parcel] = None
            self._bytes += parcel.size
            taken.append(parcel)
        return taken

    def forget(self, parcel: Parcel) -> None:
        """It neither waits nor is under way any more."""
        if parcel.written == math.inf:
            self._waiting.pop(parcel, None)
            return
        under_way = self._under_way
        if parcel in under_way:
            del under_way[parcel]
            self._bytes -= parcel.size
            self._alone = self._alone and not parcel.alone

    def withdraw(self, parcels: Iterable[Parcel]) -> None:
        """Nobody waits for these any more: what is not written yet is not sent."""
        for parcel in parcels:
            parcel.abandoned = True
            self._waiting.pop(parcel, None)

    def fail_under_way(self, error: Callable[[], Exception]) -> None:
        """Fail what is under way: nobody will say any more what has become of it."""
        for parcel in list(self._under_way):
            parcel.settle(error())

    def oldest_waiting(self) -> Parcel | None:
        """What has waited for longest."""
        return next(iter(self._waiting), None)

    def oldest_under_way(self) -> Parcel | None:
        """What has been under way for longest."""
        return next(iter(self._under_way), None)


def _settle_all(settled: list[tuple[Parcel, Exception | None]]) -> None:
    for parcel, error in settled:
        parcel.settle(error)
