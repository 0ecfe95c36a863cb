"""What a worker takes: as much of what is due as fits its batch, and as the valve lets go.

Nothing here awaits: a message is in the order, or in the `entries` of the worker that has taken it.
"""

from __future__ import annotations

import math

import trio

from localdelay.entry import Entry, has_expired, moved, size_of

from .batch import BatchPolicy, joining
from .lines import Line
from .pending import Pending
from .schedule import Schedule
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


class Choosing:
    """What goes next of an order before which there is a valve."""

    def __init__(self, pending: Pending, batch: BatchPolicy, valve: Valve, order: Schedule | Line) -> None:
        self._pending = pending
        self._batch = batch
        self._one_by_one = batch.max_messages == 1
        self._valve = valve
        self._order = order

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

    def order_until(self) -> float:
        """Until when there is nothing to take of it; sets the alarm for what comes in that is due before."""
        valve, due = self._valve, self._order.next_due()
        probe = valve.probe
        until = max(due, valve.waits_until)
        if probe.is_shut:
            until = math.inf if self._is_under_way(probe.out) else max(until, probe.next_at)
        self._order.alarm = due if until == due else -math.inf
        return until

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
        self.bars: set[str] = set()
        """Why nothing is taken: "paused", "stopped", or "reserved" for one worker until it looks again."""
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
            elif self._schedule.aside:
                worker.entries += self.suspect(now)
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
        if not entries and schedule.aside:
            entries += self.suspect(now)
            return True
        return False

    def until(self) -> float:
        """Until when there is nothing to do; sets the alarm for what comes in that is due before."""
        if "paused" in self.bars:
            self._schedule.alarm = -math.inf
            return math.inf
        until = self.order_until()
        return min(until, self._suspects_until()) if self._schedule.aside else until

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to take before the horizon."""
        schedule = self._schedule
        return schedule.is_empty and (not schedule.aside or schedule.horizon < math.inf)

    def suspect(self, now: float) -> list[Entry]:
        """Take a message that may have ended the last process, if it is its turn: last, and one at a time."""
        schedule = self._schedule
        if not schedule.aside or not self._is_their_turn(now):
            return []
        for entry in schedule.aside_in_turn():
            if now < self._gate(entry) or self._has_others_to_try(entry):
                continue
            valve = self._valve.of([entry])
            if valve.lets_go([entry], now):
                schedule.take_aside(entry)
                if valve.probe.is_shut:
                    valve.probe.out = entry[1]  # or its failure would let the next one go at once
                return [entry]
        return []

    def _has_others_to_try(self, entry: Entry) -> bool:
        """Whether there are others to go before this one, and to be the next probe."""
        return self._valve.probe.is_shut and self._schedule.next_due() < math.inf

    def _next_other(self) -> float:
        """When the next message is due that goes before these."""
        return self._schedule.next_due()

    def _gate(self, entry: Entry) -> float:
        """When one that is set aside may go by its valve, as far as is known."""
        valve = self._valve.known(entry)
        if valve is None or not valve.probe.is_shut:
            return -math.inf if valve is None else valve.waits_until
        return math.inf if self._is_under_way(valve.probe.out) else valve.probe.next_at

    def _suspects_until(self) -> float:
        """When one that is set aside is to be looked at, if its valve has said so."""
        schedule = self._schedule
        if schedule.horizon < math.inf or self.bars:
            return math.inf
        now = trio.current_time()
        gates = {self._gate(entry) for entry in schedule.aside_in_turn()}
        return min(self._turn, min((gate for gate in gates if gate > now), default=math.inf))

    def _is_their_turn(self, now: float) -> bool:
        """Whether one that is set aside may go as far as others are concerned: it is the last, and alone."""
        self._turn = math.inf
        if self.bars or self._schedule.horizon < math.inf or self._next_other() <= now:
            return False
        if any(entry[0] <= self._pending.began for entry in self._pending.at_work()):
            return False  # one of them, or what goes before them
        if now >= (last_place := self._valve.pace.last_place):
            return True
        self._turn = last_place  # also where all that has a place is cancelled until then
        return False
