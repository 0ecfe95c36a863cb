"""How late, and how long: latencies in an HDR histogram. The only importer of `hdrh`."""

from __future__ import annotations

import base64
import math
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from operator import mul

import attrs
from hdrh.histogram import HdrHistogram

MICROSECONDS = 1e6
LONGEST = 3_600_000_000
"""Microseconds: one hour. What is longer is recorded as an hour, and counted as clipped."""
DIGITS = 3

BOUNDARIES = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
"""Seconds: what `LatencySummary.buckets` counts up to. They are fixed, so that buckets can be added up."""

_EXACT_BITS = 11
_EXACT = 1 << _EXACT_BITS
"""Microseconds that have a counter of their own: the next power of two after 2 · 10^DIGITS."""
_DOUBLINGS = (LONGEST >> _EXACT_BITS).bit_length()
# Above these a counter stands for 2, 4, 8 ... microseconds, and there are 1,024 of them for each doubling.
_STEPS = (
    range((_EXACT // 2 + 1 << shift) - 1, min(_EXACT << shift, LONGEST), 1 << shift)
    for shift in range(1, _DOUBLINGS + 1)
)
_HIGHEST = array("q", [*range(_EXACT), *chain.from_iterable(_STEPS), LONGEST])
"""The largest microsecond that each counter stands for, by its index."""
_LAST_WITHIN = tuple(bisect_right(_HIGHEST, round(boundary * MICROSECONDS)) - 1 for boundary in BOUNDARIES)
"""The last counter that holds nothing over each boundary."""
_RUN = 1e-4
_HEAD_BYTES = 8  # before what is packed
_MOST_UNPACKED = 1_000_000
"""Bytes: 23,552 counters of 9 bytes each are far less."""


@attrs.frozen
class LatencySummary:
    """What a histogram holds, at one instant. Every value is in seconds.

    A percentile is the upper end of its HDR bucket (3 significant digits), and at most `max`.
    """

    count: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    max: float = 0.0
    """Exact, to the microsecond, also where it was clipped."""
    clipped: int = 0
    """Values over one hour: in `count`, but their percentiles say one hour."""
    sum: float = 0.0
    """Of all values, rounded up by at most 0.1 %; what was clipped counts as one hour."""
    buckets: tuple[tuple[float, int], ...] = attrs.field(
        default=tuple((boundary, 0) for boundary in BOUNDARIES), repr=False
    )
    """(seconds, how many values were no longer than this), for each of `BOUNDARIES`.

    An HDR counter that a boundary goes through is counted above it: a value that is over a boundary is
    never counted below it, and one that is less than 0.1 % below a boundary may be counted above it. What
    was clipped is in none of them.
    """


@attrs.frozen
class Latencies:
    """Latencies that were counted, with the precision of the histogram: cheap to keep, and to add up."""

    counts: Mapping[int, int] = attrs.field(factory=dict, repr=False)
    """How many fell into each of the histogram's counters, by its index."""
    longest: float = 0.0
    """Seconds: exact, also where it was clipped."""
    clipped: int = 0
    """Values over one hour, counted as one of an hour."""

    @classmethod
    def together(cls, parts: Iterable[Latencies]) -> Latencies:
        """All of them in one."""
        counts: defaultdict[int, int] = defaultdict(int)
        longest, clipped = 0.0, 0
        for part in parts:
            for index, count in part.counts.items():
                counts[index] += count
            longest = max(longest, part.longest)
            clipped += part.clipped
        return cls(counts, longest, clipped)

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def summary(self) -> LatencySummary:
        """What a histogram of these says, read off in one walk over the counters that have something.

        It is a walk in C: one in Python takes milliseconds in which no message is sent.
        """
        indices, reached = self._in_order()
        if not indices:
            return LatencySummary()
        p50, p90, p99, p999 = self._values(indices, reached, (0.5, 0.9, 0.99, 0.999))
        within = [0, *reached]
        below = [within[bisect_right(indices, last)] for last in _LAST_WITHIN]
        below[-1] -= self.clipped  # counted as an hour, and longer
        # With the largest that a counter stands for as the value of all that is in it.
        total = sum(map(mul, map(_HIGHEST.__getitem__, indices), map(self.counts.__getitem__, indices)))
        return LatencySummary(
            reached[-1],
            p50,
            p90,
            p99,
            p999,
            self._most / MICROSECONDS,
            self.clipped,
            total / MICROSECONDS,
            tuple(zip(BOUNDARIES, below, strict=True)),
        )

    def steps(self) -> Iterator[tuple[float, int]]:
        """(seconds, how many took no longer than this), one for each value that differs, rising."""
        for index, reached in zip(*self._in_order(), strict=True):
            yield min(_HIGHEST[index], self._most) / MICROSECONDS, reached

    def at(self, *shares: float) -> list[float]:
        """The percentiles in seconds, as in `LatencySummary`; `shares` are from 0 to 1."""
        return self._values(*self._in_order(), shares) if self.counts else [0.0] * len(shares)

    def encoded(self) -> str:
        """As HdrHistogram's interchange format: V2, compressed, in base64. The unit is the microsecond."""
        histogram = HdrHistogram(1, LONGEST, DIGITS)
        for index, count in self.counts.items():
            histogram.counts[index] = count
        histogram.total_count = self.count
        # Counters above that of the maximum are left out of what is written.
        histogram.max_value = _HIGHEST[max(self.counts, default=0)]
        return str(histogram.encode(), "ascii")

    @classmethod
    def decoded(cls, text: str) -> Latencies:
        """The reverse of `encoded`, with `longest` rounded up to its counter; else a `ValueError`."""
        try:
            _check_unpacked(base64.b64decode(text)[_HEAD_BYTES:])
            histogram = HdrHistogram.decode(text)
        # The library lets out whatever its parts raise: zlib, base64, ctypes and exceptions of its own.
        except Exception as error:
            raise ValueError("no histogram that can be decoded") from error
        unit = histogram.lowest_trackable_value
        is_ours = (unit, histogram.significant_figures) == (1, DIGITS)
        if not is_ours or histogram.highest_trackable_value > LONGEST:
            raise ValueError(f"no histogram of microseconds up to an hour with {DIGITS} digits")
        counts = {index: count for index, count in enumerate(histogram.counts[:]) if count}
        longest = _HIGHEST[max(counts)] / MICROSECONDS if counts else 0.0
        return cls(counts, longest)

    @property
    def _most(self) -> int:
        """Microseconds."""
        return int(self.longest * MICROSECONDS + 0.5)

    def _in_order(self) -> tuple[list[int], list[int]]:
        """The counters that have something, rising, and how many fell into them and those before."""
        indices = sorted(self.counts)
        return indices, list(accumulate(map(self.counts.__getitem__, indices)))

    def _values(self, indices: list[int], reached: list[int], shares: Sequence[float]) -> list[float]:
        ranks = (max(1, math.ceil(share * reached[-1])) for share in shares)
        found = (_HIGHEST[indices[bisect_left(reached, rank)]] for rank in ranks)
        return [min(value, self._most) / MICROSECONDS for value in found]


def _check_unpacked(packed: bytes) -> None:
    """Raise for what would fill the memory: it may unpack to a thousand times its size."""
    unpacker = zlib.decompressobj()
    unpacker.decompress(packed, _MOST_UNPACKED)
    if unpacker.unconsumed_tail:
        raise ValueError("more than a histogram has")


class LatencyRecorder:
    """Records latencies of 0 to 1 hour, to the microsecond and 3 digits.

    `hdrh` is pure Python and takes most of a microsecond for a record. So the index of the histogram's
    counter is computed here, in one line, and the counts are kept in a dict: as many as there are different
    indices, and nothing is rounded that the histogram would not round.
    """

    __slots__ = ("_clipped", "_counts", "_longest", "_ordered")

    def __init__(self) -> None:
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._ordered = 0  # counts in the order of their indices
        self._clipped = 0
        self._longest = 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Count one latency, `count` times over, to the microsecond; a negative one counts as 0."""
        if seconds < 0:
            seconds *= 0.0  # some clocks step back now and then; -inf becomes NaN, which is refused below
        if seconds > self._longest:
            self._longest = seconds
        index = int(seconds * MICROSECONDS + 0.5)
        if index >= _EXACT:
            if index > LONGEST:
                self._clipped += count
                index = LONGEST
            shift = index.bit_length() - _EXACT_BITS
            index = (index >> shift) + (shift << _EXACT_BITS - 1)
        self._counts[index] += count

    def record_each(self, latencies: list[float]) -> None:
        """Count each of these, in seconds: `record` of many, in a third of the time."""
        shortest = min(latencies)
        if shortest < 0:
            latencies = [seconds if seconds >= 0 else seconds * 0.0 for seconds in latencies]
        longest = max(latencies)
        if longest > self._longest:
            self._longest = longest
        indices = [int(seconds * MICROSECONDS + 0.5) for seconds in latencies]
        if longest * MICROSECONDS + 0.5 >= _EXACT:
            if longest * MICROSECONDS > LONGEST:
                self._clipped += sum(index > LONGEST for index in indices)
                indices = [min(index, LONGEST) for index in indices]
            indices = [  # as in `record`
                index
                if index < _EXACT
                else (index >> (shift := index.bit_length() - _EXACT_BITS)) + (shift << _EXACT_BITS - 1)
                for index in indices
            ]
        counts = self._counts
        if (longest - shortest) * MICROSECONDS < len(latencies):  # many that are alike
            for index, count in Counter(indices).items():
                counts[index] += count
        else:
            for index in indices:
                counts[index] += 1

    def record_run(self, now: float, instants: list[float]) -> None:
        """Count what has passed since each of these instants, all in seconds.

        Instants within 100 µs of each other count as one, the earliest: with many at once, latencies are
        rounded up by so much.
        """
        if len(instants) == 1:
            self.record(now - instants[0])
            return
        instants = sorted(instants)
        start, count = 0, len(instants)
        while start < count:
            first = instants[start]
            end = bisect_right(instants, first + _RUN, start)
            self.record(now - first, end - start)
            start = end

    def summary(self) -> LatencySummary:
        """Count, percentiles, maximum, sum and buckets of all that was recorded."""
        if len(self._counts) > self._ordered:  # to order a few new ones among many takes no time
            self._counts = defaultdict(int, sorted(self._counts.items()))
            self._ordered = len(self._counts)
        return Latencies(self._counts, self._longest, self._clipped).summary()

    def take(self) -> Latencies:
        """All that was recorded since the last `take`; what is recorded from now on stands on its own."""
        taken = Latencies(self._counts, self._longest, self._clipped)
        self._counts = defaultdict(int)
        self._ordered = self._clipped = 0
        self._longest = 0.0
        return taken
