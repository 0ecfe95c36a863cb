"""What a worker takes: as much of what is due as fits its batch, and as the valve lets go.

Nothing here awaits: a message is in the order, or in the `entries` of the worker that has taken it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import trio

from localdelay.entry import Entry, has_expired, moved, size_of

from .batch import BatchPolicy, joining
from .lanes import Slot
from .pending import Pending
from .valve import Valve

_SPACED_OUT = 256


class Worker:
    """One worker's state. `send_deadline` is when its send must end, in seconds on Trio's clock."""

    __slots__ = ("began", "entries", "failure", "is_paid", "scope", "send_deadline", "size", "timed_out")

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # what it has taken and not settled yet
        self.size = 0  # bytes of these, where they are a batch
        self.is_paid = True  # if the limit limits now, it did so when these were taken
        self.failure: Exception | None = None
        self.began = 0.0  # the send that has failed
        self.send_deadline = math.inf
        self.scope = trio.CancelScope()
        self.timed_out = False


class Order(Protocol):
    """What is waiting to be taken: a queue's schedule, or a part of it."""

    alarm: float

    @property
    def aside(self) -> Sequence[Slot]:
        """What goes after all else."""

    def next_due(self) -> float:
        """When the next message is due, in seconds on Trio's clock; infinite if there is none."""

    def due(self, now: float, most: int) -> list[Entry]:
        """The next messages that are due, up to `most` of them and perhaps fewer."""

    def take(self, entries: list[Entry]) -> None:
        """Take out the first of the messages that `due` has just returned, as many as are given."""


class Choosing:
    """What goes next of an order before which there is a valve."""

    def __init__(self, pending: Pending, batch: BatchPolicy, valve: Valve, order: Order) -> None:
        self._pending = pending
        self._batch = batch
        self._one_by_one = batch.max_messages == 1
        self._valve = valve
        self._order = order
        self.bars: set[str] = set()
        """Why nothing is taken: "paused", "stopped", or "reserved" for one worker until it looks again."""

    def some(self, now: float, most: int) -> list[Entry]:
        """Take what is due, as much of it as the valve lets go now."""
        valve, order = self._valve, self._order
        probe = valve.probe
        if probe.is_shut:
            if now < probe.next_at or self._is_under_way(probe.out):
                return []
            most = 1
        elif valve.holds and self._space_out(now):
            return []  # with more to be spaced out, perhaps: the others have their turn
        limit = valve.limit
        if most > 1 and self._one_by_one and limit is not None and limit.limits:
            most = max(1, int(min(most, limit.available)))
        entries = order.due(now, most)
        if not entries and order.aside:
            return self.suspect(now)
        if not self._one_by_one:
            del entries[joining(entries, self._batch, count=0, size=0)[0] :]
        if not valve.lets_go(entries, now) or not entries:
            return []
        order.take(entries)
        if probe.is_shut:
            probe.out = entries[0][1]
        return entries

    def suspect(self, now: float) -> list[Entry]:
        """Take a message that may have ended the last process, if it is its turn; here there is none."""
        return []

    def until(self) -> float:
        """Until when there is nothing to do; sets the alarm for what comes in that is due before."""
        valve, due = self._valve, self._order.next_due()
        if self._order.aside:
            due = self._with_aside(due)
        probe = valve.probe
        until = max(due, valve.waits_until)
        if self._order.aside and valve.waits_until > trio.current_time():
            # What is set aside may be what waits for it; once that is over and it has not gone, it was not.
            until = valve.waits_until
        if "paused" in self.bars or (probe.is_shut and self._is_under_way(probe.out)):
            until = math.inf
        elif probe.is_shut:
            until = max(until, probe.next_at)
        self._order.alarm = due if until == due else -math.inf
        return until

    def _with_aside(self, due: float) -> float:
        """When something may go, by its time, where what is not set aside is due then; here nothing is."""
        return due

    def _space_out(self, now: float) -> bool:
        """Give some of what is overdue a time of its own each, so that the rest goes on time meanwhile."""
        valve = self._valve
        overdue = [entry for entry in self._order.due(now, _SPACED_OUT) if entry[0] < valve.backlog]
        if not overdue:
            valve.caught_up()
            return False
        self._order.take(overdue)
        for entry in overdue:
            # What is not sent any more needs no place: what is behind it might expire while it waits for one.
            self._pending.again(moved(entry, now if has_expired(entry, now) else valve.pace.place(now)))
        return True

    def _is_under_way(self, number: int | None) -> bool:
        return any(entry[1] == number for entry in self._pending.at_work())


