"""What the demo counts, and how it reckons up a run. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import attrs

from localdelay.demo.timeline import BreakerChange, Bucket


@attrs.frozen
class Progress:
    """How far a run is, for a display."""

    run: str
    """`plain` or `fallback`."""
    total: int
    """Messages that this run publishes in all."""
    published: int
    accepted: int
    refused: int
    degraded: int
    received: int
    finished: bool
    handed_back: int = 0
    breaker: str | None = None
    """`closed`, `open` or `half_open`; None in the plain run, which has none."""


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
    """Messages that were held here: refused, or not even tried because the breaker was open."""
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
class FallbackResult(RunResult):
    """The run with `Fallback`: all but the readings is what it told its listener."""

    handed_back: int
    """Degraded messages that the broker's delayed publish took later, before they were due."""
    breaker_opened: int
    """How often the breaker opened."""
    timeline: Sequence[Bucket]
    breaker: Sequence[BreakerChange]
    """Every change of its state."""


@attrs.frozen
class Report:
    """Both runs."""

    plain: RunResult
    fallback: FallbackResult

    @property
    def throttled(self) -> bool:
        """Whether the broker has refused anything at all."""
        return bool(self.plain.refused or self.fallback.refused)


@attrs.frozen
class Reading:
    """One message as the consumer got it."""

    id: str
    at: float
    """Seconds on Trio's clock."""


def reckon(
    due: Mapping[str, float], readings: Iterable[Reading], *, accepted: int, refused: int, degraded: int
) -> RunResult:
    """Set what was read against what was published: `due` maps each id to its time on Trio's clock."""
    first: dict[str, float] = {}
    duplicates = 0
    for reading in readings:
        if reading.id in first:
            duplicates += 1
        elif reading.id in due:
            first[reading.id] = reading.at
    lateness = sorted(at - due[message_id] for message_id, at in first.items())
    return RunResult(
        published=len(due),
        accepted=accepted,
        refused=refused,
        degraded=degraded,
        received=len(first),
        lost=len(due) - len(first),
        duplicates=duplicates,
        lateness_p50=percentile(lateness, 0.5),
        lateness_p99=percentile(lateness, 0.99),
        lateness_max=percentile(lateness, 1.0),
    )


def percentile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of the values does not exceed; None of no values."""
    return ascending[max(1, math.ceil(share * len(ascending))) - 1] if ascending else None
