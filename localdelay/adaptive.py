"""A limit whose rate is found: what the primary takes, and hardly a call more.

*Off* until the first call is refused. Then it begins with what was taken lately, and doubles every quarter
of a second until one is refused again (TCP's slow start, RFC 5681): the ceiling, measured as what was taken.
From there on it keeps a hundredth under the last ceiling, comes up to it in less than a second, stays there
for as long, and looks for more ever faster (CUBIC, RFC 9438, about a ceiling that is measured and not the
rate that failed; its cut is a hundredth where TCP's is a third, for nothing queues up in between that would
have to drain). At least it gains the same each second, whatever it is (as RFC 9438 has it in its section
4.3): so many instances that share a limit come to have as much of it each, since who makes more calls is
refused more often. It rises only while it is what limits, and goes off when the traffic stays under it.

What is refused for another reason than the rate of now says nothing about it: calls that were begun before
the last cut, or so shortly after it that a quota's second is not over. Where nothing is taken any more it
waits between single tries: ever longer, up to a second, or as long as the primary has asked for once a few
have shown that it means it. After a time in which nothing was taken it begins again with what was taken
before, by slow start.
"""

from __future__ import annotations

import math

from . import arguments
from .breaker import TAKEN, THROTTLED, Outcome
from .costs import Cost
from .limit import Bucket, Limit

_CUT = 0.99
"""So much of a ceiling is the rate after it was found."""
_CURVE = 0.02
"""The share of the ceiling by which the rate rises in the first second past it."""
_PLATEAU = ((1 - _CUT) / _CURVE) ** (1 / 3)
"""Seconds from a cut until the rate is back at the ceiling."""
_SEARCH = _PLATEAU + 2.0
"""Seconds from a cut until the ceiling is taken to be gone, and the rate doubles each second: a quota of
whole seconds says only at a second's end that the rate has passed it."""
_GAIN = 0.35
"""Calls a second by which the rate rises at least in each second past a cut ..."""
_SETBACK = 1.4
"""... from so many under the ceiling, or a tenth of it: at a few calls a second the curve gains less."""
_SLOW_START = 0.25
"""Seconds in which the rate doubles as long as no ceiling is known."""
_STRETCH = 60.0
"""Calls a second under which all this takes longer, by the square root: fewer calls find out less ..."""
_STRETCH_MAX = 5.0
"""... but no longer than so many times."""
_ENOUGH = 20
"""Taken calls that a ceiling is measured by, at least, and over a second at least."""
_MANY = 200.0
"""Calls a second over which fractions of a second are enough to measure by."""
_DEAF = 0.4
"""Seconds after a cut in which a call that is begun and refused says nothing new."""
_IN_A_ROW = 4
"""So many refusals in a row, and none taken, mean that nothing is taken for now."""
_RETRY = 0.05
"""Seconds until the next try then; twice as long after each that fails ..."""
_RETRY_MAX = 1.0
"""... up to this."""
_BELIEVED = 2
"""So many of these tries fail before the wait that the primary asks for is obeyed: some say the same to
everybody, and take others meanwhile."""
_ANEW = 2.0
"""Seconds in which nothing was taken, after which it begins by slow start again."""
_OFF = 0.85
"""It goes off when calls were asked for at less than this share of the rate ..."""
_OFF_AFTER = 2.0
"""... for so many seconds."""
_BURST = 0.02
"""Seconds' worth of calls that may be made at once; two calls at least."""
_WAIT_LEAST = 0.001
"""Seconds: who waits for a call is not to ask over and over in one instant."""
_ASK_AGAIN = 0.1
"""Seconds: who waits is to ask again after so many at most, for the rate may rise meanwhile."""
_LEAST = 0.1
"""Calls a second: it never finds less, or it would not find out that there is more."""


