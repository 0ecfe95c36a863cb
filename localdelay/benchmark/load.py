"""The load: when each message is to be put, with which delay, and the open loop that does it.

Message i is put at its time whether or not the earlier ones have been sent.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol

import attrs
import trio

from localdelay.errors import QueueFull
from localdelay.timer import open_timer

CHUNK = 256
"""Messages put in a row by a load that is behind, before the others get their turn."""
NUMBER_BYTES = 8
"""A payload begins with its message's number, which tells when the message was to be put."""
_DRAWN = 1 << 16


@attrs.frozen
class Pace:
    """When the messages are to be put: evenly, or at a rate that changes linearly."""

    first: float
    """Messages/s at the beginning."""
    last: float
    """Messages/s at the end; the same as `first` for an even load."""
    seconds: float
    total: int = attrs.field(init=False)
    """Messages, at least one."""
    _bend: float = attrs.field(init=False, repr=False)

    @total.default
    def _count(self) -> int:
        return max(1, round((self.first + self.last) / 2 * self.seconds))

    @_bend.default
    def _twice_the_slope(self) -> float:
        return 2 * (self.last - self.first) / self.seconds

    @property
    def highest(self) -> float:
        """The highest rate of it, in messages/s."""
        return max(self.first, self.last)

    def offset(self, number: int) -> float:
        """When a message is to be put, in seconds from the start."""
        if not self._bend:
            return number / self.first
        # number = first·t + (last - first)/(2·seconds)·t², solved for t in the form that loses no digits.
        first = self.first
        return 2 * number / (first + math.sqrt(max(0.0, first * first + self._bend * number)))

    def put_by(self, elapsed: float) -> int:
        """How many are to be put within so many seconds from the start, to within one."""
        after = min(max(0.0, elapsed), self.seconds)
        return min(self.total, math.floor((self.first + self._bend / 4 * after) * after) + 1)

    def rate_at(self, elapsed: float) -> float:
        """Messages/s at so many seconds from the start."""
        share = min(1.0, max(0.0, elapsed / self.seconds))
        return self.first + (self.last - self.first) * share


@attrs.frozen
class Delays:
    """The delays of the messages, in seconds: one for all, or one of several or of a range, at random."""

    values: tuple[float, ...]
    """The delays; the two ends if they are a range."""
    is_range: bool = False

    @property
    def shortest(self) -> float:
        """Seconds."""
        return min(self.values)

    @property
    def longest(self) -> float:
        """Seconds."""
        return max(self.values)

    def as_json(self) -> dict[str, object]:
        """The two entries that settings have of them."""
        return {"delays": list(self.values), "delay_is_range": self.is_range}

    def table(self, seed: int) -> array[float]:
        """Message i has the delay number `i % len(table)`: a power of two of them, or one alone.

        So the delay of a message can be told from its number, and a long run takes no more memory.
        """
        if self.shortest == self.longest:
            return array("d", self.values[:1])
        draw = random.Random(seed)
        if self.is_range:
            return array("d", (draw.uniform(*self.values) for _ in range(_DRAWN)))
        return array("d", draw.choices(self.values, k=_DRAWN))


def filling(size: int, seed: int) -> bytes:
    """What a payload of `size` bytes has behind its number: noise, which no broker can compress."""
    return random.Random(seed).randbytes(size - NUMBER_BYTES)


def number_in(payload: bytes) -> int:
    """The number of the message with this payload."""
    return int.from_bytes(payload[:NUMBER_BYTES], "big")


class PutNowait(Protocol):
    """`put_nowait` of any contender: raises `QueueFull` or `trio.WouldBlock` where it has no room."""

    def __call__(self, payload: bytes, /, *, delay: float) -> object:
        """Take in a message that is due in so many seconds."""


def putter(
    put_nowait: PutNowait, delays: Delays, *, size: int, seed: int, refuse: Callable[[], object]
) -> Callable[[int, int], None]:
    """What puts messages `first` to `stop`, each with its own payload and delay, for `offer`.

    `refuse` is called for each that there is no room for.
    """
    table = delays.table(seed)
    mask = len(table) - 1
    rest = filling(size, seed)

    def put_run(first: int, stop: int) -> None:
        for number in range(first, stop):
            try:
                put_nowait(number.to_bytes(NUMBER_BYTES, "big") + rest, delay=table[number & mask])
            except (QueueFull, trio.WouldBlock):
                refuse()

    return put_run


class Loop(Protocol):
    """Where a load is put: a Trio run, an asyncio loop, a plain thread. Times are in seconds on its clock."""

    @property
    def clock(self) -> Callable[[], float]:
        """What time it is; may be called from any thread."""

    async def sleep_until(self, when: float) -> None:
        """Wait until that time."""

    async def checkpoint(self) -> None:
        """Let the others run."""


class TrioLoop:
    """The Trio run that this is made in, with what waits there until an instant."""

    def __init__(self, sleep_until: Callable[[float], Coroutine[Any, Any, None]] = trio.sleep_until) -> None:
        self.clock: Callable[[], float] = trio.lowlevel.current_clock().current_time
        self.sleep_until = sleep_until

    async def checkpoint(self) -> None:
        """Let the others run."""
        await trio.lowlevel.checkpoint()


@contextmanager
def precise_loop() -> Iterator[TrioLoop]:
    """The Trio run that this is called in, for the length of a `with` block.

    Its timer is the precise one, also where that of a queue is not to be: the load should be on time.
    """
    with closing(open_timer("auto")) as timer:
        yield TrioLoop(timer.sleep_until)


async def offer(
    pace: Pace,
    loop: Loop,
    start: float,
    put_run: Callable[[int, int], object],
    after_run: Callable[[int, int, float, float], object],
) -> None:
    """Call `put_run(first, stop)`, and then `after_run(first, stop, began, ended)`, until all are put.

    Each message is called for when its time has come, the first at `start`, which is now or gone by on the
    loop's clock. There are two clock reads a wake-up, and none a message: within a run of puts, times can be
    interpolated.
    """
    clock, offset, total = loop.clock, pace.offset, pace.total
    done = 0
    while done < total:
        began = clock()
        due = min(total, max(done, pace.put_by(began - start)))
        # In the terms of the deadline below, or a rounding error could make it sleep for ever.
        while due < total and start + offset(due) <= began:
            due += 1
        stop = min(due, done + CHUNK)
        if stop > done:
            put_run(done, stop)
            after_run(done, stop, began, clock())
            done = stop
        if stop < due:
            await loop.checkpoint()
        elif stop < total:
            await loop.sleep_until(start + offset(stop))
