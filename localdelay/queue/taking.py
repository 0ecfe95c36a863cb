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
from .worker import Worker

_SPACED_OUT = 256


class Taking:
    """What is due, for those who are to send it."""

    def __init__(self, pending: Pending, batch: BatchPolicy, valve: Valve) -> None:
        self.pending = pending
        self.batch = batch
        self.valve = valve
        self._schedule = pending.schedule
        self._takes_one = batch.max_messages == 1
        self.bars: set[str] = set()
        """Why nothing is taken: "paused", "stopped", or "reserved" for one worker until it looks again."""
        self._asked: list[Valve] = []  # whose limits, since the last look at them
        self._look_again_at = math.inf  # when what is set aside is to be looked at again, as of the last look
        self.closing = False
        """Whether nothing more comes in, and nobody waits for company."""

    @property
    def is_paused(self) -> bool:
        """Whether no message is taken until there is no pause any more."""
        return "paused" in self.bars

    def close(self) -> None:
        """Nothing more comes in."""
        self.closing = True

    def fill(self, worker: Worker, now: float) -> bool:
        """Take what is due and fits into the worker's batch; return whether that is to go now."""
        if self.bars:
            return False
        limit = self.valve.limit
        if self.valve.holds or (limit is not None and limit.limits):
            # What waits for company since before that was let go for nothing; and no more is let go with it.
            worker.is_paid = not worker.entries
            if worker.entries:
                return True
            entries = self.some(now, self.batch.max_messages)
            worker.entries += entries
            worker.size += sum(size_of(body) for _, _, body in entries)
            self.look(now, worker)
            return bool(worker.entries)
        if self._takes_one:
            entry = self._schedule.take_one(now)
            if entry is not None:
                worker.entries.append(entry)
            elif self._schedule.aside:
                worker.entries += self.suspect(now)
                self.look(now, worker)
            return True
        batch, schedule, entries = self.batch, self._schedule, worker.entries
        while due := schedule.due(now, batch.max_messages - len(entries)):
            count, size, full = joining(due, batch, count=len(entries), size=worker.size)
            if count:
                del due[count:]
                schedule.take(due)
                entries += due
                worker.size += size
            if full:
                return True
        if not entries and schedule.aside:
            entries += self.suspect(now)
            self.look(now, worker)
            return True
        return False

    def look(self, now: float, worker: Worker | None = None) -> None:
        """Say what of a limit has begun or ended by asking it for what was taken, by this worker say.

        That is somebody's by now, or who hears of it would look at a queue in which it is nowhere.
        """
        while self._asked:
            self._asked.pop().look(now)
        if worker is not None and worker.entries and self.is_paused:
            if worker.is_paid:
                self.valve.give_back(worker.entries)
            self.release(worker)

    def some(self, now: float, most: int) -> list[Entry]:
        """Take what is due, as much of it as the valve lets go now; then there is a `look` to be taken."""
        return self._take(self._schedule, self.valve, now, most)

    def release(self, worker: Worker) -> None:
        """Bring back what the worker has taken: a pause came before its send."""
        for entry in worker.entries:
            self.pending.bring_back(entry, entry)  # a keeper may let others send it meanwhile
        worker.clear()

    def until(self) -> float:
        """Until when there is nothing to do; sets the alarm for what comes in that is due before."""
        if self.is_paused:
            self._schedule.alarm.until = -math.inf
            return math.inf
        until = self.order_until()
        return min(until, self._suspects_until()) if self._schedule.aside else until

    def order_until(self) -> float:
        """Until when there is nothing to take in due order; sets the alarm likewise."""
        due = self._schedule.next_due()
        until = self._may_go_at(due, self.valve)
        # Else the valve decides when: what comes in before could not go before, either.
        self._schedule.alarm.until = due if until == due else -math.inf
        return until

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to take before the horizon, and nothing more comes there."""
        schedule = self._schedule
        if not schedule.is_empty or (schedule.aside and schedule.horizon == math.inf):
            return False
        return not self.pending.has_to_give  # what is not handed back yet may be rescheduled

    # An order, the whole one or the line of a key, and the valve before it.

    def _take(self, order: Schedule | Line, valve: Valve, now: float, most: int) -> list[Entry]:
        probe, limit = valve.probe, valve.limit
        if probe.is_shut:
            if now < probe.next_at or self._is_under_way(probe.out):
                return []
            most = 1
        elif valve.holds and self._space_out(order, valve, now):
            return []  # with more to be spaced out, perhaps: the others have their turn
        if most > 1 and self._takes_one and limit is not None and limit.limits:
            most = max(1, int(min(most, limit.available)))
        entries = order.due(now, most)
        if not entries and order is self._schedule and self._schedule.aside:
            return self.suspect(now)
        if not self._takes_one:
            del entries[joining(entries, self.batch, count=0, size=0)[0] :]
        if not valve.lets_go(entries, now):
            entries = []
        if entries:
            order.take(entries)
            if probe.is_shut:
                probe.out = entries[0][1]
        self._asked.append(valve)
        return entries

    def _may_go_at(self, due: float, valve: Valve) -> float:
        """When what is due then may go by its valve, as far as is known."""
        probe = valve.probe
        if not probe.is_shut:
            return max(due, valve.waits_until)
        return math.inf if self._is_under_way(probe.out) else max(due, valve.waits_until, probe.next_at)

    def _space_out(self, order: Schedule | Line, valve: Valve, now: float) -> bool:
        """Give some of what is overdue a time of its own each, so that the rest goes on time meanwhile."""
        # The first ones, for they come in due order, and so are those that `take` takes.
        overdue = [entry for entry in order.due(now, _SPACED_OUT) if entry[0] < valve.backlog]
        if not overdue:
            valve.caught_up()
            return False
        order.take(overdue)
        for entry in overdue:
            # What is not sent any more needs no place: what is behind it might expire while it waits for one.
            self.pending.again(moved(entry, now if has_expired(entry, now) else valve.pace.place(now)))
        return True

    def _is_under_way(self, number: int | None) -> bool:
        return any(entry[1] == number for entry in self.pending.at_work())

    # What is set aside: it was being sent when the last process ended, and goes last, each alone.

    def suspect(self, now: float) -> list[Entry]:
        """Take a message that may have ended the last process, if it is its turn."""
        schedule = self._schedule
        if not schedule.aside or not self._is_their_turn(now):
            return []
        for entry in schedule.aside_in_turn():
            if now < self._aside_until(entry) or self.valve.key_of(entry) in schedule.lines:
                continue  # its valve says so, or others of its key are due, and are to be the next probe
            valve = self.valve.of([entry])
            if valve.lets_go([entry], now):
                schedule.take_aside(entry)
                if valve.probe.is_shut:
                    valve.probe.out = entry[1]  # or its failure would let the next one go at once
                self._asked.append(valve)
                return [entry]
        return []

    def _aside_until(self, entry: Entry) -> float:
        valve = self.valve.known(entry)
        return -math.inf if valve is None else self._may_go_at(-math.inf, valve)

    def _suspects_until(self) -> float:
        """When one that is set aside is to be looked at, if its valve has said so."""
        schedule = self._schedule
        if schedule.horizon < math.inf or self.bars:
            return math.inf
        now = trio.current_time()
        # An instant that has come is none to wake for: what is due and may not go yet is before them.
        instants = {self._look_again_at, *(self._aside_until(entry) for entry in schedule.aside_in_turn())}
        return min((until for until in instants if until > now), default=math.inf)

    def _is_their_turn(self, now: float) -> bool:
        """Whether one that is set aside may go as far as others are concerned: it is the last, and alone."""
        self._look_again_at = math.inf
        if self.bars or self._schedule.horizon < math.inf or self._schedule.next_in_order() <= now:
            return False
        if any(entry[0] <= self.pending.suspects_since for entry in self.pending.at_work()):
            return False  # one of them, or what goes before them
        if now >= (last_place := self.valve.pace.last_place):
            return True
        self._look_again_at = last_place  # also where all that has a place is cancelled until then
        return False
