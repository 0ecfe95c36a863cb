"""Patience piles: slots in due order, in FIFO lanes and a heap.

With one delay for all, messages arrive in the order in which they are due, and an append to a FIFO is all
that it takes to keep them sorted. With a few delays the same holds for each delay on its own. So there are
a few FIFO lanes, each in due order: a slot is appended to the lane with the latest tail that is not later
than itself; where there is none, a new lane is begun; where there are enough lanes already, it goes into a
heap. The lane that takes it keeps its place in the list, because its new tail is still earlier than the tail
of the lane before it: the tails stand in descending order, the first lane that fits is the best one, and one
delay costs one comparison. (Where cancelling has emptied a lane, the order of the tails is lost, and with it
the best choice, but nothing else.) What is due is merged into one list, the front: nothing in the lanes and
the heap comes before its last slot.

A lane is a row of blocks. Only its first and its last block are lists of slots; the blocks in between are
packed: times and numbers as plain bytes, payloads as one tuple. A slot costs 24 bytes in a packed block and
130 outside, and the garbage collector never walks what is packed, though it be millions. They stand in a
deque, not in a Trio memory channel: nobody waits at either end, and a channel, which can't be looked into,
had to be emptied and filled again whenever somebody asked for a message, a sum or a sweep.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import chain, filterfalse
from operator import indexOf, itemgetter
from struct import pack, unpack, unpack_from
from typing import Any, Final, TypeAlias

from localdelay.entry import Body

Slot: TypeAlias = tuple[float, int, Body] | tuple[float, int]
"""(due, number, body), or without a body where an index owns it."""
_Packed: TypeAlias = tuple[Any, ...]
"""(due times, numbers, bodies), or without bodies: native doubles, native 64-bit integers, a tuple."""

MAX_LANES = 8
BLOCK = 256
"""A block may be up to twice as long."""
_SEARCHED = 16_384
_NUMBER: Final = itemgetter(1)


class Lane:
    """One FIFO. Its head, the first block, is empty only where the lane is."""

    __slots__ = ("blocks", "head", "last", "pulled", "tail")

    def __init__(self) -> None:
        self.head: list[Slot] = []
        self.blocks: deque[_Packed] = deque()  # those in between
        self.tail = self.head  # one and the same list while there is but one block
        self.last = -math.inf  # when the last slot is due that was appended
        self.pulled = 0  # blocks that have left those in between

    def append(self, slot: Slot) -> None:
        """Add a slot that is due no earlier than the last one."""
        self.last = slot[0]
        self.tail.append(slot)
        if len(self.tail) >= BLOCK:
            self.seal()

    def seal(self) -> None:
        """Begin a new last block."""
        if self.tail is not self.head:
            self.blocks.append(_packed(self.tail))
        self.tail = []

    def drop(self, count: int) -> None:
        """Take out the first `count` slots of the head."""
        del self.head[:count]
        if not self.head and self.head is not self.tail:
            self._pull()

    def _pull(self) -> None:
        """Let the next block be the head."""
        if self.blocks:
            self.head = _unpacked(self.blocks.popleft())
            self.pulled += 1
        else:
            self.head = self.tail

    def slots(self, number: int | None = None) -> Iterator[Slot]:
        """All slots, in order, or those near the one with this number: the blocks that may hold it."""
        needle = b"" if number is None else pack("q", number)
        yield from self.head
        for block in self.blocks:
            if needle in block[1]:
                yield from _unpacked(block)
        if self.tail is not self.head:
            yield from self.tail

    def sweep(self, drops: Callable[[Slot], bool]) -> Iterator[None]:
        """Drop the slots that are dead: block by block, whatever happens in between."""
        swept = 0  # blocks, of all that the lane has had: meanwhile some are pulled, and others appended
        while (swept := max(swept, self.pulled)) - self.pulled < len(self.blocks):
            index = swept - self.pulled
            living = list(filterfalse(drops, _unpacked(self.blocks[index])))
            if living:
                self.blocks[index] = _packed(living)
                swept += 1
            else:
                del self.blocks[index]
            yield
        self.tail[:] = filterfalse(drops, self.tail)
        if self.head is not self.tail:
            self.head[:] = filterfalse(drops, self.head)
            self.drop(0)
        if not self.head:
            self.last = -math.inf  # or its late tail would let it fit nothing for a while
        yield

    def extent(self) -> tuple[int, float]:
        """How many slots there are, and when the last is due; -inf without any. Packed blocks stay packed."""
        parts = [self.head] if self.tail is self.head else [self.head, self.tail]
        count = sum(map(len, parts)) + sum(len(block[0]) // 8 for block in self.blocks)
        ends = [part[-1][0] for part in parts if part] + [_last_due(block) for block in self.blocks]
        return count, max(ends, default=-math.inf)

    def cut(self, horizon: float) -> Lane:
        """Take out what is due before `horizon`, as a lane of its own. Packed blocks stay packed."""
        near = Lane()
        near.last = self.last
        near.head = near.tail = self._cut_head(horizon)
        if self.head or self.head is self.tail:
            return near
        while self.blocks and _last_due(self.blocks[0]) < horizon:
            near.blocks.append(self.blocks.popleft())
        self._pull()
        near.tail = self._cut_head(horizon)
        return near

    def _cut_head(self, horizon: float) -> list[Slot]:
        count = bisect_left(self.head, (horizon,))
        near = self.head[:count]
        del self.head[:count]
        return near


def _packed(block: list[Slot]) -> _Packed:
    dues, numbers, *bodies = zip(*block, strict=True)
    return pack(f"{len(dues)}d", *dues), pack(f"{len(dues)}q", *numbers), *bodies


def _unpacked(packed: _Packed) -> list[Slot]:
    dues, numbers, *bodies = packed
    count = len(dues) // 8
    return list(zip(unpack(f"{count}d", dues), unpack(f"{count}q", numbers), *bodies, strict=True))


def _last_due(packed: _Packed) -> float:
    due: float = unpack_from("d", packed[0], len(packed[0]) - 8)[0]
    return due


class Piles:
    """The front, the lanes and the heap. `run` looks at what is next, `drop` takes the first of it out."""

    __slots__ = ("_front", "heap", "lanes")

    def __init__(self) -> None:
        self._front: list[Slot] = []  # sorted
        self.lanes = [Lane()]  # there is always one
        self.heap: list[Slot] = []

    def __bool__(self) -> bool:
        return self.first() is not None

    def add_all(self, slots: Sequence[Slot], dues: list[float]) -> None:
        """Take in slots, which are due at `dues`, each where it fits best."""
        first, front = self.lanes[0], self._front
        if first.last <= dues[0] and dues == sorted(dues) and (not front or front[-1] < slots[0]):  # mostly
            first.last = dues[-1]
            first.tail += slots
            if len(first.tail) >= BLOCK:
                first.seal()
            return
        for slot in slots:
            self._add(slot)

    def _add(self, slot: Slot) -> None:
        if not self._front or self._front[-1] < slot:
            for lane in self.lanes:
                if lane.last <= slot[0]:
                    lane.append(slot)
                    return
            if len(self.lanes) < MAX_LANES:
                lane = Lane()
                lane.append(slot)
                self.lanes.append(lane)
                return
        self.push(slot)

    def push(self, slot: Slot) -> None:
        """Take in a slot that would spoil a lane: a retry has a late due time among much earlier ones."""
        if self._front and slot < self._front[-1]:
            insort(self._front, slot)
        else:
            heappush(self.heap, slot)

    def remove(self, number: int) -> None:
        """Take out the slot with this number, which was pushed: a step for each that was."""
        self.heap[:] = [slot for slot in self.heap if slot[1] != number]
        heapify(self.heap)

    def run(self, until: float, most: int) -> list[Slot]:
        """The next slots due at `until` or before, in order: none if there is none, else 1 to `most`."""
        if not self._front:
            self._advance(until)
        run = self._front[:most]
        if run and run[-1][0] > until:
            del run[bisect_right(run, (until, math.inf)) :]
        return run

    def drop(self, count: int) -> None:
        """Take out the first `count` slots of the run that was looked at last."""
        del self._front[:count]

    def pop(self, until: float) -> Slot | None:
        """Take out the next slot if it is due at `until` or before: `run` and `drop` in one."""
        if not self._front:
            self._advance(until)
        front = self._front
        return front.pop(0) if front and front[0][0] <= until else None

    def _advance(self, until: float) -> None:
        """Bring what is due by then to the front, which is empty: of no lane more than its first block."""
        front, heap = self._front, self.heap
        lanes = [lane for lane in self.lanes if lane.head and lane.head[0][0] <= until]
        # A lane is in due order, but not in that of the numbers where several are due at once: a message may
        # enter after one with a later number. So its last slot says nothing, and all is sorted in the end.
        bound: tuple[Any, ...] = (until, math.inf)
        if heap or len(lanes) > 1:  # what comes after a first block is still packed, and must not be passed
            bound = min([bound, *(max(lane.head) for lane in lanes if lane.head is not lane.tail)])
        while heap and heap[0] < bound:
            front.append(heappop(heap))
            if len(front) == BLOCK:
                bound = front[-1]
        for lane in lanes:
            count = bisect_right(lane.head, bound)
            front += lane.head[:count]
            lane.drop(count)
        front.sort()

    def first(self) -> Slot | None:
        """The next slot, or None."""
        if self._front:
            return self._front[0]
        heads = [lane.head[0] for lane in self.lanes if lane.head]
        return min(heads + self.heap[:1], default=None)

    def extent(self) -> tuple[int, float]:
        """How many slots there are, and when the last is due; -inf without any."""
        lanes = [lane.extent() for lane in self.lanes]
        last = max((slot[0] for slot in chain(self._front, self.heap)), default=-math.inf)
        count = len(self._front) + len(self.heap)
        return count + sum(lane[0] for lane in lanes), max(last, *(lane[1] for lane in lanes))

    def slots(self, number: int | None = None) -> Iterator[Slot]:
        """All slots, in no order, or those near the one with this number."""
        yield from self._front
        for lane in self.lanes:
            yield from lane.slots(number)
        if number is None:
            yield from self.heap
            return
        for begin in range(0, len(self.heap), _SEARCHED):
            part = self.heap[begin : begin + _SEARCHED]  # in C, and still other threads have their turns
            with contextlib.suppress(ValueError):
                yield part[indexOf(map(_NUMBER, part), number)]

    def cut(self, horizon: float) -> Piles:
        """Take out what is due before `horizon`."""
        near = Piles()
        near.lanes = [lane.cut(horizon) for lane in self.lanes]
        slots = self._front + self.heap
        self._front = []
        near.heap = [slot for slot in slots if slot[0] < horizon]
        self.heap = [slot for slot in slots if slot[0] >= horizon]
        heapify(near.heap)
        heapify(self.heap)
        return near

    def drop_heads(self, drops: Callable[[Slot], bool]) -> None:
        """Drop the slots that are dead and in front."""
        while self._front and drops(self._front[0]):
            del self._front[0]
        for lane in self.lanes:
            while lane.head and drops(lane.head[0]):
                lane.drop(1)
        while self.heap and drops(self.heap[0]):
            heappop(self.heap)

    def sweep(self, drops: Callable[[Slot], bool]) -> Iterator[None]:
        """Drop the slots that are dead: step by step, whatever happens in between."""
        for lane in self.lanes:
            yield from lane.sweep(drops)
        self._front[:] = filterfalse(drops, self._front)
        self.heap[:] = filterfalse(drops, self.heap)
        heapify(self.heap)
        yield
