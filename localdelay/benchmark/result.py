"""What a run is asked for, what it comes to, and which rates are held. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from localdelay import arguments
from localdelay.benchmark.load import NUMBER_BYTES, Delays, Pace
from localdelay.benchmark.meter import INTERVAL, SHORTEST
from localdelay.benchmark.process import Machine
from localdelay.errors import LocalDelayError
from localdelay.lateness import Latencies, LatencySummary

HELD_P99 = 0.010
"""Seconds. A rate is held if the latency stays under this at p99, and everything was put and sent, and
nothing early. The latency counts from the schedule of the load, and so holds what the puts were late."""
BACKLOG_SECONDS = 10.0
"""The queue has room for what is put in this time beyond what waits for its delay; then puts are refused."""
BYTES_BESIDES = 200
"""Bytes a pending message besides its payload, about: to tell what would not fit into the memory."""
_MOST_OF_MEMORY = 0.75
_WARM_DELAY = 0.01
"""Seconds. Few wait at a time, so that what they leave in the memory does not count as the others' own."""
_LONGEST_RUN = 86_400.0
_HIGHEST_RATE = 1e8
_MOST_WORKERS = 100_000


class BenchError(LocalDelayError):
    """The benchmark could not run."""


def within(low: float, most: float = _LONGEST_RUN) -> Any:
    """A validator: the name of the argument, and the range that it is out of."""

    def check(_: object, attribute: Any, value: float | None) -> None:
        if value is not None:
            arguments.at_least(attribute.name, value, low)
            if value > most:
                raise ValueError(f"{attribute.name} must be at most {most:,.0f}, not {value:,.10g}")

    return check


def _check_rate(_: object, __: object, rate: tuple[float, float]) -> None:
    for end in rate:
        if not 0 < end <= _HIGHEST_RATE:
            raise ValueError(f"rate must be over 0 and at most {_HIGHEST_RATE:,.0f} a second, not {end:g}")


def _check_delays(_: object, __: object, delays: Delays) -> None:
    for value in delays.values:
        if arguments.at_least("delay", value, 0) > _LONGEST_RUN:
            raise ValueError(f"delay must be at most {_LONGEST_RUN:,.0f} seconds, not {value:,.0f}")
    if delays.is_range and delays.shortest != delays.values[0]:
        raise ValueError("delay must be a range from the shorter to the longer one")


