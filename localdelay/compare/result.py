"""What a comparison has found. Pure. Times are in seconds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs

from localdelay.benchmark.process import Machine
from localdelay.capacity import polling_rates, redis_queue_commands
from localdelay.lateness import Latencies

from .settings import Plan, Settings

_HIDDEN = frozenset({"intervals", "redis"})


@attrs.frozen(kw_only=True)
class Waiting:
    """What it takes to hold messages that wait."""

    messages: int
    """How many there were."""
    process_bytes: float | None
    """Growth of the process's memory for each, payload included; None where few wait, or nobody tells."""
    redis_bytes: float | None
    """Growth of Redis's memory for each; None where there is no Redis."""


@attrs.frozen(kw_only=True)
class Cost:
    """What some seconds have cost. Shares are of one core."""

    sent_per_s: float
    """Commands that the process sent to Redis."""
    inside_per_s: float
    """Commands that Redis has run, those inside of scripts too."""
    calls_per_s: Mapping[str, float]
    """The same, of each command."""
    cpu: float
    """The process's share, the load's own included."""
    redis_cpu: float
    """Redis's."""
    resident_bytes: int | None
    """Memory of the process at their end."""


@attrs.frozen(kw_only=True)
class Busy:
    """A load."""

    offered: int
    """Messages that were to be put."""
    stored: int
    """Those that were put, and, where Redis is to have them, it said that it has."""
    refused: int
    """Those that could not be put."""
    sent: int
    early: int
    """Those that were sent too early. There must be none."""
    p50: float | None
    """Lateness: from when a message was to be put, plus its delay, to when its send began."""
    p99: float | None
    longest: float | None
    held: bool
    """All was put and sent on time."""
    cost: Cost | None
    """From when messages come due until the last is put; None where it did not come to that."""


@attrs.frozen(kw_only=True)
class Crash:
    """What became of the messages of a process that was killed."""

    stored: int
    """Messages that it has said it has."""
    sent_before: int
    """Sends until then."""
    lost: int
    """Those that neither it nor the one after it has sent."""
    twice: int
    """Sends of messages that were sent already."""
    recovered_in: float | None
    """From the kill to when nothing was left; None where there was nothing to recover from."""


@attrs.frozen(kw_only=True)
class Measured:
    """What one process has measured of its plan."""

    redis: str | None
    """The version of the server."""
    held_rate: float | None
    """The highest rate that was tried and held, messages/s; None: none was."""
    tried: Sequence[tuple[float, bool]]
    """The rates that were tried, in order, and whether each was held."""
    waiting: Waiting
    idle: Cost
    """While messages wait and nothing comes due."""
    busy: Busy
    intervals: Sequence[Latencies] = attrs.field(repr=False)
    """The lateness of the busy load, second by second."""


@attrs.frozen(kw_only=True)
class Found:
    """One plan."""

    plan: Plan
    measured: Measured
    crash: Crash

    def as_json(self) -> dict[str, Any]:
        """One object, without the intervals."""
        measured = attrs.asdict(self.measured, filter=lambda attribute, _: attribute.name not in _HIDDEN)
        return {"plan": self.plan.value, **measured, "crash": attrs.asdict(self.crash)}


@attrs.frozen(kw_only=True)
class Formula:
    """What the formulas of `localdelay.capacity` say of one instance, commands/s."""

    zadd: float
    zrange: float
    setnx: float
    zrem: float
    redis_commands: float | None
    """Of `localdelay.redis_plan`, all together; None where delays differ: it is for one delay."""
    redis_commands_idle: float

    @classmethod
    def of(cls, settings: Settings) -> Formula:
        """For this load."""
        zrange, setnx = polling_rates(settings.shards, 1)
        rate, delays = settings.rate, settings.delays
        return cls(
            zadd=rate,
            zrange=zrange,
            setnx=setnx,
            zrem=rate,
            redis_commands=redis_queue_commands(rate, 1) if delays.shortest == delays.longest else None,
            redis_commands_idle=redis_queue_commands(0.0, 1),
        )


@attrs.frozen(kw_only=True)
class Report:
    """All plans."""

    settings: Settings
    machine: Machine
    redis: str | None
    """The version of the server; None where none was needed."""
    seconds: float
    found: Sequence[Found]

    def of(self, plan: Plan) -> Found | None:
        """What was found of this plan."""
        return next((found for found in self.found if found.plan is plan), None)

    def as_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "settings": self.settings.shown(),
            "machine": attrs.asdict(self.machine),
            "redis": self.redis,
            "seconds": self.seconds,
            "plans": [found.as_json() for found in self.found],
            "formula": attrs.asdict(Formula.of(self.settings)),
        }


def count_crash(stored: Collection[int], sent: Sequence[int]) -> tuple[int, int]:
    """(lost, twice): messages that were stored and never sent, and sends that were one too many."""
    once = set(sent)
    return len(set(stored) - once), len(sent) - len(once)
