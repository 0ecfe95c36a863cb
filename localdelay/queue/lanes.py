"""Patience piles: slots in due order, in FIFO lanes and a heap.

With one delay for all, messages arrive in the order in which they are due, and an append to a FIFO is all
that it takes to keep them sorted. With a few delays the same holds for each delay on its own. So there are
a few FIFO lanes, each in due order: a slot is appended to the lane with the latest tail that is not later
than itself; where there is none, a new lane is begun; where there are enough lanes already, it goes into a
heap. The lane that takes it keeps its place in the list, because its new tail is still earlier than the tail
of the lane before it: the tails stand in descending order, the first lane that fits is the best one, and one
delay costs one comparison. (Where cancelling has emptied a lane, the order of the tails is lost, and with it
the best choice, but nothing else.) The next slot is the smallest of the lanes' heads and the heap's top.

A lane is a memory channel of blocks. Only its first and its last block are lists of slots; the blocks in
between are packed: times and numbers as plain bytes, payloads as one tuple. A slot costs 24 bytes in a
packed block and 130 outside, and the garbage collector never walks what is packed, though it be millions.
"""

from __future__ import annotations

import contextlib
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import filterfalse
from operator import indexOf, itemgetter
from struct import pack, unpack, unpack_from
from typing import Any, Final, TypeAlias

import trio

from localdelay.entry import Body

Slot: TypeAlias = tuple[float, int, Body] | tuple[float, int]
"""(due, number, body), or without a body where an index owns it."""
_Packed: TypeAlias = tuple[Any, ...]
"""(due times, numbers, bodies), or without bodies: native doubles, native 64-bit integers, a tuple."""
_Channel: TypeAlias = tuple[Callable[[_Packed], None], Callable[[], _Packed]]

MAX_LANES = 8
BLOCK = 256
"""A block may be up to twice as long."""
_POPPED = 64
_SEARCHED = 16_384
_NUMBER: Final = itemgetter(1)