class Lately:
    """How often something has happened lately, in tenths of a second. Pure: time is given."""

    __slots__ = ("_at", "_counts")

    _KEPT = 160

    def __init__(self) -> None:
        self._counts = [0.0] * self._KEPT
        self._at = 0

    def add(self, now: float, count: float = 1) -> None:
        """It happens now, so many times."""
        at = int(now * 10)
        if at != self._at:
            self._move(at)
        self._counts[at % self._KEPT] += count

    def rate(self, now: float, seconds: float) -> float:
        """How often a second, over the last so many (15 at most) and the tenth that has begun."""
        at = int(now * 10)
        self._move(at)
        tenths = round(seconds * 10)
        count = sum(self._counts[(at - back) % self._KEPT] for back in range(tenths + 1))
        return count / (tenths / 10 + now - at / 10)

    def _move(self, at: int) -> None:
        for passed in range(max(self._at, at - self._KEPT) + 1, at + 1):
            self._counts[passed % self._KEPT] = 0.0
        self._at = at


class Finder:
    """Finds the rate. Every method takes the time in seconds; none of them waits or calls out.

    `count` is what a call takes of the quota: rates are in units of that. `retry_after` is obeyed for
    `retry_after_max` seconds at most.
    """

    def __init__(self, retry_after_max: float = 30.0) -> None:
        self._retry_after_max = retry_after_max
        self.rate: float | None = None
        """Calls a second that may be made; None: all."""
        self._asked = Lately()
        self._taken = Lately()
        self._began = -math.inf  # when it began to limit
        self._first: float | None = None  # when it was asked or told for the first time
        self._ceiling = 0.0
        self._cut = -math.inf  # when the ceiling was found
        self._paused = 0.0  # seconds since then in which it did not limit
        self._stepped = 0.0  # when the rate has risen last
        self._limited = -math.inf  # when it has held a call back
        self._waited = -math.inf  # when somebody has waited for what was owed
        self._is_slow_start = False
        self._stretch = 1.0
        self._refused = 0  # in a row, each begun when the one before was known
        self._before = 0.0  # what was taken a second before the first of these
        self._told = -math.inf  # when the last of these was known
        self._took = 0.0  # when a call was taken last
        self._shut = -math.inf  # until when no call is tried

    def ask(self, now: float, count: float = 1) -> float | None:
        """Somebody wants to make a call: the rate that holds for it; None: it may be made."""
        if self._first is None:
            self._first = now
        if self.rate is not None:
            self._rise(now)  # before this one is counted: after a rest it is alone
        self._asked.add(now, count)
        return self.rate

    def wait(self, now: float) -> None:
        """Somebody waits for what is owed."""
        self._waited = now

    def shut(self, now: float, seconds: float) -> None:
        """No call is to be made for so long."""
        self._shut = max(self._shut, now + min(self._retry_after_max, seconds))

    def shut_for(self, now: float) -> float:
        """Seconds in which no call at all is to be made, since none is taken; 0 or less: it is not shut."""
        return self._shut - now

    def hold_back(self, now: float) -> None:
        """The call was not made: the limit is what limits."""
        self._limited = now

    def taken(self, now: float, count: float = 1) -> None:
        """A call was taken."""
        if self._first is None:
            self._first = now
        if self.rate is not None and self._refused >= _IN_A_ROW and now - self._took > _ANEW:
            # The last ceiling was that nothing is taken. The one before may have gone too: it is tried once,
            # for what is taken then is what was taken before when that is refused.
            self._is_slow_start = True
            self._set(now, max(self.rate, self._before), 1.0)
        self._refused = 0
        self._took = now
        self._taken.add(now, count)

    def refused(
        self, now: float, begun: float, retry_after: float | None, jitter: float, lately: float = 0.0
    ) -> None:
        """A call that was begun at `begun` was refused; `lately` is as for `Limit.record`."""
        # Of calls that were begun together, refusals may be heard first, and what was taken only then.
        is_next = begun >= self._told
        if is_next:
            self._refused += 1
            self._told = now
            if self._refused == 1 and self.rate is not None:
                self._before = self._measured(now, 1.0)
        if self.rate is None:
            self._begin(now, lately)
            return
        if is_next and self._refused >= _IN_A_ROW:
            # Only now: a primary that still takes most calls is not shut for what it says to some.
            grown = min(_RETRY_MAX, _RETRY * 2.0 ** min(self._refused - _IN_A_ROW, 9))
            is_believed = self._refused >= _IN_A_ROW + _BELIEVED
            self.shut(now, (is_believed and retry_after) or grown * (1 + jitter) / 2)
        # A time in which nothing was taken measures no ceiling: a quota may be used up for this second.
        if begun >= self._cut + _DEAF and (self._refused < _IN_A_ROW or now - self._took > _ANEW):
            self._find_ceiling(now, self.rate)

    def _begin(self, now: float, lately: float) -> None:
        self._began = now
        self._is_slow_start = True
        self._before = max(lately, self._lately(now))
        self._set(now, self._before, 1.0)

    def _lately(self, now: float) -> float:
        """What was taken a second, or half of what was asked for: answers may be still to come."""
        asked = self._measured(now, 1.0, self._asked) / 2
        return max(self._measured(now, 1.0), asked if asked > _MANY else 0.0)

    def _find_ceiling(self, now: float, rate: float) -> None:
        if self._is_slow_start:
            over = 0.2 if rate > _MANY else max(0.5, min(_STRETCH_MAX, _STRETCH_MAX / rate))
            taken = self._measured(now, over)
        else:
            over = min(10.0, max(1.0, _ENOUGH / rate))
            since = now - self._cut
            taken = self._measured(now, over)
            if over < since < _SEARCH * self._stretch and not self._paused:
                # From one refusal to the next: a second alone may have none of the time in which a quota of
                # whole seconds is used up, and so more than a second's calls.
                taken = min(taken, self._measured(now, since))
            if taken > 0:
                taken += 0.5 / over  # nobody knows how soon the next call would have been taken
        self._is_slow_start = taken <= 0  # what takes nothing at all measures no ceiling either
        self._set(now, min(rate, taken), _CUT)

    def _measured(self, now: float, seconds: float, what: Lately | None = None) -> float:
        """What was taken a second, over so long, or since anybody has asked."""
        since = 0.0 if self._first is None else now - self._first
        return (what or self._taken).rate(now, min(seconds, max(0.1, since)))

    def _set(self, now: float, ceiling: float, share: float) -> None:
        self._ceiling = ceiling
        self.rate = max(_LEAST, ceiling * share)
        self._stretch = min(_STRETCH_MAX, max(1.0, math.sqrt(_STRETCH / self.rate)))
        self._cut = self._stepped = self._limited = now
        self._paused = 0.0

    def _rise(self, now: float) -> None:
        assert self.rate is not None  # noqa: S101 (else there is nothing that could rise)
        step, self._stepped = now - self._stepped, now
        open_for = now - self._shut  # nobody asks while it is shut: that is no rest
        since = min(now - self._began, now - self._waited, open_for + _OFF_AFTER)
        if since > _OFF_AFTER and self._asked.rate(now, _OFF_AFTER) <= _OFF * self.rate:
            self.rate = None
            self._refused = 0
        elif now - self._limited > max(0.2, 3 / self.rate):
            self._paused += step  # others are slower: a rate that rose meanwhile would be nobody's finding
        elif self._is_slow_start:
            self.rate *= 2.0 ** min(1.0, step / _SLOW_START)  # not more for one call, however late it comes
            if now - self._began < _SLOW_START:
                self.rate = max(self.rate, self._lately(now))
        else:
            since = (now - self._cut - self._paused) / self._stretch
            if since > _SEARCH:
                self.rate *= 2.0 ** min(1.0, step / self._stretch)
            else:
                gained = self._ceiling - min(_SETBACK, self._ceiling / 10) + _GAIN * since * self._stretch
                curve = self._ceiling * (1 + _CURVE * (since - _PLATEAU) ** 3)
                self.rate = max(self.rate, curve, gained)


