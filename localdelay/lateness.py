"""How late, and how long: latencies in an HDR histogram. The only importer of `hdrh`."""

from __future__ import annotations

import math
from bisect import bisect_right

import attrs
from hdrh.histogram import HdrHistogram

MICROSECONDS = 1e6
LONGEST = 3_600_000_000
"""Microseconds: one hour. What is longer is recorded as an hour, and counted as clipped."""
DIGITS = 3

_EXACT_BITS = 11
_EXACT = 1 << _EXACT_BITS
"""Microseconds that have a counter of their own: the next power of two after 2 · 10^DIGITS."""
_BLOCK = 256
_RUN = 1e-4


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


class LatencyRecorder:
    """Records latencies of 0 to 1 hour, to the microsecond and 3 digits.

    `hdrh` is pure Python and takes most of a microsecond for a record. So the index of the histogram's
    counter is computed here, in one line, and the counts are kept in a dict until somebody asks: as many
    as there are different indices, and nothing is rounded that the histogram would not round.
    """

    __slots__ = ("_clipped", "_fresh", "_histogram", "_longest")

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST, DIGITS)
        self._fresh: dict[int, int] = {}
        self._clipped = 0
        self._longest = 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Count one latency, `count` times over, to the microsecond; a negative one is a `ValueError`."""
        if seconds < 0:
            raise ValueError(f"a latency must not be negative, but one was {seconds!r} s")
        if seconds > self._longest:
            self._longest = seconds
        index = int(seconds * MICROSECONDS + 0.5)
        if index >= _EXACT:
            if index > LONGEST:
                self._clipped += count
                index = LONGEST
            # Above 2,047 µs a counter stands for 2, 4, 8 ... µs, and 1,024 of them for each doubling.
            shift = index.bit_length() - _EXACT_BITS
            index = (index >> shift) + (shift << _EXACT_BITS - 1)
        self._fresh[index] = self._fresh.get(index, 0) + count

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
        """Count, percentiles and maximum of all that was recorded."""
        self._settle()
        total = self._histogram.get_total_count()
        if not total:
            return LatencySummary()
        longest = int(self._longest * MICROSECONDS + 0.5)
        most = min(longest, LONGEST)
        values = self._values_at((0.5, 0.9, 0.99, 0.999), total)
        p50, p90, p99, p999 = (min(value, most) / MICROSECONDS for value in values)
        return LatencySummary(total, p50, p90, p99, p999, longest / MICROSECONDS, self._clipped)

    def _settle(self) -> None:
        histogram = self._histogram
        counts = histogram.counts
        for index, count in self._fresh.items():
            counts[index] += count
            histogram.total_count += count
        self._fresh.clear()

    def _values_at(self, shares: tuple[float, ...], total: int) -> list[int]:
        # The library's own walk is a Python loop over 23,552 counters: 4 ms in which no message is
        # sent. Whole blocks are added up in C; only the block that holds the answer is walked.
        counts = self._histogram.counts
        values: list[int] = []
        seen = start = 0
        block = counts[:_BLOCK]
        for share in shares:
            rank = max(1, math.ceil(share * total))
            while seen + (in_block := sum(block)) < rank:
                seen += in_block
                start += _BLOCK
                block = counts[start : start + _BLOCK]
            reached = seen
            for offset, count in enumerate(block):
                reached += count
                if reached >= rank:
                    lowest = self._histogram.get_value_from_index(start + offset)
                    values.append(int(self._histogram.get_highest_equivalent_value(lowest)))
                    break
        return values