@attrs.frozen(kw_only=True)
class Settings:
    """A run. A number that is out of its range is a `ValueError` that names it. Times are in seconds."""

    to: str | None = None
    """The broker's URL; None: a send that does nothing."""
    rate: tuple[float, float] = attrs.field(default=(10_000.0, 10_000.0), validator=_check_rate)
    """Messages/s at the beginning and at the end."""
    seconds: float = attrs.field(default=10.0, validator=within(0.001))
    delays: Delays = attrs.field(default=Delays((2.0,)), validator=_check_delays)
    size: int = attrs.field(default=500, validator=within(NUMBER_BYTES, 100_000_000))
    """Bytes of each payload."""
    workers: int = attrs.field(default=20, validator=within(1, _MOST_WORKERS))
    batch: int | None = attrs.field(default=None, validator=within(1, 1_000_000))
    """The most messages of one send; None: one message a send, without batches."""
    warmup: float = attrs.field(default=1.0, validator=within(0))
    """Seconds of a load before the rest, through a queue of its own, of which nothing is recorded."""
    seed: int = 1
    cancellable: bool = True
    timer: Literal["auto", "trio"] = "auto"

    @property
    def warm_up(self) -> Settings | None:
        """The load before the rest, at the rate that this begins with, with hardly a delay; None for none."""
        if not self.warmup:
            return None
        delays = Delays((min(self.delays.shortest, _WARM_DELAY),))
        return attrs.evolve(self, rate=(self.rate[0],) * 2, seconds=self.warmup, delays=delays, warmup=0.0)

    @property
    def pace(self) -> Pace:
        """When the messages are to be put."""
        return Pace(*self.rate, self.seconds)

    @property
    def expected_pending(self) -> int:
        """Messages that wait at most, if every one is sent when it is due."""
        pace = self.pace
        return min(pace.total, int(pace.highest * self.delays.longest) + 1)

    @property
    def expected_bytes(self) -> int:
        """Memory that the messages take that are expected to wait."""
        return self.expected_pending * (self.size + BYTES_BESIDES)

    def capacity(self, machine_bytes: int | None) -> int:
        """Of the queue, in messages: room for the late ones too, but not for more than the machine has."""
        pace = self.pace
        room = self.expected_pending + int(pace.highest * BACKLOG_SECONDS) + 1
        if machine_bytes is not None:
            room = min(room, int(_MOST_OF_MEMORY * machine_bytes) // (self.size + BYTES_BESIDES))
        return max(1, min(pace.total, room))

    @property
    def patience(self) -> float:
        """Seconds that the puts, and then the sends, may be late at most, before they are given up."""
        return self.seconds / 2 + 2

    @property
    def expected_seconds(self) -> float:
        """From the first put until the last message is due."""
        return self.seconds + self.delays.longest


@attrs.frozen
class Distribution:
    """Count, percentiles and maximum. Every value is in seconds; None where nothing was recorded."""

    count: int = 0
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    p9999: float | None = None
    """None for what the queue says about itself, too: its own statistics end with the last but one."""
    max: float | None = None

    @classmethod
    def of(cls, latencies: Latencies) -> Distribution:
        """What these come to."""
        if not latencies.count:
            return cls()
        p50, p90, p99, p999, p9999 = latencies.at(0.5, 0.9, 0.99, 0.999, 0.9999)
        # To the microsecond, as the percentiles are: none of them is over it then.
        return cls(latencies.count, p50, p90, p99, p999, p9999, round(latencies.longest, 6))

    @classmethod
    def of_summary(cls, summary: LatencySummary) -> Distribution:
        """What the queue says."""
        if not summary.count:
            return cls()
        return cls(summary.count, summary.p50, summary.p90, summary.p99, summary.p999, None, summary.max)


@attrs.frozen(kw_only=True)
class Result:
    """A run that has ended, or was stopped. The warm-up is in none of it. Times are in seconds."""

    settings: Settings
    machine: Machine
    began_at: float
    """Unix time at which the first message was due: where the intervals begin."""
    seconds: float
    """From the first put to the end."""
    stopped_by: int | None
    """The signal that has ended it early."""
    offered: int
    """Messages that were to be put."""
    put: int
    """Those that were put."""
    refused: int
    """Those that the queue had no room for: the sends were too slow."""
    sent: int
    """Those whose send returned in time."""
    unsent: int
    """Those that were put, and neither sent nor given up."""
    dead: int
    """Those that were given up."""
    early: int
    """Sends that began before the execute-at of their message. There must be none."""
    failures: int
    """Sends that failed, counted for each message."""
    throttled: int
    """Those of them that were throttled."""
    failure: str | None
    """The last one's error."""
    latency: Distribution
    """Start of the first send minus when it was to begin: the time to put the message, and its delay."""
    queue_lateness: Distribution
    """The queue's share of it, as its statistics say: start of the first send minus execute-at."""
    put_lateness: Distribution
    """The load's share of it, its own error: when messages were put minus when they were to be put."""
    send_time: Distribution
    """How long sends took, failed ones included and a batch counted once; 0 of them where they do nothing."""
    cpu_us_per_message: float | None
    """Microseconds of processor time for each message, in all: load, queue, client and recording."""
    cpu_share: float | None
    """Part of one core that was in use. At a low rate it is waking up that costs, and not the messages."""
    peak_pending: int
    """Messages put and not sent, at most."""
    resident_bytes_per_pending: float | None
    """Growth of resident memory by then for each of them, payload included; None where it can't be
    told, because few wait or the warm-up had nearly as many."""
    held: bool | None
    """Whether the rate was held (see `localdelay.benchmark.result`); None where the run was stopped."""
    held_up_to: float | None
    """For a ramp: messages/s put by the end of the last second before the first that was not held."""
    intervals: Sequence[Latencies] = attrs.field(repr=False)
    """The latencies second by second, by the start of the send."""

    @property
    def measured_seconds(self) -> float:
        """How long the intervals are together: what may have been waited for after the last is not in it."""
        whole = (len(self.intervals) - 1) * INTERVAL
        return min(self.seconds - self.settings.delays.shortest, whole + INTERVAL + SHORTEST)

    def as_json(self) -> dict[str, Any]:
        """One object, without the intervals."""
        shown = attrs.asdict(self, filter=lambda attribute, _: attribute.name != "intervals")
        shown["settings"] |= self.settings.delays.as_json()
        return shown


def is_held(p99: float | None, *, offered: int, sent: int, early: int, most: float = HELD_P99) -> bool:
    """Whether a load was held; `p99` is None where nothing was sent. `most` is another bound than 10 ms."""
    return p99 is not None and p99 < most and sent == offered and not early


def ladder(lowest: float, highest: float) -> list[float]:
    """The rates 1, 2, 3, 5 and 7 times a power of ten between the two, ends included."""
    rungs = [float(step * 10**power) for power in range(10) for step in (1, 2, 3, 5, 7)]
    return [rung for rung in rungs if lowest <= rung <= highest]


def next_rate(rungs: Sequence[float], tried: Mapping[float, bool], stride: int = 1) -> float | None:
    """The next rate to try, where these were tried and held or not; None: the highest one is known.

    Where one is held, so are all below it: that is assumed. From what was tried first it goes up, or down,
    in steps of once, twice, four times ... `stride` rungs, until one is known that is held and one that is
    not, and then halves what is between.
    """
    held = best(tried) or 0.0
    failed = min((rate for rate, ok in tried.items() if not ok), default=float("inf"))
    between = [rung for rung in rungs if held < rung < failed]
    if not between:
        return None
    step = min(stride << len(tried) - 1, len(between))
    if failed == float("inf"):
        return between[step - 1]
    if not held:
        return between[-step]
    return between[(len(between) - 1) // 2]


def best(tried: Mapping[float, bool]) -> float | None:
    """The highest rate that was held; None: none was."""
    return max((rate for rate, ok in tried.items() if ok), default=None)


def held_up_to(settings: Settings, intervals: Sequence[Latencies]) -> float | None:
    """For a ramp, messages/s at the end of the last interval before the first that is over `HELD_P99`.

    An interval's messages were put one delay ago; where delays differ, the shortest says when, roughly.
    """
    pace = settings.pace
    if pace.first == pace.last:
        return None
    reached = 0
    for interval in intervals:
        if interval.count and interval.at(0.99)[0] >= HELD_P99:
            break
        reached += 1
    return pace.rate_at(reached) if reached else 0.0