class AdaptiveLimit(Limit):
    """As many calls of the primary as it takes: a rate that is found by what comes of them. In any thread.

    It is off, and lets everything through, until a call is refused. `cost(message, delayed)` says what a call
    takes of it, as for `RateLimit`. A `retry_after` is obeyed for `retry_after_max` seconds at most. Raises
    `TypeError` and `ValueError` for an argument that is wrong.
    """

    adapts = True

    def __init__(self, *, cost: Cost | None = None, retry_after_max: float = 30.0) -> None:
        super().__init__(cost)
        self._retry_after_max = arguments.at_least("retry_after_max", retry_after_max, 0)
        self._finder = Finder(self._retry_after_max)
        self._bucket = Bucket(0.0)
        self._at = -math.inf  # when it was asked or told last
        self.limits = False

    def copy(self) -> AdaptiveLimit:
        """Another one, made as this one was made: it has found nothing yet."""
        return AdaptiveLimit(cost=self.cost, retry_after_max=self._retry_after_max)

    @property
    def limit_rate(self) -> float | None:
        """Calls a second that were found, in units of the cost; None while it is off."""
        return self._finder.rate

    @property
    def wait(self) -> float:
        """Seconds until it is worth asking again, where a call could not be made."""
        with self._lock:
            rate, shut_for = self._finder.rate, self._finder.shut_for(self._now())
            if rate is None:
                return 0.0
            return max(_WAIT_LEAST, shut_for, min(_ASK_AGAIN, (1.0 - self._bucket.tokens) / rate))

    @property
    def available(self) -> float:
        """How much may be taken now; less than none while some is owed."""
        with self._lock:
            now, rate = self._now(), self._finder.rate
            return math.inf if rate is None else self._bucket.owe(0, now, rate, max(2.0, rate * _BURST))

    @property
    def paid_in(self) -> float:
        """Seconds until what is owed is there, and calls are made at all."""
        with self._lock:
            now, rate = self._now(), self._finder.rate
            if rate is None:
                return 0.0
            left = self._bucket.owe(0, now, rate, max(2.0, rate * _BURST))
            self._finder.wait(now)
            owed = 0.0 if left > -1e-9 else min(_ASK_AGAIN, max(_WAIT_LEAST, -left / rate))
            return max(owed, self._finder.shut_for(now))

    def try_acquire(self, count: float = 1) -> bool:
        """Whether a call may be made now; it is then on its way."""
        if not self.limits:  # nobody needs to wait for the lock or to look at the clock
            return True
        with self._lock:
            now = self._now()
            rate = self._finder.ask(now, count)
            if rate is None:
                self.limits = False
                return True
            is_open = self._finder.shut_for(now) <= 0
            burst = max(2.0, rate * _BURST)
            # A call that costs more than the burst would else never be made.
            if self._bucket.take(count if is_open else 0, now, rate, burst, min(count, burst)) and is_open:
                return True
            if is_open:  # or it is not the rate that limits
                self._finder.hold_back(now)
            return False

    def try_acquire_spare(self) -> bool:
        """The same for a call that can wait: not while others take all that the rate gives."""
        with self._lock:
            now, rate = self._now(), self._finder.rate
            if rate is not None and rate > _MANY:  # of a few a second a full burst would take too long
                burst = rate * _BURST
                self._bucket.take(0, now, rate, burst, -math.inf)
                if self._bucket.tokens < burst - 1:
                    self._finder.ask(now, 0)
                    self._finder.hold_back(now)
                    return False
        return self.try_acquire()

    def give_back(self, count: float = 1) -> None:
        """The call was not made after all."""
        with self._lock:
            self._bucket.tokens += count

    def owe(self, count: float) -> float:
        """A call takes so much, whether it is there or not."""
        with self._lock:
            self.limits = self._finder.ask(self._now(), count) is not None
            self._bucket.tokens -= count
            return self._bucket.tokens

    def record(
        self,
        outcome: Outcome,
        age: float,
        retry_after: float | None,
        jitter: float,
        count: float = 1,
        now: float | None = None,
        lately: float = 0.0,
    ) -> None:
        """Take note of what came of a call."""
        with self._lock:
            if now is None or now < self._at:
                now = self._now()
            if outcome is TAKEN:
                self._finder.taken(now, count)
            elif outcome is THROTTLED:
                if self._finder.rate is None:
                    self._bucket = Bucket(0.0)  # nothing is saved up for the first moment
                self._finder.refused(now, now - age, retry_after, jitter, lately)
                self.limits = True

    def slow_down(self, seconds: float) -> None:
        """Whoever takes the calls lets nothing more through for so long, though it has refused none."""
        super().slow_down(seconds)
        with self._lock:
            self._finder.shut(self._now(), seconds)

    def _now(self) -> float:
        now = self.clock()
        if now < self._at:
            if now > self._at - 1:  # some clocks step back a little now and then
                return self._at
            # Another run's clock: what was found is not of its time.
            self._finder, self._bucket = Finder(self._retry_after_max), Bucket(0.0)
            self.limits = False
        self._at = now
        return now