class Lane:
    """One FIFO. Its head, the first block, is empty only where the lane is."""

    __slots__ = ("_pull", "_push", "_swept", "head", "last", "tail")

    def __init__(self) -> None:
        self._push, self._pull = _open_channel()
        self._swept: _Channel | None = None  # while it is being swept, what comes before the other channel
        self.head: list[Slot] = []
        self.tail = self.head  # one and the same list while there is but one block
        self.last = -math.inf  # when the last slot is due that was appended

    def append(self, slot: Slot) -> None:
        """Add a slot that is due no earlier than the last one."""
        self.last = slot[0]
        self.tail.append(slot)
        if len(self.tail) >= BLOCK:
            self.seal()

    def seal(self) -> None:
        """Begin a new last block."""
        if self.tail is not self.head:
            self._push(_packed(self.tail))
        self.tail = []

    def drop(self, count: int) -> None:
        """Take out the first `count` slots of the head."""
        del self.head[:count]
        if not self.head and self.head is not self.tail:
            packed = self._pull_first()
            self.head = self.tail if packed is None else _unpacked(packed)

    def slots(self, number: int | None = None) -> Iterator[Slot]:
        """All slots, in order, or those near the one with this number: the blocks that may hold it."""
        needle = b"" if number is None else pack("q", number)
        blocks = self._blocks()
        yield from self.head
        for block in blocks:
            if needle in block[1]:
                yield from _unpacked(block)
        if self.tail is not self.head:
            yield from self.tail

    def sweep(self, is_dead: Callable[[Slot], bool]) -> Iterator[int]:
        """Drop the slots that are dead, and yield how many: block by block, whatever happens in between."""
        if self._swept is None:  # else it goes on with a sweep that was given up
            self._swept = _open_channel()
        while True:
            try:
                block = _unpacked(self._pull())
            except trio.WouldBlock:
                break
            living = list(filterfalse(is_dead, block))
            if living:
                self._swept[0](_packed(living))
            yield len(block) - len(living)
        self._push, self._pull = self._swept
        self._swept = None
        before = len(self.tail)
        self.tail[:] = filterfalse(is_dead, self.tail)
        dropped = before - len(self.tail)
        if self.head is not self.tail:
            before = len(self.head)
            self.head[:] = filterfalse(is_dead, self.head)
            dropped += before - len(self.head)
            self.drop(0)
        if not self.head:
            self.last = -math.inf  # or its late tail would let it fit nothing for a while
        yield dropped

    def extent(self) -> tuple[int, float]:
        """How many slots there are, and when the last is due; -inf without any. Packed blocks stay packed."""
        blocks = self._blocks()
        parts = [self.head] if self.tail is self.head else [self.head, self.tail]
        count = sum(map(len, parts)) + sum(len(block[0]) // 8 for block in blocks)
        ends = [part[-1][0] for part in parts if part] + list(map(_last_due, blocks))
        return count, max(ends, default=-math.inf)

    def cut(self, horizon: float) -> Lane:
        """Take out what is due before `horizon`, as a lane of its own. Packed blocks stay packed."""
        near = Lane()
        near.last = self.last
        near.head = near.tail = self._cut_head(horizon)
        if self.head or self.head is self.tail:
            return near
        near.tail = []
        while (packed := self._pull_first()) is not None:
            if _last_due(packed) >= horizon:
                self.head = _unpacked(packed)
                break
            near._push(packed)
        else:
            self.head = self.tail
        near.tail = self._cut_head(horizon)
        return near

    def _cut_head(self, horizon: float) -> list[Slot]:
        count = bisect_left(self.head, (horizon,))
        near = self.head[:count]
        del self.head[:count]
        return near

    def _blocks(self) -> list[_Packed]:
        """The packed blocks. A channel can't be looked into, so it is emptied and filled again."""
        blocks = list(iter(self._pull_first, None))
        for block in blocks:
            self._push(block)
        return blocks

    def _pull_first(self) -> _Packed | None:
        if self._swept is not None:
            with contextlib.suppress(trio.WouldBlock):
                return self._swept[1]()
        with contextlib.suppress(trio.WouldBlock):
            return self._pull()
        return None


def _open_channel() -> _Channel:
    sending, receiving = trio.open_memory_channel[_Packed](math.inf)
    return sending.send_nowait, receiving.receive_nowait


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
    """The lanes and the heap. `run` looks at the next slots, and `drop` takes out the first of these."""

    __slots__ = ("_from", "_merged", "_parts", "_popped", "heap", "lanes")

    def __init__(self) -> None:
        self.lanes = [Lane()]  # there is always one
        self.heap: list[Slot] = []
        self._popped = Lane()  # due ones that were popped off the heap, many at a time, to be seen as a run
        self._from: Lane | None = None  # where the last run was seen; None is the heap
        self._merged: list[Slot] = []  # the last run, if it was seen in several lanes
        self._parts: list[tuple[Lane, int]] = []  # in which, and among how many of its first slots

    def add_all(self, slots: Sequence[Slot], dues: list[float]) -> None:
        """Take in slots, which are due at `dues`, each where it fits best."""
        first = self.lanes[0]
        if first.last <= dues[0] and dues == sorted(dues):  # mostly
            first.last = dues[-1]
            first.tail += slots
            if len(first.tail) >= BLOCK:
                first.seal()
            return
        for slot in slots:
            self._add(slot)

    def _add(self, slot: Slot) -> None:
        for lane in self.lanes:
            if lane.last <= slot[0]:
                lane.append(slot)
                return
        if len(self.lanes) < MAX_LANES:
            lane = Lane()
            lane.append(slot)
            self.lanes.append(lane)
        else:
            heappush(self.heap, slot)

    def push(self, slot: Slot) -> None:
        """Take in a slot that would spoil a lane: a retry has a late due time among much earlier ones."""
        heappush(self.heap, slot)

    def run(self, until: float, most: int) -> list[Slot]:
        """The next slots due at `until` or before, in order: none if there is none, else 1 to `most`."""
        heap = self.heap
        if heap and heap[0][0] <= until and not self._popped.head:
            for _ in range(_POPPED):
                self._popped.append(heappop(heap))
                if not heap or heap[0][0] > until:
                    break
        best: Slot | None = heap[0] if heap else None
        bound: tuple[float, float] = (until, math.inf)
        self._from = None
        self._merged = []
        for lane in (*self.lanes, self._popped):
            head = lane.head
            if not head:
                continue
            slot = head[0]
            if best is None:
                best, self._from = slot, lane
            elif slot < best:
                best, self._from, bound = slot, lane, min(bound, best[:2])
            else:
                bound = min(bound, slot[:2])
        if best is None or best[0] > until:
            return []
        if self._from is None:
            return [best]
        head = self._from.head
        if most == 1:
            return head[:1]
        run = head[: bisect_right(head, bound, 0, min(most, len(head)))]
        if len(run) < most and bound[0] <= until and bound[1] < math.inf:  # another lane is due in between
            self._merged = run = self._merge(until, most)
        return run

    def _merge(self, until: float, most: int) -> list[Slot]:
        """The next slots of all lanes, in order, up to where one of them has a block that is still packed.

        A lane is in due order, but not in that of the numbers where several are due at once: a message may
        enter after one with a later number. So what is looked at of a lane is put in order first: then what
        is merged is the beginning of each lane, and `drop` finds it there.
        """
        bound: tuple[Any, ...] = (until, math.inf)
        if self.heap:
            bound = min(bound, self.heap[0])
        lanes = [lane for lane in (*self.lanes, self._popped) if lane.head]
        for lane in lanes:
            if lane.head is not lane.tail and len(lane.head) < most:
                bound = min(
                    bound, max(lane.head)
                )  # not the last: before the first of all, nothing would be due
        merged: list[Slot] = []
        self._parts = []
        for lane in lanes:
            count = bisect_right(lane.head, bound, 0, min(most, len(lane.head)))
            lane.head[:count] = part = sorted(lane.head[:count])
            merged += part
            self._parts.append((lane, count))
        merged.sort()
        del merged[most:]
        return merged

    def drop(self, count: int) -> None:
        """Take out the first `count` slots of the run that was looked at last."""
        if self._merged:
            last = self._merged[count - 1]
            self._merged = []
            for lane, part in self._parts:
                lane.drop(bisect_right(lane.head, last, 0, part))
        elif self._from is None:
            heappop(self.heap)
        else:
            self._from.drop(count)

    def pop(self, until: float) -> Slot | None:
        """Take out the next slot if it is due at `until` or before: `run` and `drop` in one."""
        if len(self.lanes) == 1 and not self.heap and not self._popped.head:
            lane = self.lanes[0]
            head = lane.head
            if not head or head[0][0] > until:
                return None
            slot = head.pop(0)
            if not head:
                lane.drop(0)
            return slot
        run = self.run(until, 1)
        if not run:
            return None
        self.drop(1)
        return run[0]

    def first(self) -> Slot | None:
        """The next slot, or None."""
        heads = [lane.head[0] for lane in (*self.lanes, self._popped) if lane.head]
        return min(heads + self.heap[:1], default=None)

    def extent(self) -> tuple[int, float]:
        """How many slots there are, and when the last is due; -inf without any."""
        lanes = [lane.extent() for lane in (*self.lanes, self._popped)]
        last = max((slot[0] for slot in self.heap), default=-math.inf)
        return sum(lane[0] for lane in lanes) + len(self.heap), max(last, *(lane[1] for lane in lanes))

    def slots(self, number: int | None = None) -> Iterator[Slot]:
        """All slots, in no order, or those near the one with this number."""
        for lane in (*self.lanes, self._popped):
            yield from lane.slots(number)
        if number is None:
            yield from self.heap
        for begin in () if number is None else range(0, len(self.heap), _SEARCHED):
            part = self.heap[begin : begin + _SEARCHED]  # in C, and still other threads have their turns
            with contextlib.suppress(ValueError):
                yield part[indexOf(map(_NUMBER, part), number)]

    def cut(self, horizon: float) -> Piles:
        """Take out what is due before `horizon`."""
        near = Piles()
        near.lanes = [lane.cut(horizon) for lane in self.lanes]
        near._popped = self._popped.cut(horizon)
        near.heap = [slot for slot in self.heap if slot[0] < horizon]
        self.heap = [slot for slot in self.heap if slot[0] >= horizon]
        heapify(near.heap)
        heapify(self.heap)
        return near

    def drop_heads(self, is_dead: Callable[[Slot], bool]) -> int:
        """Drop the slots that are dead and in front, and return how many they were."""
        dropped = 0
        for lane in (*self.lanes, self._popped):
            while lane.head and is_dead(lane.head[0]):
                lane.drop(1)
                dropped += 1
        while self.heap and is_dead(self.heap[0]):
            heappop(self.heap)
            dropped += 1
        return dropped

    def sweep(self, is_dead: Callable[[Slot], bool]) -> Iterator[int]:
        """Drop the slots that are dead, and yield how many: step by step, whatever happens in between."""
        for lane in (*self.lanes, self._popped):
            yield from lane.sweep(is_dead)
        before = len(self.heap)
        self.heap[:] = filterfalse(is_dead, self.heap)
        heapify(self.heap)
        yield before - len(self.heap)
