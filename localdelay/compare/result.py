"""What a comparison has found. Pure. Times are in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from localdelay.benchmark.process import Machine
from localdelay.lateness import Latencies

from .settings import Plan, Settings


@attrs.frozen(kw_only=True)
class Waiting:
    """What it takes to hold messages that wait."""

    messages: int
    """How many there were."""
    process_bytes: float | None
    """Growth of the process's memory for each, payload included; None where the system does not tell."""
    redis_bytes: float | None
    """Growth of Redis's memory for each; None where there is no Redis."""


@attrs.frozen(kw_only=True)
class Idle:
    """What it costs to wait while nothing comes due. Shares are of one core."""

    sent_per_s: float
    """Commands that the process sent to Redis."""
    inside_per_s: float
    """Commands that Redis has run, those inside of scripts too."""
    cpu: float
    """The process's."""
    redis_cpu: float
    """Redis's."""


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
    sent_per_s: float = 0.0
    """Commands that the process sent to Redis, from when messages come due until the last is put."""
    inside_per_s: float = 0.0
    """Commands that Redis has run meanwhile, those inside of scripts too."""
    calls_per_s: Mapping[str, float] = attrs.field(factory=dict)
    """The same, of each command."""
    cpu: float | None = None
    """The process's share of a core meanwhile, the load's own cost included; None where it was too short."""
    redis_cpu: float = 0.0
    resident_bytes: int | None = None
    """Memory of the process at the end."""


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
class Found:
    """One plan."""

    plan: Plan
    held_rate: float | None
    """The highest rate that was tried and held, messages/s; None: none was."""
    tried: Sequence[tuple[float, bool]]
    """The rates that were tried, in order, and whether each was held."""
    waiting: Waiting
    idle: Idle
    busy: Busy
    crash: Crash
    intervals: Sequence[Latencies] = attrs.field(repr=False)
    """The lateness of the busy load, second by second."""

    def as_json(self) -> dict[str, Any]:
        """One object, without the intervals."""
        shown = attrs.asdict(self, filter=lambda attribute, _: attribute.name != "intervals")
        return {**shown, "plan": self.plan.value}


@attrs.frozen(kw_only=True)
class Rates:
    """Commands a second, by formula or measured."""

    zadd: float
    zrange: float
    setnx: float
    zrem: float


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


def count_crash(stored: Sequence[int], sent: Sequence[int]) -> tuple[int, int]:
    """(lost, twice): messages that were stored and never sent, and sends that were one too many."""
    once = set(sent)
    return len(set(stored) - once), len(sent) - len(once)
