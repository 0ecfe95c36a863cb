"""Sends that run elsewhere than on the queue's loop: in threads, or on the loop of another library.

A hop to another thread costs more than a message. So one task here takes what is due in runs and hands it
over; the senders take one message each at a time from a plain queue; and what has come of them comes back in
batches. A message that is handed over counts as being sent.

What must hold. No more than `count` sends are under way at once: that is the senders' business, and a call
that was given up but has not returned keeps its place. No message waits behind a send that hangs: any sender
that is free takes the next one, and where none is, what has not begun is taken back into the schedule. So
that little has to be: what is handed over ahead of the senders is only what they get through in `_AHEAD`
seconds, which is nothing where a send takes its time, and nothing with a journal: there a crash repeats one
message a sender at most, so none of them gets its next one before the end of its last one is written.
Lateness and `send_timeout` count from when the send of each message really begins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from typing import Final

import trio

from localdelay.entry import Entry, all_plain
from localdelay.hops import Hop
from localdelay.queue.sending import Delivery, Outcome
from localdelay.queue.taking import Taking
from localdelay.queue.worker import Worker
from localdelay.queue.workers import Workers
from localdelay.timer import MERGED, TimerKind, clock_parts

_AHEAD = 0.002
_MOST = 2048
_REST = 4
_LONGEST_REST = 0.002
"""Seconds. After each look it rests so many times as long as that took, and no longer than this: to wake the
loop, and who sends, costs what ten messages or more cost, and the busier all are the more come at once."""
_SOON = 0.005
"""Seconds: where this wakes so soon by itself nobody wakes it to tell what was sent."""
_STALL = 0.02
"""Seconds: so often it is looked whether all senders hang while there are messages ahead of them."""
_NUMBER: Final = itemgetter(1)  # of an entry
_BEGAN: Final = itemgetter(1)  # of an outcome, as are these
_ENDED: Final = itemgetter(2)
TELL_EVERY = 0.0005
"""Seconds: what is sent while more waits to be sent is told of so often, for each time stops who sends."""


class Seat:
    """What one sender is doing. `began` is written before `item`: who sees the item sees when it began."""

    __slots__ = ("began", "item", "owner")

    def __init__(self, owner: object) -> None:
        self.owner = owner
        """Who has such senders."""
        self.began = 0.0
        self.item: object = None  # an `Entry`, where it sends a message


class Senders(ABC):
    """Who sends. To be given to a queue in place of an async function, which then calls all on its loop."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._seats: Iterable[Seat]
        self._read_clock: Callable[[], float]
        self._offset: float
        self._done: Hop[Outcome]
        self._told_at = 0.0
        self.asleep_until = -math.inf
        """Whoever feeds them need not be told before this what has come of a message: it looks by itself."""

    def make_workers(self, taking: Taking, delivery: Delivery, timer: TimerKind, count: int) -> Workers:
        """The workers of a queue that has these."""
        return OutsideWorkers(taking, delivery, timer, count, self)

    def begin(self, read_clock: Callable[[], float], offset: float, done: Hop[Outcome]) -> None:
        """The queue has begun: what comes of each message goes there, with times of its clock."""
        self._read_clock, self._offset = read_clock, offset  # the time is their sum (`clock_parts`)
        self._done = done

    def under_way(self) -> list[tuple[Entry, float]]:
        """What is being sent, and since when; also what was given up and has not returned."""
        seats = [(seat.item, seat.began) for seat in list(self._seats)]
        return [(item, began) for item, began in seats if isinstance(item, tuple)]

    def _tell(self, now: float) -> None:
        """Let the queue hear what has come of those that were sent; in whatever thread sends."""
        self._told_at = now
        with suppress(trio.RunFinishedError):  # then nobody wants to know
            self._done.call()

    @abstractmethod
    def give(self, entries: list[Entry]) -> None:
        """Send these, each on its own, in this order."""

    @abstractmethod
    def take_back(self) -> list[Entry]:
        """Those whose sends have not begun: they will not begin."""

    @abstractmethod
    def give_up(self, entry: Entry) -> None:
        """Nobody waits for this send any more: end it, if it can be ended. It still goes to `done`."""

    @abstractmethod
    def resize(self, count: int) -> None:
        """So many at once from now on."""