class Taking(Choosing):
    """What is due, for those who are to send it."""

    def __init__(self, pending: Pending, batch: BatchPolicy, valve: Valve) -> None:
        super().__init__(pending, batch, valve, pending.schedule)
        self._schedule = pending.schedule
        self._turn = math.inf  # when what is set aside is to be looked at again, as of the last look
        self.closing = False
        """Whether nothing more comes in, and nobody waits for company."""

    def close(self) -> None:
        """Nothing more comes in."""
        self.closing = True

    def fill(self, worker: Worker, now: float) -> bool:
        """Take what is due and fits into the worker's batch; return whether that is to go now."""
        if self.bars:
            return False
        limit = self._valve.limit
        if self._valve.holds or (limit is not None and limit.limits):
            if worker.entries:
                return True  # it waits for company since before that: it has let these go, and lets no more
            entries = self.some(now, self._batch.max_messages)
            worker.entries += entries
            worker.size += sum(size_of(body) for _, _, body in entries)
            return bool(entries)
        if self._one_by_one:
            entry = self._schedule.take_one(now)
            if entry is not None:
                worker.entries.append(entry)
            return True
        batch, schedule, entries = self._batch, self._schedule, worker.entries
        while due := schedule.due(now, batch.max_messages - len(entries)):
            count, size, full = joining(due, batch, count=len(entries), size=worker.size)
            if count:
                del due[count:]  # the piles' own list, perhaps: they count from its beginning
                schedule.take(due)
                entries += due
                worker.size += size
            if full:
                return True
        return False

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to take before the horizon."""
        schedule = self._schedule
        return schedule.is_empty and (not schedule.aside or schedule.horizon < math.inf)

    def suspect(self, now: float) -> list[Entry]:
        """Take a message that may have ended the last process, if it is its turn: last, and one at a time."""
        entry = self._next_suspect(now)
        if entry is None or not self._valve.lets_go([entry], now):
            return []
        self._schedule.take_aside(entry)
        if self._valve.probe.is_shut:
            self._valve.probe.out = entry[1]  # or its failure would let the next one go at once
        return [entry]

    def _next_suspect(self, now: float) -> Entry | None:
        schedule, valve = self._schedule, self._valve
        is_tried = valve.probe.is_shut and schedule.next_due() < math.inf  # there are others for that
        if is_tried or not self._is_their_turn(schedule.next_due(), now):
            return None
        return next(iter(schedule.aside_in_turn()), None)

    def _is_their_turn(self, next_due: float, now: float) -> bool:
        """Whether one that is set aside may go, where others are due then."""
        self._turn = math.inf
        if next_due <= now or self._is_aside_barred:
            return False
        if now >= (last_place := self._valve.pace.last_place):
            return True
        self._turn = last_place  # also where all that has a place is cancelled until then
        return False

    @property
    def _is_aside_barred(self) -> bool:
        """Whether nothing of that may go at any time: one of it is under way, say, or what goes before."""
        if self.bars or self._schedule.horizon < math.inf:
            return True
        return any(entry[0] <= self._pending.began for entry in self._pending.at_work())

    def _with_aside(self, due: float) -> float:
        probe = self._valve.probe
        if probe.is_shut and due == math.inf and not self._is_aside_barred:
            return probe.next_at
        return min(due, self._turn)
