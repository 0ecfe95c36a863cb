"""What the demo counts: a run as it happens, and at its end what it came to, and what happened when."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import attrs
import trio

from localdelay.listening import Degraded, Event, HandedBack, Reason

COLUMNS = 64
"""A timeline has no more steps than that: it fits beside a label in a line of text."""


@attrs.define
class Run:
    """One run as it happens, and the listener of its `Fallback`."""

    name: str
    """`plain` or `fallback`."""
    start: float = 0.0
    """The first publish, on Trio's clock; the other times are in seconds since then, if nothing is said."""
    due: dict[str, float] = attrs.field(factory=dict)
    """When each published message is due, on Trio's clock."""
    refused: int = 0
    primary: list[float] = attrs.field(factory=list)
    """When the broker confirmed each publish that it took."""
    local: list[float] = attrs.field(factory=list)
    """When each message was degraded."""
    handed_back: list[float] = attrs.field(factory=list)
    found: list[tuple[float, float | None]] = attrs.field(factory=list)
    """The rate that the limit had found, and when it was looked at."""
    first: dict[str, float] = attrs.field(factory=dict)
    """When the consumer got each message for the first time, on Trio's clock."""
    readings: int = 0
    """What it got, in all."""
    duplicates: int = 0
    finished: bool = False

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return trio.current_time() - self.start

    def counts(self) -> tuple[int, ...]:
        """All that moves."""
        return self.refused, self.readings, *map(len, (self.due, self.primary, self.local, self.handed_back))

    def on_event(self, event: Event) -> None:
        """Note what the fallback tells."""
        if isinstance(event, Degraded):
            self.local.append(self.now)
            self.refused += event.reason is Reason.THROTTLED
        elif isinstance(event, HandedBack):
            self.handed_back.append(self.now)

    def read(self, id: str) -> None:
        """Note what the consumer has got."""
        self.readings += 1
        if id in self.first:
            self.duplicates += 1
        elif id in self.due:
            self.first[id] = trio.current_time()


@attrs.frozen
class RunResult:
    """One run. `received`, `lost`, `duplicates` and the lateness are what the consumer has read itself."""

    published: int
    """Messages that the application has published."""
    accepted: int
    """Messages that the broker's delayed publish took when they were published."""
    refused: int
    """Messages that it answered with 429 then."""
    degraded: int
    """Messages that were held here: refused, or not even tried because they were over the limit."""
    received: int
    """Published messages that the consumer has read, each counted once."""
    lost: int
    """Published messages that the consumer has never read."""
    duplicates: int
    """Readings of a message that had been read before."""
    lateness_p50: float | None
    """Seconds from when a message was due to when the consumer had it in hand for the first time."""
    lateness_p99: float | None
    lateness_max: float | None
    """None, as the others are, where nothing was received."""


@attrs.frozen
class Bucket:
    """One step of time, which ends where the next one begins. Rates are in messages a second."""

    at: float
    """Seconds from the first publish to the beginning of the step."""
    primary: float
    """Published, and taken by the broker's delayed publish."""
    local: float
    """Published, and held in memory."""
    handed_back: float
    """Held in memory until now, and taken by the broker's delayed publish."""
    found: float | None
    """What the limit let through at the end of the step; None while it let all through."""


@attrs.frozen
class FallbackResult(RunResult):
    """The run with `Fallback`: all but the readings is what it told its listener."""

    handed_back: int
    """Degraded messages that the broker's delayed publish took later, before they were due."""
    timeline: Sequence[Bucket]


@attrs.frozen
class Report:
    """Both runs."""

    plain: RunResult
    fallback: FallbackResult

    @property
    def throttled(self) -> bool:
        """Whether the broker has refused anything at all."""
        return bool(self.plain.refused or self.fallback.refused)


def reckon(run: Run) -> RunResult:
    """Set what was read against what was published."""
    lateness = sorted(at - run.due[message_id] for message_id, at in run.first.items())
    return RunResult(
        published=len(run.due),
        accepted=len(run.primary),
        refused=run.refused,
        degraded=len(run.local),
        received=len(lateness),
        lost=len(run.due) - len(lateness),
        duplicates=run.duplicates,
        lateness_p50=percentile(lateness, 0.5),
        lateness_p99=percentile(lateness, 0.99),
        lateness_max=percentile(lateness, 1.0),
    )


def reckon_fallback(run: Run) -> FallbackResult:
    """The same, and what became of what was held, and when."""
    story = timeline(run.primary, run.local, run.handed_back, run.found)
    return FallbackResult(**attrs.asdict(reckon(run)), handed_back=len(run.handed_back), timeline=story)


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed; None of no values."""
    return ascending[max(1, math.ceil(share * len(ascending))) - 1] if ascending else None


def timeline(
    primary: Sequence[float],
    local: Sequence[float],
    handed_back: Sequence[float],
    found: Sequence[tuple[float, float | None]],
) -> list[Bucket]:
    """The buckets of what happened at these times, in seconds since the first publish, to the last of them.

    `found` has the rates that were found, each with the time when it was looked at, in the order of time.
    """
    times = [*primary, *local, *handed_back]
    if not times:
        return []
    step = step_for(max(times))
    count = int(max(times) / step) + 1
    rates = [_rates(row, step, count) for row in (primary, local, handed_back)]
    begins = [round(number * step, 1) for number in range(count)]
    return [Bucket(*row) for row in zip(begins, *rates, _last(found, step, count), strict=True)]


def step_for(seconds: float) -> float:
    """The shortest step of 0.1, 0.2, 0.5, 1, 2, 5, 10, ... s that needs no more than `COLUMNS` for this."""
    steps = (digit * int(10**power) / 10 for power in itertools.count() for digit in (1, 2, 5))
    return next(step for step in steps if int(seconds / step) < COLUMNS)


def step_of(buckets: Sequence[Bucket]) -> float:
    """How long each of these buckets is; there is at least one."""
    return buckets[1].at if len(buckets) > 1 else step_for(0.0)


def _rates(times: Sequence[float], step: float, count: int) -> list[float]:
    counts = [0] * count
    for at in times:
        counts[int(at / step)] += 1
    return [number / step for number in counts]


def _last(found: Sequence[tuple[float, float | None]], step: float, count: int) -> list[float | None]:
    """What was seen last by the end of each step."""
    seen = {int(at / step): rate for at, rate in found}
    rates: list[float | None] = []
    for number in range(count):
        rates.append(seen.get(number, rates[-1] if rates else None))
    return rates
