"""What the arena of `bench.valve` plays: primaries with limits of many kinds, and the traffic before them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TypeAlias

import attrs
import trio

from localdelay import Message, Throttled

Rate: TypeAlias = Callable[[float], float]
"""Calls a second at a time, in seconds from the beginning."""


class Primary:
    """A delayed publish with a limit. `takes` says whether it takes a call now."""

    def __init__(
        self,
        takes: Callable[[float], bool],
        *,
        latency: tuple[float, float] = (0.0, 0.0),
        retry_after: float | None = None,
        lost: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._takes = takes
        self._latency = latency
        self._retry_after = retry_after
        self._lost = lost
        self._random = random.Random(seed)
        self.taken = 0
        self.refused = 0

    async def __call__(self, message: Message, delay: float) -> None:
        """Take it, refuse it, or fail for another reason; the answer takes its time."""
        takes = self._takes(trio.current_time())
        self.taken += takes
        self.refused += not takes
        if self._latency[1] > 0:
            await trio.sleep(self._random.uniform(*self._latency))
        if not takes:
            raise Throttled(retry_after=self._retry_after)
        if self._random.random() < self._lost:
            raise ValueError("an error that has nothing to do with a limit")


class Tokens:
    """A bucket that fills at a rate, which may change, up to a burst."""

    def __init__(self, rate: Rate, burst: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = 0.0

    def __call__(self, now: float) -> bool:
        """Take a token, if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate(now))
        self._at = now
        takes = self._tokens >= 1
        self._tokens -= takes
        return takes


class Windows:
    """A quota for each whole second."""

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._second = -1
        self._left = 0

    def __call__(self, now: float, price: int = 1) -> bool:
        """Take so many of this second's calls, if they are left."""
        if int(now) != self._second:
            self._second, self._left = int(now), self._quota
        takes = self._left >= price
        self._left -= price * takes
        return takes


class Concurrency:
    """So many calls at once, each of which takes so long."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._until: list[float] = []

    def __call__(self, now: float) -> bool:
        """Take a call, if one more may be under way."""
        self._until = [until for until in self._until if until > now]
        takes = len(self._until) < self._most
        if takes:
            self._until.append(now + self._seconds)
        return takes


def steady(rate: float) -> Rate:
    """The same all the time."""
    return lambda now: rate


def stepped(before: float, begin: float, meanwhile: float, end: float) -> Rate:
    """Another one from `begin` to `end`, in seconds."""
    return lambda now: meanwhile if begin <= now < end else before


@attrs.frozen
class Scene:
    """A primary, the traffic before it, and how many instances share that."""

    name: str
    primary: Callable[[float], Primary]
    """Made anew for each run, of so many seconds."""
    offered: Callable[[float], Rate]
    """Publishes a second of all instances together, in a run of so many seconds."""
    instances: int = 1
    waits: bool = False
    """Whether the primary's answers take their time: publishes then overlap."""
    hand_back: bool = False
    peak: float = 1.0
    """The share of the run after which the traffic is under the limit."""
    used: float = 0.95
    """The floor: what the primary takes natively, of what it takes from a caller who always asks."""
    refused: float = 0.03
    """The floor: refused calls for each that was taken."""
    ratio: float = math.inf
    """The floor: what the instance with the most has taken natively, over that of the one with the least."""
    native: float = math.inf
    """The floor: seconds after the peak until the last message was held."""


def _tokens(rate: float = 200.0, burst: float = 20.0, **more: object) -> Callable[[float], Primary]:
    return lambda seconds: Primary(Tokens(steady(rate), burst), **more)  # type: ignore[arg-type]  # Primary's own


def _times(factor: float, rate: float = 200.0) -> Callable[[float], Rate]:
    return lambda seconds: steady(rate * factor)


def _peak(factor: float, after: float, rate: float = 200.0) -> Callable[[float], Rate]:
    """Over the limit for the first half, and under it then."""
    return lambda seconds: stepped(rate * after, 0.0, rate * factor, seconds / 2)


SCENES = (
    Scene("token bucket 200/s, 1.1x", _tokens(), _times(1.1)),
    Scene("2x", _tokens(), _times(2)),
    Scene("5x", _tokens(), _times(5)),
    Scene("a burst of 200, 2x", _tokens(burst=200.0), _times(2)),
    Scene("quota in whole seconds, 2x", lambda seconds: Primary(Windows(200)), _times(2)),
    Scene("whole seconds, 5x", lambda seconds: Primary(Windows(200)), _times(5)),
    Scene(
        "falls to a quarter, comes back",
        lambda seconds: Primary(Tokens(stepped(200.0, seconds / 3, 50.0, 2 * seconds / 3), 20.0)),
        _times(2),
        used=0.92,
    ),
    Scene("answers in 0.1-0.3 s, 2x", _tokens(latency=(0.1, 0.3)), _times(2), waits=True, used=0.92),
    Scene("refusals that say after 1 s", _tokens(retry_after=1.0), _times(2)),
    Scene(
        "whole seconds, after 0.3 s",
        lambda seconds: Primary(Windows(200), retry_after=0.3),
        _times(2),
    ),
    Scene(
        "20 instances, 2x, then 0.5x", _tokens(), _peak(2, 0.5), instances=20, peak=0.5, ratio=2.2, native=5.0
    ),
    Scene(
        "100 instances on 1,000/s",
        _tokens(1000.0, 100.0),
        _peak(2, 0.5, 1000.0),
        instances=100,
        peak=0.5,
        ratio=2.2,
        native=5.0,
    ),
    Scene("limit of 2/s, 3x", _tokens(2.0, 2.0), _times(3, 2.0), refused=0.3),
    Scene(
        "drifts like a day",
        lambda seconds: Primary(Tokens(lambda now: 200 + 100 * math.sin(now / 20), 20.0)),
        _times(2),
    ),
    Scene("20 calls at once, 0.1 s each", lambda seconds: Primary(Concurrency(20, 0.1)), _times(2), used=0.9),
    Scene("one call in 50 fails otherwise", _tokens(lost=0.02), _times(2)),
    Scene("hand-back on, 2x, then 0.5x", _tokens(), _peak(2, 0.5), hand_back=True, peak=0.5),
)
