"""What a comparison of the plans is asked for, and what it has found. Pure. Times are in seconds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import attrs

from localdelay.benchmark.load import Delays
from localdelay.benchmark.process import Machine
from localdelay.benchmark.result import Settings, within
from localdelay.brokers.address import without_secrets
from localdelay.capacity import polling_rates, redis_queue_commands
from localdelay.lateness import Latencies

CARRIED_P99 = 0.3
"""Seconds. A plan carries a rate if its p99 stays under this, and all is put and sent, and nothing early.

It is not "held", which is 10 ms: sorted sets that are polled every 200 ms would hold no rate at all.
"""
_LONGEST = 600.0
_POLLED_BY = 0.25
"""Seconds: a poll, and a little."""
_HIDDEN = frozenset({"intervals", "redis"})
_CRASH_SECONDS = 2.0


class Plan(StrEnum):
    """What is compared, in the order in which it is shown."""

    REDIS_LITERAL = "redis-literal"
    """Sorted sets in Redis, each polled every 200 ms behind a lock."""
    REDIS = "redis"
    """`localdelay.redis_plan`."""
    MEMORY_LITERAL = "memory-literal"
    """A channel in memory, and workers that each sleep on a message."""
    MEMORY = "memory"
    """`open_delay_queue`."""

    @property
    def in_redis(self) -> bool:
        """Whether its messages wait in Redis."""
        return self in (Plan.REDIS_LITERAL, Plan.REDIS)


def _each_once(names: Collection[str]) -> tuple[Plan, ...]:
    """These plans in the usual order, or all of them."""
    return tuple(plan for plan in Plan if not names or plan in names)


@attrs.frozen(kw_only=True)
class Comparison:
    """What is to be compared. A number that is out of its range is a `ValueError` that names it."""

    rate: float = attrs.field(default=1000.0, validator=within(1, 1_000_000))
    """Messages/s that are put."""
    delays: Delays = attrs.field(default=Delays((2.0,)))
    size: int = 500
    """Bytes of each payload."""
    seconds: float = attrs.field(default=2.0, validator=within(0.1, _LONGEST))
    """How long is measured, once messages come due."""
    shards: int = attrs.field(default=64, validator=within(1, 16_384))
    """Sorted sets, of both Redis plans."""
    workers: int = 20
    redis: str | None = attrs.field(default=None, repr=False)
    """The URL of a server; None: one of its own."""
    only: tuple[Plan, ...] = attrs.field(default=(), converter=_each_once)
    """All, where none is named."""
    seed: int = 1
    quick: bool = False
    """Shorter, and without the search for the highest rate."""

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be run."""
        if self.load().delays.longest > _LONGEST:  # a load checks the rest
            raise ValueError(f"delay must be at most {_LONGEST:,.0f}, not {self.delays.longest:,.10g}")
        if self.redis is not None:
            _check_redis(self.redis)

    @property
    def before(self) -> float:
        """Seconds from the first put until as much is sent as is put, by a plan that polls, too."""
        return self.delays.longest + _POLLED_BY

    def load(self, seconds: float | None = None) -> Settings:
        """The load, of which so many seconds are measured: puts begin `before` anything is counted."""
        return Settings(
            rate=(self.rate, self.rate),
            seconds=self.before + (self.seconds if seconds is None else seconds),
            delays=self.delays,
            size=self.size,
            workers=self.workers,
            warmup=0.0,
            seed=self.seed,
        )

    @property
    def needs_redis(self) -> bool:
        """Whether there is a plan that needs one."""
        return any(plan.in_redis for plan in self.only)

    def as_json(self) -> dict[str, Any]:
        """One object, without passwords."""
        redis = self.redis and without_secrets(self.redis)
        return attrs.asdict(self) | self.delays.as_json() | {"redis": redis}


@attrs.frozen
class Job:
    """What the process of one plan is told to do."""

    plan: Plan
    asked: Comparison
    server: str = attrs.field(repr=False)
    """Redis's URL; empty where there is none."""
    token: str
    """Is in the names of all keys."""
    what: str = "measure"
    """Or `be killed`, or `recover`."""

    @property
    def seconds(self) -> float:
        """How long the load to be killed is to be, after the first message is due."""
        return min(self.asked.seconds, _CRASH_SECONDS)


def queue_url(server: str, name: str) -> str:
    """The URL of a queue of this name on a server, as `open_redis_delay_queue` takes it."""
    parts = urlsplit(server)
    db = parts.path.strip("/")
    return f"{parts.scheme}://{parts.netloc}/{name}" + (f"?db={db}" if db else "")


