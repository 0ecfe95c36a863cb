"""What stands before the sends of a queue: a limit, a probe, and the pace of what is overdue.

It is asked before messages are taken, and told what came of them. What cannot go yet stays in the schedule,
in due order; so the limit owes the next send its tokens, and nothing else that shares it gets them first.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence

from localdelay.breaker import TAKEN, THROTTLED
from localdelay.entry import Entry, message_of
from localdelay.errors import Throttled, asked_wait
from localdelay.limit import Limit
from localdelay.listening import (
    Event,
    LimitBegan,
    LimitEnded,
    Lines,
    Listener,
    SendingOpened,
    SendingShut,
    tell,
)
from localdelay.logs import log, told
from localdelay.probe import Probe, ProbePolicy
from localdelay.statistics import KeySends

from .failures import is_down

_LATELY_LEAST = 10.0
"""A second: so much is taken to be possible where little was sent, and the first that is has been refused."""
TRIED = 1.0  # due sends a second that are made whatever rate a limit that adapts has found
_MARK_EVERY = 0.1
_MARKS = 11  # so many counts are kept of what was sent: a second's


class Pace:
    """At which what is overdue goes: one for a queue, whatever it is that has held it up."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        """Messages a second; None: all at once."""
        self._next_place = -math.inf

    def place(self, now: float) -> float:
        """When the next message that is overdue may go, of so many a second."""
        assert self.rate is not None  # noqa: S101 (else none is held back)
        place = max(now, self._next_place)
        self._next_place = place + 1 / self.rate
        return place

    @property
    def last_place(self) -> float:
        """When the last of what was overdue, and has a place, goes."""
        return self._next_place - 1 / self.rate if self.rate else -math.inf


class Valve:
    """Of one queue, or of one key. What it says it says in the thread of the queue's loop."""

    def __init__(
        self,
        limit: Limit | None,
        policy: ProbePolicy | None,
        pace: Pace,
        listener: Listener | None,
        count: Callable[[], int],
        on_change: Callable[[], None],
    ) -> None:
        """`count` says how many were sent; `on_change` is called when something else may go than before."""
        self.limit = limit
        self.probe = Probe(policy)
        self.listener = listener
        self.pace = pace
        self.backlog = -math.inf
        """What is due before this is overdue, and goes at the pace."""
        self.holds = False
        """Whether not all that is due may be taken, whatever the limit says."""
        self._owed = 0.0
        self._went = -math.inf  # when one was tried
        self.waits_until = -math.inf
        """When what the next send takes of the limit is there."""
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)
        self.next_mark = -math.inf
        """When to `mark` again."""
        self._limits = False  # as it was said last
        self._limits_since = -math.inf
        self.shut_lines = Lines()
        self._key: Hashable = None
        self._whose = ""
        self._count_sent = count
        self._next_hand_back = -math.inf
        self._on_change = on_change

    def key_of(self, entry: Entry) -> Hashable:
        """The key of this message."""
        return None

    def of(self, entries: Sequence[Entry]) -> Valve:
        """The one that these go through together, which is used now: this one, where there are no keys."""
        return self

    def known(self, entry: Entry) -> Valve | None:
        """The same for one message without using it, if there is one."""
        return self

    def price(self, entries: Sequence[Entry], *, delayed: bool = False) -> float:
        """What a call with each of these takes of the limit."""
        limit = self.limit
        if limit is None or limit.cost is None:
            return len(entries)
        return sum(limit.price(message_of(entry), delayed) for entry in entries)

    def lets_go(self, entries: Sequence[Entry], now: float) -> bool:
        """Whether the limit lets these go now; else it owes them what they take, until `waits_until`."""
        limit = self.limit
        if limit is None or not limit.limits:
            return True
        price = self.price(entries)
        if not self._owed and (not price or limit.try_acquire(price)):
            return True
        limit.owe(price - self._owed)
        self._owed = price
        wait = limit.paid_in if price else 0.0
        if wait and not self._is_tried(limit, wait, now):
            self.waits_until = now + wait
            return False
        self._owed, self.waits_until = 0.0, -math.inf
        return True

    def look(self, now: float) -> None:
        """Say what of the limit has begun or ended by asking it.

        Not where it is asked, between a look at the order and the taking, nor before what is taken is
        somebody's: a listener that hears of it may cancel what is about to be taken, and would be told that
        it never goes, and it may look at all that is pending.
        """
        if self.limit is not None:
            self._look_at_limit(self.limit, now)

    def _is_tried(self, limit: Limit, wait: float, now: float) -> bool:
        """Whether one send a second is tried, since the limit has found that next to nothing is taken."""
        is_low = limit.adapts and (limit.limit_rate or TRIED) < TRIED
        if is_low and wait < 1.0 and now >= self._went + 1 / TRIED:
            self._went = now
            limit.give_back(self._owed)
            return True
        return False

    def give_back(self, entries: Sequence[Entry]) -> None:
        """These were let go, and are not sent."""
        if self.limit is not None and self.limit.limits:
            self.limit.give_back(self.price(entries))
            if self._owed:  # what the next one waits for may be there now
                self.waits_until = -math.inf
                self._on_change()

    def next_hand_back(self, entry: Entry, now: float) -> float:
        """When this may be handed back: now, and then it is on its way, or at its place behind others."""
        limit = self.limit
        if limit is None or limit.try_acquire():
            if limit is not None and limit.cost is not None:
                limit.owe(limit.price(message_of(entry), True) - 1)
            return now
        place = max(now + limit.wait, self._next_hand_back)
        self._next_hand_back = place + 1 / (limit.limit_rate or 1.0)
        return place

    def wants_nothing(self) -> None:
        """Nothing is to be sent after all: others may have what was owed."""
        if self._owed and self.limit is not None:
            self.limit.give_back(self._owed)
        self._owed, self.waits_until = 0.0, -math.inf

    @property
    def limits(self) -> bool:
        """Whether its limit is asked for what goes now."""
        return self.limit is not None and self.limit.limits

    @property
    def limit_rate(self) -> float | None:
        """Messages a second that the limit lets go; None while it lets all go, or there is none."""
        return None if self.limit is None else self.limit.limit_rate

    def keys(self, now: float) -> Mapping[Hashable, KeySends]:
        """How the sends of each key go, where there are keys."""
        return {}

    def catch_up(self, now: float) -> None:
        """What is overdue now goes at the pace, if there is one."""
        if self.pace.rate is not None:
            self.backlog, self.holds = now, True

    def caught_up(self) -> None:
        """All that was overdue has a time of its own."""
        self.backlog, self.holds = -math.inf, self.probe.is_shut

    def mark(self, now: float) -> None:
        """Note how many have been sent by now: a limit that begins has to know how many are, lately."""
        self._marks.append((now, self._count_sent()))
        self.next_mark = now + _MARK_EVERY
        if self._limits and self.limit is not None:
            self._look_at_limit(self.limit, now)  # a fallback that shares it may have seen its end

    def sent(self, now: float, entries: Sequence[Entry], age: float) -> None:
        """These were sent. To be told after failures, and while the limit limits."""
        if self.limit is not None and self.limit.limits:
            self.record(now, entries, age, None)
        shut_since = self.probe.since
        if self.probe.sent():
            shut_for = max(0.0, now - shut_since)
            line = f"a message{self._whose} was sent again after {shut_for:.3g} s: all that is due goes out"
            self.caught_up()
            self.catch_up(now)
            self._say(self.shut_lines.end(), line, SendingOpened(shut_for, self._key))

    def failed(self, now: float, entries: Sequence[Entry], error: Exception, age: float) -> None:
        """A send of these has failed, and none of them was sent."""
        numbers = [number for _, number, _ in entries]
        if not is_down(error):
            self.record(now, entries, age, error)
            if isinstance(error, Throttled):
                self.probe.throttled(now, numbers, random.random())
                self._on_change()
            return
        if self.probe.failed(now, numbers, random.random()):
            self.holds = True
            level, count = self.shut_lines.begin(now)
            line = (
                f"sends of different messages{self._whose} fail one after the other, and the broker seems to "
                "be down: one message at a time is tried, and the rest waits until one is sent"
                f"{count}; {told(error)}"
            )
            self._say(level, line, SendingShut(error, self._key))
        elif self.probe.is_shut:
            self._on_change()

    def given_up(self, entries: Sequence[Entry]) -> None:
        """These are not sent any more: if one of them was the probe, another is."""
        # Before their hooks: where what has expired comes first, each would else wait for the one before it.
        if self.probe.is_shut and any(number == self.probe.out for _, number, _ in entries):
            self.probe.out = None
            self._on_change()

    def record(
        self,
        now: float,
        entries: Sequence[Entry],
        age: float,
        error: Exception | None,
        *,
        delayed: bool = False,
    ) -> None:
        """Tell the limit what a call with these came to that has taken so many seconds."""
        limit = self.limit
        if limit is None or not limit.adapts or not (error is None or isinstance(error, Throttled)):
            return
        price = self.price(entries, delayed=delayed)
        if error is None:
            limit.record(TAKEN, age, None, 0.0, price)
        else:
            lately = 0.0 if limit.limits else self._lately(now) * price / len(entries)
            limit.record(THROTTLED, age, asked_wait(error), random.random(), price, lately=lately)
        self._look_at_limit(limit, now)

    def _lately(self, now: float) -> float:
        """How many were sent a second, over the last second or since the last one before that."""
        sent = self._count_sent()
        at, count = next((mark for mark in self._marks if mark[0] > now - 1.5), (now - 1.0, sent))
        return max(_LATELY_LEAST, (sent - count) / max(_MARK_EVERY, now - at))

    def _look_at_limit(self, limit: Limit, now: float) -> None:
        """Say when it has begun to limit, or does so no more."""
        rate = limit.limit_rate
        if not limit.adapts or (rate is not None) is self._limits:
            return
        self._limits = rate is not None
        limited_for = max(0.0, now - self._limits_since)
        self._limits_since = now
        if (said := limit.to_say(rate, limited_for)) is not None:
            log(said[0], "%s", said[1])
        if rate is None:
            self._owed, self.waits_until = 0.0, -math.inf
        tell(self.listener, LimitEnded(limited_for) if rate is None else LimitBegan(rate))
        self._on_change()

    def _say(self, level: int, line: str, event: Event) -> None:
        log(level, "%s", line)
        tell(self.listener, event)
        self._on_change()
