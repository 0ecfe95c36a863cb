"""A run's latencies in HdrHistogram's log format: one line an interval, the histogram in it compressed (V2).

The format is that of HdrHistogram's own tools, https://github.com/HdrHistogram/HdrHistogram, version 1.2 of
the log. Values are microseconds, which the file says in a comment of its own; times are in seconds, and the
column of maxima in milliseconds, as is the custom.
"""

from __future__ import annotations

import math
import re
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from localdelay.lateness import Latencies

_MOST_BYTES = 100_000_000
_UNIT = "#[Values: microseconds]"
_LEGEND = '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
_RUN = re.compile(r"^#\[Run: (.*)\]$", re.MULTILINE)
_START = re.compile(r"^#\[(?:Start|Base)Time: ([0-9]{1,15}(?:\.[0-9]{1,9})?) ", re.MULTILINE)
_INTERVAL = re.compile(r"(?:Tag=[^,]*,)?[0-9]+\.?[0-9]*,([0-9]+\.?[0-9]*),([0-9]+\.?[0-9]*),([\w+/=]+)")


@attrs.frozen
class Log:
    """A run, as its file has it."""

    facts: str
    """What was run, in words."""
    began_at: float
    """Unix time of the beginning of the first interval, in seconds."""
    length: float
    """Seconds of each interval but the last, which may be shorter or longer."""
    intervals: Sequence[Latencies] = attrs.field(repr=False)


def write(path: Path, log: Log, *, seconds: float) -> None:
    """Write the file; `seconds` is how long the intervals are together. An `OSError` if it can't be."""
    path.write_text(text(log, seconds=seconds), encoding="utf-8")


def text(log: Log, *, seconds: float) -> str:
    """What is in such a file."""
    began = datetime.fromtimestamp(log.began_at, UTC).isoformat(" ", "milliseconds")
    lines = [
        "#[Histogram log format version 1.2]",
        f"#[Run: {log.facts}]",
        _UNIT,
        f"#[StartTime: {log.began_at:.3f} (seconds since epoch), {began}]",
        # With it the times of the lines are relative, also for a reader that takes them as absolute.
        f"#[BaseTime: {log.began_at:.3f} (seconds since epoch)]",
        _LEGEND,
    ]
    for number, interval in enumerate(log.intervals):
        start = number * log.length
        is_last = number == len(log.intervals) - 1
        length = max(0.001, seconds - start) if is_last else log.length
        lines.append(f"{start:.3f},{length:.3f},{interval.longest * 1e3:.3f},{interval.encoded()}")
    return "\n".join([*lines, ""])


def read(path: Path) -> Log:
    """Read such a file, of at most 100 MB.

    Raises `OSError`, and `ValueError` for what is no such file, with the number of the line that is wrong.
    """
    # A device or a pipe may have no end.
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES // 10**6} MB")
    whole = path.read_text(encoding="utf-8", errors="replace")
    if _UNIT not in whole:
        raise ValueError("it is no log of localdelay bench: its values may have any unit")
    intervals = [
        _interval(number, line)
        for number, line in enumerate(whole.splitlines(), 1)
        if line and not line.startswith("#") and line != _LEGEND
    ]
    if not any(latencies.counts for _, latencies in intervals):
        raise ValueError("there is not one latency in it")
    facts, began = _RUN.search(whole), _START.search(whole)
    return Log(
        facts[1] if facts else "",
        float(began[1]) if began else 0.0,
        intervals[0][0],
        [latencies for _, latencies in intervals],
    )


def _interval(number: int, line: str) -> tuple[float, Latencies]:
    """(seconds, latencies) of this line."""
    found = _INTERVAL.fullmatch(line)
    if found is None:
        raise ValueError(f"line {number} is no interval")
    try:
        latencies = Latencies.decoded(found[3])
    except ValueError as error:
        raise ValueError(f"line {number} has {error}") from error
    length, most = float(found[1]), float(found[2])
    if not max(length, most) < math.inf:
        raise ValueError(f"line {number} has a time that is too long")
    # The histogram has its values to three digits only; the maximum is exact.
    return length, attrs.evolve(latencies, longest=most / 1e3 if latencies.counts else 0.0)