def _check_redis(server: str) -> None:
    parts = urlsplit(server)
    form = "like redis://host:6379 or redis://host:6379/1"
    if parts.scheme not in ("redis", "rediss") or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"redis must be a server, {form}")
    path = parts.path.strip("/")
    if path and not (path.isascii() and path.isdigit()):
        raise ValueError(f"redis must have nothing after the host but the number of a database, {form}")


@attrs.frozen(kw_only=True)
class Waiting:
    """What it takes to hold messages that wait: growth of memory, in bytes for each of them."""

    messages: int
    process_bytes: float | None
    """Payload included; None where few wait, or nobody tells."""
    redis_bytes: float | None
    """None where there is no Redis."""


@attrs.frozen(kw_only=True)
class Cost:
    """What some seconds have cost. Shares are of one core."""

    sent_per_s: float
    """Commands that the process sent to Redis."""
    sent_per_message: float | None
    """Commands that the process sent, for each message sent meanwhile; None where none was."""
    cpu: float
    """The process's share, the load's own included."""
    redis_cpu: float


@attrs.frozen(kw_only=True)
class Busy:
    """A load, and what became of its messages."""

    offered: int
    """Those that were to be put."""
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
    carried: bool
    """Whether all was put and sent, with a p99 under `CARRIED_P99`."""
    cost: Cost | None
    """From when messages come due until the last is put; None where it did not come to that."""


@attrs.frozen(kw_only=True)
class Crash:
    """What became of the messages of a process that was killed."""

    stored: int = 0
    """Messages that it has said it has."""
    sent_before: int = 0
    """Sends until then."""
    lost: int = 0
    """Those that neither it nor the one after it has sent."""
    twice: int = 0
    """Sends of messages that were sent already."""
    recovered_in: float | None = None
    """From the kill to when nothing was left; None where there was nothing to recover from."""


def reckon_crash(
    stored: Collection[int], before: Sequence[int], after: Sequence[int], recovered_in: float | None
) -> Crash:
    """Set the messages that were stored against those that were sent before the kill and after it."""
    # A send may be told before its put is: nobody else hears of either meanwhile.
    there, sent = {*stored, *before}, [*before, *after]
    once = set(sent)
    return Crash(
        stored=len(there),
        sent_before=len(before),
        lost=len(there - once),
        twice=len(sent) - len(once),
        recovered_in=recovered_in,
    )


@attrs.frozen(kw_only=True)
class Found:
    """What was found of one plan."""

    plan: Plan
    redis: str | None
    """The version of the server."""
    carried_rate: float | None
    """The highest rate that was tried and carried, messages/s; None: none was."""
    tried: Sequence[tuple[float, bool]]
    """The rates that were tried, in order, and whether each was carried."""
    waiting: Waiting
    idle: Cost
    """While messages wait and nothing comes due."""
    busy: Busy
    intervals: Sequence[Latencies] = attrs.field(repr=False)
    """The lateness of the busy load, second by second."""
    crash: Crash = Crash()
    """Nothing, before it was killed."""

    def as_json(self) -> dict[str, Any]:
        """One object, without the intervals."""
        shown = attrs.asdict(self, filter=lambda attribute, _: attribute.name not in _HIDDEN)
        return {**shown, "plan": self.plan.value}


def formula(asked: Comparison) -> dict[str, float | None]:
    """What the formulas of `localdelay.capacity` say of one instance under this load, commands/s.

    `redis_commands` are those of `localdelay.redis_plan`, all together; None where delays differ: the
    formula is for one.
    """
    zrange, setnx = polling_rates(asked.shards, 1)
    is_one_delay = asked.delays.shortest == asked.delays.longest
    return {
        "zadd": asked.rate,
        "zrange": zrange,
        "setnx": setnx,
        "zrem": asked.rate,
        "redis_commands": redis_queue_commands(asked.rate, 1) if is_one_delay else None,
        "redis_commands_idle": redis_queue_commands(0.0, 1),
    }


@attrs.frozen(kw_only=True)
class Report:
    """All plans."""

    settings: Comparison
    machine: Machine
    redis: str | None
    """The version of the server; None where none was needed."""
    seconds: float
    found: Sequence[Found]

    def as_json(self) -> dict[str, Any]:
        """One object."""
        return {
            "settings": self.settings.as_json(),
            "machine": attrs.asdict(self.machine),
            "redis": self.redis,
            "seconds": self.seconds,
            "plans": [found.as_json() for found in self.found],
            "formula": formula(self.settings),
        }
