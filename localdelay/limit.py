"""What a limit is; and a token bucket, which calls of the primary and sends of due messages can share.

It fills at `rate` tokens a second up to `burst`, and may owe. Who must go out (due messages) takes tokens
that are not there yet by `owe`, and waits until they are paid; `try_acquire` takes only what is there. So the
first come before what could as well go elsewhere (a call of the primary), and neither needs to know of the
other.
"""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import trio

from . import arguments
from .breaker import Outcome
from .costs import Cost
from .listening import Lines
from .logs import log, told
from .message import Message

_ROUNDING = 1e-9  # what filling by floats may leave out


class Limit(ABC):
    """How many calls are made. In any thread."""

    adapts: ClassVar[bool] = False
    """Whether it learns by what comes of calls: what is refused is then its business, not the breaker's."""

    def __init__(self, cost: Cost | None = None) -> None:
        if cost is not None and not callable(cost):
            raise TypeError(f"cost must be a function, not {type(cost).__name__}")
        self.cost = cost
        """As given. None: each call takes 1, and nobody is to ask for `price`."""
        self.limits = True
        """Whether it limits at all at this moment: while it does not, nobody needs to ask."""
        self.lines = Lines()
        """Of the log, that it begins and ends. Copies of it for keys share them."""
        self._said = False
        self._cost_failed = False
        self._lock = threading.RLock()  # as a gate's
        self.clock: Callable[[], float] = trio.current_time
        """Gives the time, in seconds."""

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Read the time, in seconds, from this instead of Trio's clock, which other threads can't.

        Who shares a limit between queues gives it several clocks, each with a zero of its own: the last one
        counts, and what others say about time is how long ago something was.
        """
        self.clock = clock

    def price(self, message: Message, delayed: bool) -> float:
        """What a call with this message takes of the limit. It never raises."""
        try:
            return 1.0 if self.cost is None else arguments.at_least("cost", self.cost(message, delayed), 0)
        except Exception as error:  # noqa: BLE001 (a stranger's: the message must go out all the same)
            if not self._cost_failed:
                self._cost_failed = True
                line = "cost must return a number: such calls are counted as 1 now (%s)"
                log(logging.WARNING, line, told(error))
            return 1.0

    def to_say(self, rate: float | None, limited_for: float) -> tuple[int, str] | None:
        """The level and the line of the log for who sees that it limits to this rate, or (None) does no more.

        None: it is said. A queue and a fallback may share a limit, and each sees that.
        """
        with self._lock:
            if (rate is not None) is self._said:
                return None
            self._said = rate is not None
            if rate is None:
                return self.lines.end(), f"the limit is off again after {limited_for:.3g} s"
            level, times = self.lines.begin(self.clock())
        line = (
            f"the broker refuses calls: it gets {rate:.3g} a second at first, and the rest waits here{times}"
        )
        return level, line

    @property
    @abstractmethod
    def limit_rate(self) -> float | None:
        """Calls a second that are let through over time, in units of the cost; None while all are."""

    @property
    @abstractmethod
    def wait(self) -> float:
        """Seconds until it is worth asking again, where a call could not be made."""

    @property
    def paid_in(self) -> float:
        """Seconds until what is owed is there, and calls are made at all; 0 where both is so."""
        return self.wait

    @property
    def available(self) -> float:
        """How much may be taken now; less than none while some is owed."""
        return 1.0

    @abstractmethod
    def try_acquire(self, count: float = 1) -> bool:
        """Whether a call that takes so much may be made now; it is then on its way."""

    def try_acquire_spare(self) -> bool:
        """The same for a call that can wait."""
        return self.try_acquire()

    @abstractmethod
    def give_back(self, count: float = 1) -> None:
        """The call was not made after all."""

    @abstractmethod
    def owe(self, count: float) -> float:
        """A call takes so much, whether it is there or not; return how much is left, or less than none."""

    def copy(self) -> Limit:
        """Another one, made as this one was made, for a key of its own."""
        raise TypeError(f"{type(self).__name__} can't be used with keys: it has no copy()")

    def record(  # noqa: B027 (a rate that is known learns nothing)
        self,
        outcome: Outcome,
        age: float,
        retry_after: float | None,
        jitter: float,
        count: float = 1,
        now: float | None = None,
        lately: float = 0.0,
    ) -> None:
        """Take note of what came of a call that was begun so many seconds ago, and takes so much.

        `retry_after` is the wait in seconds that the primary asked for; `jitter` is drawn from 0 to 1;
        `now` spares a look at its clock, where that was just read; `lately` is how much a second was taken
        that this was not told of, as long as it did not limit.
        """

    def slow_down(self, seconds: float) -> None:
        """Whoever takes the calls lets nothing more through for so long, though it has refused none."""
        self.record(Outcome.THROTTLED, 0.0, seconds, 0.0)


class Bucket:
    """Tokens as of an instant: they come at a rate, up to a burst, and may be owed. Pure: time is given."""

    __slots__ = ("_at", "tokens")

    def __init__(self, tokens: float) -> None:
        self.tokens = tokens
        self._at = -math.inf

    def take(self, count: float, now: float, rate: float, burst: float, needs: float) -> bool:
        """Take tokens, if as many as it `needs` are there by now, and say whether they were."""
        if now > self._at > -math.inf:
            self.tokens = min(burst, self.tokens + (now - self._at) * rate)
        self._at = now  # also where another run's clock stands behind
        if self.tokens < needs - _ROUNDING:
            return False
        self.tokens -= count
        return True

    def owe(self, count: float, now: float, rate: float, burst: float) -> float:
        """Take tokens that may not be there yet, or give some back; return how many are left."""
        self.take(0, now, rate, burst, -math.inf)
        self.tokens = min(burst, self.tokens - count)
        return self.tokens


class RateLimit(Limit):
    """At most `rate` calls a second over time, and `burst` at once.

    `burst` is by default what a tenth of a second lets through, and at least 1. `cost(message, delayed)` says
    what a call takes of both, where that is not 1 for all (`localdelay.costs` has some): `delayed` is true of
    the primary's delayed publishes, and false of the sends of due messages. Raises `TypeError` and
    `ValueError` for arguments that are no positive numbers, or no function.
    """

    def __init__(self, rate: float, burst: float | None = None, *, cost: Cost | None = None) -> None:
        self.rate = arguments.number("rate", rate)
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be over 0 and finite, not {rate!r}")
        self.burst = max(1.0, self.rate / 10) if burst is None else arguments.at_least("burst", burst, 1)
        self._bucket = Bucket(self.burst)
        super().__init__(cost)

    def copy(self) -> RateLimit:
        """Another one, made as this one was made."""
        return RateLimit(self.rate, self.burst, cost=self.cost)

    @property
    def limit_rate(self) -> float:
        """The rate."""
        return self.rate

    @property
    def paid_in(self) -> float:
        """Seconds until what is owed is there."""
        left = self.available
        return 0.0 if left > -_ROUNDING else -left / self.rate

    @property
    def available(self) -> float:
        """Tokens that are there at this moment; negative while some are owed."""
        return self.owe(0)

    @property
    def wait(self) -> float:
        """Seconds until a token is there for `try_acquire`, if nobody takes it."""
        return max(0.0, 1.0 - self.available) / self.rate

    def try_acquire(self, count: float = 1) -> bool:
        """Take tokens if they are there now, and say whether they were."""
        # A call that costs more than the burst would else never be made.
        needs = count if self.cost is None else min(count, self.burst)
        with self._lock:
            return self._bucket.take(count, self.clock(), self.rate, self.burst, needs)

    def give_back(self, count: float = 1) -> None:
        """Return tokens that were taken and are not needed."""
        self.owe(-count)

    async def acquire(self, count: float = 1) -> None:
        """Take tokens, and wait until they are there. A call that is cancelled gives them back."""
        left = self.owe(count)
        try:
            await trio.sleep(max(0.0, -left / self.rate))
        except BaseException:
            self.give_back(count)
            raise

    def owe(self, count: float) -> float:
        """Take tokens that may not be there yet, or give some back; return how many are left."""
        with self._lock:
            return self._bucket.owe(count, self.clock(), self.rate, self.burst)
