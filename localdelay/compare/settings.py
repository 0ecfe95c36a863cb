"""What a comparison is asked for. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import attrs

from localdelay import arguments
from localdelay.benchmark.load import Delays
from localdelay.benchmark.result import Settings as Load
from localdelay.brokers.address import without_secrets

_LONGEST = 600.0
_HIGHEST = 1_000_000.0
_POLLED_BY = 0.25
"""Seconds: a poll, and a little."""
MOST_SHARDS = 16_384


class Plan(StrEnum):
    """What is compared, in the order in which it is shown."""

    REDIS_LITERAL = "redis-literal"
    """The write-up's plan 1: sorted sets, each polled every 200 ms behind a lock."""
    REDIS = "redis"
    """`localdelay.redis_plan`."""
    MEMORY_LITERAL = "memory-literal"
    """The write-up's plan 2: a channel, and workers that each sleep on a message."""
    MEMORY = "memory"
    """`open_delay_queue`."""

    @property
    def in_redis(self) -> bool:
        """Whether its messages wait in Redis."""
        return self in (Plan.REDIS_LITERAL, Plan.REDIS)


@attrs.frozen(kw_only=True)
class Settings:
    """A comparison. A number that is out of its range is a `ValueError` that names it. Times in seconds."""

    rate: float = 1000.0
    """Messages/s that are put."""
    delays: Delays = attrs.field(default=Delays((2.0,)))
    size: int = 500
    """Bytes of each payload."""
    seconds: float = 2.0
    """How long is measured, once messages come due."""
    shards: int = 64
    """Sorted sets, of both Redis plans."""
    workers: int = 20
    redis: str | None = attrs.field(default=None, repr=False)
    """The URL of a server; None: one of its own."""
    only: tuple[Plan, ...] = tuple(Plan)
    """What is compared."""
    seed: int = 1
    quick: bool = False
    """Shorter, and without the search for the highest rate."""

    def __attrs_post_init__(self) -> None:
        """Refuse what can't be run."""
        arguments.at_least("rate", self.rate, 1.0)
        arguments.at_least("seconds", self.seconds, 0.1)
        _at_most("rate", self.rate, _HIGHEST)
        _at_most("seconds", self.seconds, _LONGEST)
        _at_most("shards", arguments.count("shards", self.shards), MOST_SHARDS)
        load = self.load()  # checks the rest
        _at_most("delay", load.delays.longest, _LONGEST)
        if self.redis is not None:
            _check_redis(self.redis)

    @property
    def before(self) -> float:
        """Seconds from the first put until as much is sent as is put, by a plan that polls, too."""
        return self.delays.longest + _POLLED_BY

    def load(self) -> Load:
        """The load that is measured: puts begin so long `before` anything is counted."""
        return self.load_for(self.seconds)

    def load_for(self, seconds: float) -> Load:
        """The same with another number of seconds to be measured."""
        return Load(
            rate=(self.rate, self.rate),
            seconds=self.before + seconds,
            delays=self.delays,
            size=self.size,
            workers=self.workers,
            warmup=0.0,
            seed=self.seed,
        )

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What is compared, each once, in the usual order."""
        return tuple(plan for plan in Plan if plan in self.only)

    @property
    def needs_redis(self) -> bool:
        """Whether there is a plan that needs one."""
        return any(plan.in_redis for plan in self.plans)

    def as_json(self) -> dict[str, Any]:
        """What `of_json` reads."""
        shown = attrs.asdict(self)
        shown["delays"] = list(self.delays.values)
        shown["delay_is_range"] = self.delays.is_range
        shown["only"] = [plan.value for plan in self.plans]
        return shown

    def shown(self) -> dict[str, Any]:
        """The same without passwords."""
        return {**self.as_json(), "redis": None if self.redis is None else without_secrets(self.redis)}

    @classmethod
    def of_json(cls, shown: dict[str, Any]) -> Settings:
        """The settings that `as_json` has shown."""
        rest = dict(shown)
        delays = Delays(tuple(rest.pop("delays")), is_range=rest.pop("delay_is_range"))
        only = tuple(Plan(name) for name in rest.pop("only"))
        return cls(delays=delays, only=only, **rest)


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


def _at_most(name: str, value: float, most: float) -> None:
    if value > most:
        raise ValueError(f"{name} must be at most {most:,.0f}, not {value:,.10g}")
