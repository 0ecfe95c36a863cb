"""Due sends by key: one limit and one probe for each key, over one schedule.

What is not due waits in the one order there is. What is due stands in the line of its key, in due order, and
a worker takes from the line whose first message may go since longest. So a key whose broker is down,
or which is limited, keeps its own messages waiting and nobody else's. Who stands in a line waits as before,
and is counted, cancelled and moved as before; and its key is looked up only then, so that it is that of the
message as it is sent.

Each line has its place by the instant at which its first message may go, by what its valve says (`Taking`,
which is all there is of a queue without keys): when that is due, when its limit has what it owes, when the
next probe may go, or when its batch has waited long enough for company, which a limit or a probe has it do
already. While its probe is out it has no place, and is looked at again as soon as that is not at work any
more, however it has ended. Whatever else may change that, the outcome of a send or a valve that was
forgotten, is news: that line is asked again at the next look. To ask once too often costs a moment, and so
nothing here has to know what a change means.

Valves are kept for the keys that were used last, and lines for as long as somebody stands in them. A key that
is forgotten while there is a line begins anew: a message goes, and what that comes to says how its broker is.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush
from itertools import count

from localdelay.entry import Entry, size_of

from .batch import BatchPolicy, joining
from .lines import Line
from .pending import Pending
from .taking import Taking
from .valve import Valve
from .valves import Valves
from .worker import Worker

_AT_ONCE = 4096
"""So many messages get into their lines at most before others have their turn."""
_RUN = 256


class KeyedTaking(Taking):
    """What is due, by key, for those who are to send it."""

    valve: Valves

    def __init__(self, pending: Pending, batch: BatchPolicy, valve: Valves) -> None:
        super().__init__(pending, batch, valve)
        # A heap of (when it may go, number of its first message, turn, line); a line that has another turn by
        # now is passed over.
        self._places: list[tuple[float, int, int, Line]] = []
        self._generations = count(1)
        self._probing: dict[Line, int | None] = {}  # and the number of what is out

    def close(self) -> None:
        """Nothing more comes in."""
        super().close()
        self.valve.news.update(self._schedule.lines)

    def fill(self, worker: Worker, now: float) -> bool:
        """Take what is due of one key and fits into a batch: that is to go now, for it had its company."""
        if not self.bars:
            self._look(now)
            worker.is_paid = True  # each valve is asked; one may have begun to limit since the last send
            worker.entries += self._next(now, self.batch.max_messages) or self.suspect(now)
            worker.size = sum(size_of(body) for _, _, body in worker.entries)
            self.look(now, worker)
        return True

    def some(self, now: float, most: int) -> list[Entry]:
        """Take what is due of whatever keys, as much of it as their valves let go now."""
        self._look(now)  # once: what is taken here is at work only afterwards
        taken: list[Entry] = []
        while len(taken) < most and (entries := self._next(now, 1)):
            taken += entries
        return taken or self.suspect(now)

    def order_until(self) -> float:
        """Until when there is nothing to take of any line; sets the alarm likewise."""
        places = self._places
        while places and places[0][2] != places[0][3].generation:
            heappop(places)
        until = self._schedule.next_in_order()
        if self.valve.news:
            until = min(until, 0.0)  # at once: a valve has changed, or the last look only spaced out
        elif places:
            until = min(until, places[0][0])
        self._schedule.alarm.until = until
        return until

    def _look(self, now: float) -> None:
        """Let what is due stand in line, and put the lines in their places whose turn may have come."""
        valve, lines = self.valve, self._schedule.lines
        if valve.holds and self._space_out(self._schedule, valve, now):
            return
        again = [lines[key] for key in valve.news if key in lines]
        valve.news.clear()
        if self._probing:
            out = {entry[1] for entry in self.pending.at_work()}
            again += [line for line, number in self._probing.items() if number not in out]
        again += self._let_stand(now)
        for line in dict.fromkeys(again):
            self._place(line, now)

    def _let_stand(self, now: float) -> list[Line]:
        """Let what is due by now stand in line; return the lines."""
        schedule = self._schedule
        lines: list[Line] = []
        while len(lines) < _AT_ONCE and schedule.next_in_order() <= now:
            entries = schedule.due(now, _RUN)
            # Before any is out of the order, for a stranger's function is called: what it raises may end the
            # queue, and then they must be found.
            keys = [self.valve.key_of(entry) for entry in entries]
            schedule.sort_out(entries)
            for entry, key in zip(entries, keys, strict=True):
                line = schedule.line(key)
                line.stand(entry)
                lines.append(line)
        return lines

    def _next(self, now: float, most: int) -> list[Entry]:
        """What goes next: of one key, as much as one send takes."""
        places = self._places
        while places and places[0][0] <= now:
            _, _, turn, line = heappop(places)
            if turn != line.generation:
                continue
            line.place = None
            valve = self.valve.by_key.of(line.key)
            entries = self._take(line, valve, now, most)
            self._place(line, now, probes=bool(entries) and valve.probe.is_shut)
            if entries:
                return entries
            if line.place is not None and line.place[0] <= now:
                return []  # it has more to be spaced out: the others have their turn
        return []

    def _place(self, line: Line, now: float, *, probes: bool = False) -> None:
        """Put a line where it belongs by now; if it `probes`, a message of it is about to."""
        # Without making a valve, which would have another one forgotten, whose line had to be placed, too.
        valve = self.valve.by_key.known(line.key)
        self._probing.pop(line, None)
        due = line.next_due()
        if due == math.inf:
            line.generation = next(self._generations)
            self._schedule.lines.pop(line.key, None)
            if valve is not None:
                valve.wants_nothing()
            return
        until = due if valve is None else math.inf if probes else self._may_go_at(due, valve)
        if until <= now and self._has_company_to_wait_for(line, valve):
            until = due + self.batch.max_wait
        if until == math.inf and valve is not None:
            self._probing[line] = valve.probe.out
        place = (until, line.first_number)
        if place == line.place:
            return
        line.place = place
        line.generation = next(self._generations)
        if until < math.inf:
            heappush(self._places, (*place, line.generation, line))

    def _has_company_to_wait_for(self, line: Line, valve: Valve | None) -> bool:
        batch = self.batch
        if not batch.max_wait or self.closing or (valve is not None and valve.probe.is_shut):
            return False
        return not joining(line.due(math.inf, batch.max_messages), batch, count=0, size=0)[2]
