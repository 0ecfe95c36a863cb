"""The waiting messages, in due order: FIFO channels and a heap.

Patience piles. With one delay for all, messages arrive in the order in which they are due, and an
append to a FIFO is all that it takes to keep them sorted. With a few delays the same holds for each
delay on its own. So there are a few FIFO lanes, each in due order: a message is appended to the lane
with the latest tail that is not later than itself; where there is none, a new lane is begun; where
there are enough lanes already, it goes into a heap. The lane that takes it keeps its place in the list,
because its new tail is still earlier than the tail of the lane before it: the tails always stand in
descending order, the first lane that fits is the right one, and one delay costs one comparison. Retries
go straight to the heap: a lane that took one would have a late tail and fit nothing else for a while.

The next message is the smallest of the lanes' heads and the heap's top. A memory channel cannot be
peeked at, so each lane's head is held here, outside its channel.

Cancelling. With an index, the lanes and the heap carry only (due, number), and the index owns what the
number stands for: cancelling takes it out there, which frees the payload at once, and leaves a dead
pair behind. When the dead outnumber the living, everything is swept once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from typing import TypeAlias

import trio

from .entry import Body, Entry, execute_at_of, failures_of

_Slot: TypeAlias = tuple[float, int, Body] | tuple[float, int]

MAX_LANES = 8
_FEW = 64


class _Lane:
    __slots__ = ("_receive", "head", "push", "tail")

    def __init__(self) -> None:
        send, receive = trio.open_memory_channel[_Slot](math.inf)
        self.push = send.send_nowait
        self._receive = receive.receive_nowait
        self.head: _Slot | None = None
        self.tail = -math.inf

    def append(self, slot: _Slot) -> None:
        self.tail = slot[0]
        if self.head is None:
            self.head = slot
        else:
            self.push(slot)

    def advance(self) -> None:
        try:
            self.head = self._receive()
        except trio.WouldBlock:
            self.head = None

    def empty(self) -> Iterator[_Slot]:
        while self.head is not None:
            yield self.head
            self.advance()


class Schedule:
    """Messages in due order. All methods are synchronous; none of them awaits or calls out."""

    def __init__(self, *, indexed: bool) -> None:
        self._lanes: list[_Lane] = []
        self._heap: list[_Slot] = []
        self._index: dict[int, Body] | None = {} if indexed else None
        self._dead = 0
        self.waiting = 0
        self.retrying = 0
        self._retries: dict[int, float] = {}  # number to execute-at
        self._oldest_retries: list[tuple[float, int]] = []  # a heap of these, with gone ones in it
        self.horizon = math.inf
        self._later: list[_Slot] = []  # heaps, too
        self._put_off: list[_Slot] = []
        self._kept: list[_Slot] = []
        self.later_arrived = trio.lowlevel.ParkingLot()
        """Unparked when a message arrives beyond the horizon."""

    def put(self, due: float, number: int, body: Body) -> None:
        """Take in a new message."""
        self.waiting += 1
        slot = self._slot(due, number, body)
        for lane in self._lanes:
            if lane.tail <= due:
                lane.tail = due
                if lane.head is None:
                    lane.head = slot
                else:
                    lane.push(slot)
                return
        if len(self._lanes) < MAX_LANES:
            lane = _Lane()
            lane.append(slot)
            self._lanes.append(lane)
        else:
            heappush(self._heap, slot)

    def put_back(self, due: float, number: int, body: Body) -> None:
        """Take in a message that was here before: a retry, or one whose send was cut off."""
        self._count(number, body, 1)
        slot = self._slot(due, number, body)
        if due >= self.horizon:
            heappush(self._later, slot)
            self.later_arrived.unpark()
        else:
            heappush(self._heap, slot)

    def put_off_later(self, when: float, number: int, body: Body) -> None:
        """Take in a message for `take_later` again, at `when` and not before."""
        self._count(number, body, 1)
        heappush(self._put_off, self._slot(when, number, body))

    def keep(self, due: float, number: int, body: Body) -> None:
        """Take in a message that nobody here is going to take out again; it stays pending."""
        self._count(number, body, 1)
        heappush(self._kept, self._slot(max(due, execute_at_of(due, body)), number, body))

    def take(self, now: float) -> Entry | None:
        """Take out the next message if it is due."""
        while True:
            best = self._heap[0] if self._heap else None
            best_lane: _Lane | None = None
            for lane in self._lanes:
                head = lane.head
                if head is not None and (best is None or head < best):
                    best, best_lane = head, lane
            if best is None or best[0] > now:
                return None
            if best_lane is None:
                heappop(self._heap)
            else:
                best_lane.advance()
            entry = self._claim(best)
            if entry is not None:
                return entry

    def next_due(self) -> float:
        """When the next message is due, in seconds on Trio's clock; infinite if there is none."""
        self._drop_dead_heads()
        soonest = min((lane.head[0] for lane in self._lanes if lane.head is not None), default=math.inf)
        return min(soonest, self._heap[0][0]) if self._heap else soonest

    def oldest(self) -> float:
        """The earliest execute-at of all, retries included; infinite if there is none."""
        oldest = self._oldest_retries
        while oldest and oldest[0][1] not in self._retries:
            heappop(oldest)
        next_due = self.next_due()  # drops the dead heads of all heaps
        heads = [
            heap[0][0] for heap in (oldest, self._later, self._kept) if heap
        ]  # what is put off is a retry
        return min([next_due, *heads])

    def find(self, number: int) -> Body | None:
        """The body of the message with this number, or None. Without an index, everything is walked."""
        if self._index is not None:
            return self._index.get(number)
        return next((entry[2] for entry in self.entries() if entry[1] == number), None)

    def cancel(self, number: int) -> Body | None:
        """Take out the message with this number and return its body, or None if it is not here."""
        if self._index is None:
            raise RuntimeError("cancel needs a queue with cancellable=True")
        body = self._index.pop(number, None)
        if body is not None:
            self._count(number, body, -1)
            self._dead += 1
            if self._dead > len(self._index) + _FEW:
                self._sweep()
        return body

    def entries(self) -> list[Entry]:
        """Every message, in due order."""
        return sorted(entry for slot in self._slots() if (entry := self._resolve(slot)) is not None)

    def set_horizon(self, horizon: float) -> None:
        """Put aside, for `take_later`, every message due at `horizon` or after it, now and from now on."""
        self.horizon = horizon
        slots = list(self._slots())
        self._clear()
        slots.sort(key=lambda slot: slot[:2])
        for slot in slots:
            if slot[0] < horizon:
                self._heap.append(slot)  # a sorted list is a heap
            else:
                self._later.append(slot)

    def take_later(self, now: float) -> Entry | None:
        """Take out a message from beyond the horizon, or one whose time to be tried again has come."""
        while True:
            if self._put_off and self._put_off[0][0] <= now:
                slot = heappop(self._put_off)
            elif self._later:
                slot = heappop(self._later)
            else:
                return None
            if (entry := self._claim(slot)) is not None:
                return entry

    def next_later(self) -> float:
        """When the next message that was put off may be taken; infinite if there is none."""
        self._drop_dead_heads()
        return self._put_off[0][0] if self._put_off else math.inf

    @property
    def is_empty(self) -> bool:
        """Whether nothing within the horizon is left to take."""
        return self.next_due() == math.inf

    def _slot(self, due: float, number: int, body: Body) -> _Slot:
        if self._index is None:
            return (due, number, body)
        self._index[number] = body
        return (due, number)

    def _resolve(self, slot: _Slot) -> Entry | None:
        if len(slot) == 3:
            return slot
        assert self._index is not None  # noqa: S101 (pairs are only made where there is an index)
        body = self._index.get(slot[1])
        return None if body is None else (*slot, body)

    def _claim(self, slot: _Slot) -> Entry | None:
        if len(slot) == 3:
            entry = slot
        else:
            assert self._index is not None  # noqa: S101 (as above)
            body = self._index.pop(slot[1], None)
            if body is None:
                self._dead -= 1
                return None
            entry = (*slot, body)
        if isinstance(entry[2], bytes):
            self.waiting -= 1
        else:
            self._count(entry[1], entry[2], -1)
        return entry

    def _count(self, number: int, body: Body, change: int) -> None:
        if not failures_of(body):
            self.waiting += change
            return
        self.retrying += change
        if change < 0:
            del self._retries[number]
            return
        self._retries[number] = execute_at_of(0.0, body)
        heappush(self._oldest_retries, (self._retries[number], number))
        if len(self._oldest_retries) > 2 * len(self._retries) + _FEW:
            self._oldest_retries = [(execute_at, key) for key, execute_at in self._retries.items()]
            heapify(self._oldest_retries)

    def _drop_dead_heads(self) -> None:
        if not self._dead or self._index is None:
            return
        index = self._index
        for lane in self._lanes:
            while lane.head is not None and lane.head[1] not in index:
                lane.advance()
                self._dead -= 1
        for heap in (self._heap, self._later, self._put_off, self._kept):
            while heap and heap[0][1] not in index:
                heappop(heap)
                self._dead -= 1

    def _slots(self) -> Iterator[_Slot]:
        # A channel is walked by emptying it and filling it again, lane by lane and without an await.
        for lane in self._lanes:
            slots = list(lane.empty())
            for slot in slots:
                lane.append(slot)
            yield from slots
        yield from self._heap
        yield from self._later
        yield from self._put_off
        yield from self._kept

    def _sweep(self) -> None:
        def living(slots: Iterable[_Slot]) -> list[_Slot]:
            return [slot for slot in slots if self._resolve(slot) is not None]

        for lane in self._lanes:
            for slot in living(lane.empty()):
                lane.append(slot)
        # A lane that is empty now has a late tail, and would fit nothing for a while.
        self._lanes = [lane for lane in self._lanes if lane.head is not None]
        for heap in (self._heap, self._later, self._put_off, self._kept):
            heap[:] = living(heap)
            heapify(heap)
        self._dead = 0

    def _clear(self) -> None:
        self._lanes.clear()
        self._heap.clear()
        self._later.clear()
        self._put_off.clear()
        self._kept.clear()