class OutsideWorkers(Workers):
    """One task that feeds senders, in place of the pool of tasks that send."""

    def __init__(
        self, taking: Taking, delivery: Delivery, timer: TimerKind, count: int, senders: Senders
    ) -> None:
        super().__init__(taking, delivery, timer, count)
        self._senders = senders
        self._done: Hop[Outcome]
        self._out: dict[int, Entry] = {}  # handed over, and nothing is known of it yet
        self._given_up = 0  # sends that have not returned: each keeps its place
        # Sends of late and the seconds that they took, the older ones counting for half each time: one that
        # had to wait for the interpreter, among thousands, changes nothing.
        self._recent = self._recent_seconds = 0.0
        self._settled = 0
        self._is_full = False  # whether the feeder waits until there is room among the senders
        self._hooks = trio.CapacityLimiter(count)
        self._watching = trio.lowlevel.ParkingLot()
        self._watch_is_idle = False

    @property
    def busy(self) -> int:
        """Sends that are under way, and dead-letter hooks."""
        return super().busy + sum(self._is_out(entry) for entry, _ in self._senders.under_way())

    def taken(self) -> Iterator[Entry]:
        """What is handed over, and what is given up on."""
        return chain(super().taken(), self._out.values())

    def pause(self) -> None:
        """Take no message from now on; sends that have begun go on."""
        super().pause()
        self._take_back()

    def resize(self, count: int) -> None:
        """Change how many sends may be under way; none is interrupted."""
        self.count = self._hooks.total_tokens = count
        self._senders.resize(count)
        self._alarm.ring()

    def _hire(self) -> None:
        assert self._nursery is not None  # noqa: S101 (it has just been opened)
        self._nursery.start_soon(self._feed)

    async def _feed(self) -> None:
        read_clock, offset = clock_parts()
        post = trio.lowlevel.current_trio_token().run_sync_soon
        self._done = Hop(post, self._settle)
        self._senders.begin(read_clock, offset, self._done)
        try:
            now = read_clock() + offset
            while True:
                # All that is due now, and not what comes due meanwhile: that would be a few at a time.
                entries = self._fill_up(now)
                wait = self._pending.keeper.begins(entries) if entries else None
                if wait is not None:
                    # With what has ended before, or a crash would repeat more than one message a sender.
                    await wait()
                    if self._taking.bars:
                        self._bring_back(entries)
                        continue
                if entries:
                    self._senders.give(entries)
                    if self._watch_is_idle:
                        self._watching.unpark_all()
                elif self._taking.closing and self._taking.is_done and not self._out and not super().busy:
                    return
                else:
                    if self._alarm.timer.merged:
                        took = read_clock() + offset - now
                        self._alarm.timer.merged = min(max(MERGED, _REST * took), _LONGEST_REST)
                    await self._sleep()
                    now = read_clock() + offset
                    self._settle(self._done.take())
        finally:
            # The senders first: what they have not begun must not begin after it is pending again. Then what
            # has come of others and was not told yet: what was sent must not be brought back, and sent again.
            self._senders.take_back()
            self._settle(self._done.take())
            self._given_up += len(self._out)
            for entry in self._out.values():
                self._senders.give_up(entry)
                self._pending.again(entry)
            self._out.clear()

    async def _sleep(self) -> None:
        """Until the next message is due, or until something changes."""
        self._is_full = self._room() <= 0
        until = math.inf if self._is_full else self._until()  # where it is full, nothing is to wake it
        timer = self._alarm.timer
        merged = timer.merged  # 0 where the timer does not merge, and on clocks that stand still
        self._senders.asleep_until = until - (max(merged, _SOON) if merged else 0.0)
        try:
            # Who has sent something before this has told nothing, for nobody was asleep.
            if self._done and self._is_full:
                await trio.lowlevel.checkpoint()
            else:
                await timer.sleep_until(0.0 if self._done else until)
        finally:
            self._senders.asleep_until = -math.inf
            self._is_full = False
            self._alarm.until = -math.inf

    def _room(self) -> int:
        """How many messages more the senders may have."""
        free = self.count - self._given_up
        if self._pending.keeper.writes:
            return free - len(self._out) - super().busy
        ahead = _AHEAD * self._recent / max(self._recent_seconds, 1e-6)  # for each that is free
        return min(_MOST, free + int(free * ahead)) - len(self._out) - super().busy

    def _fill_up(self, now: float) -> list[Entry]:
        """Take what is due, as much as there is room for among the senders."""
        given: list[Entry] = []
        # In one go, though the order gives it in parts: each giving wakes whoever sends.
        while not self._taking.bars and (room := self._room()) > 0:
            entries = self._taking.some(now, room)
            if not entries:
                self._taking.look(now)  # a limit may have begun, or ended, by being asked for nothing
                break
            if not all_plain(entries):
                for entry, error in self._delivery.doomed(entries, now):
                    entries.remove(entry)
                    self.valve.give_back([entry])
                    self._give_up(entry, error)
            self._out.update(zip(map(_NUMBER, entries), entries, strict=True))
            self._taking.look(now)
            given += entries
        return given

    def _settle(self, outcomes: list[Outcome]) -> None:
        """What has come of these is known."""
        if not outcomes:
            return
        out, count = self._out, len(outcomes)
        if self._given_up or any(outcome[3] is not None for outcome in outcomes):
            sent = self._sent_of(outcomes)
        else:
            sent = outcomes
            for outcome in outcomes:
                del out[outcome[0][1]]
        self._settled += count
        self._recent = self._recent / 2 + count
        took = sum(map(_ENDED, outcomes)) - sum(map(_BEGAN, outcomes))
        self._recent_seconds = self._recent_seconds / 2 + took
        if sent:
            self._delivery.sent(sent)
            if sent[-1][2] >= self.valve.next_mark:
                self.valve.mark(sent[-1][2])
        if self._is_full or self._taking.closing or self._schedule.aside:
            self._alarm.ring()

    def _sent_of(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Those of these messages that were sent; all others are dealt with."""
        out = self._out
        sent: list[Outcome] = []
        for outcome in outcomes:
            entry = outcome[0]
            if out.get(entry[1]) is not entry:
                self._given_up -= 1  # somebody decided about this message before its send returned
                continue
            del out[entry[1]]
            if outcome[3] is None:
                sent.append(outcome)
            else:
                self._fail(outcome)
        return sent

    def _fail(self, outcome: Outcome) -> None:
        error = self._delivery.failed(outcome)
        if error is not None:
            self._give_up(outcome[0], error)

    def _give_up(self, entry: Entry, error: Exception) -> None:
        assert self._nursery is not None  # noqa: S101 (its feeder is at work)
        worker = Worker()
        worker.entries.append(entry)
        self._workers.add(worker)
        self._nursery.start_soon(self._bury, worker, [(entry, error)])

    async def _bury(self, worker: Worker, doomed: list[tuple[Entry, Exception]]) -> None:
        try:
            async with self._hooks:
                await self._delivery.give_up(worker, doomed)
        except BaseException:
            self.stop()  # or the message that is put back would be sent
            raise
        finally:
            self._workers.discard(worker)
            self._put_back(worker)
            self._alarm.ring()

    def _is_out(self, entry: Entry) -> bool:
        return self._out.get(entry[1]) is entry

    def _take_back(self) -> None:
        """Take back what was handed over and has not begun."""
        self._bring_back(self._senders.take_back())
        self._alarm.ring()

    def _bring_back(self, entries: list[Entry]) -> None:
        self.valve.give_back(entries)
        for entry in entries:
            del self._out[entry[1]]
            self._pending.bring_back(entry, entry)

    async def _watch(self) -> None:
        """End the sends that take too long, and let nothing wait behind senders that all hang."""
        settled = 0
        while True:
            if outcomes := self._done.take() if self._out else []:
                self._settle(outcomes)  # senders that have more to do may be long in saying it
            now = trio.current_time()
            soonest, under_way = math.inf, 0
            for entry, began in self._senders.under_way():
                if not self._is_out(entry):
                    continue
                expires = began + self._delivery.send_timeout
                if expires > now:
                    soonest = min(soonest, expires)
                    under_way += 1
                    continue
                self._senders.give_up(entry)
                self._given_up += 1
                del self._out[entry[1]]
                self._fail((entry, began, now, trio.TooSlowError("the send took longer than send_timeout")))
                self._alarm.ring()
            hang = settled == self._settled and under_way + self._given_up >= self.count
            if hang and len(self._out) > under_way:
                self._recent = 0.0
                self._take_back()
            settled = self._settled
            self._watch_is_idle = not self._out
            with trio.move_on_at(min(soonest, now + _STALL) if self._out else math.inf):
                await self._watching.park()
