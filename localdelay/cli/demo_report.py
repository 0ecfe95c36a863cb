"""What `localdelay demo` says about its two runs: a table, a timeline, and a few words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localdelay.cli.output import Block, Row, Table
from localdelay.demo.timeline import step_of
from localdelay.units import counted, format_duration, format_number

if TYPE_CHECKING:  # the demo's parts come with an extra
    from localdelay.demo.report import FallbackResult, Report
    from localdelay.demo.timeline import Bucket

TITLES = {"plain": "plain", "fallback": "with localdelay"}
_BLOCKS = ".\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DIGITS = ".123456789"
_LABEL_WIDTH = 13
_TICK_EVERY = 10
_NOTES = {
    "published": "",
    "accepted": "by the broker, as delayed publishes",
    "refused": "by the broker, with 429",
    "degraded": "held here at first",
    "handed_back": "to the broker, before due",
    "received": "by the consumer",
    "lost": "",
    "duplicates": "",
    "lateness_p50": "from due to received",
    "lateness_p99": "",
    "lateness_max": "",
}


def report(found: Report, timeline: Sequence[str]) -> list[Block]:
    """The report, with these lines of a timeline in it; a terminal of 24 lines has room for all of it."""
    rows = []
    for name, note in _NOTES.items():
        values = [getattr(found.plain, name, 0), getattr(found.fallback, name)]
        shown = _duration if "lateness" in name else format_number
        rows.append(Row(name.replace("_", " "), values, shown, note, "bold" if name == "lost" else ""))
    return [Table([*TITLES.values()], rows), *timeline, *closing(found)]


def timeline_lines(buckets: Sequence[Bucket], encoding: str) -> list[str]:
    """The timeline, 80 columns wide at the most: an axis, a line for each rate, a legend.

    All have one scale. Where the encoding has no blocks they are digits.
    """
    if not buckets:
        return []
    signs = _BLOCKS if _can_encode(_BLOCKS, encoding) else _DIGITS
    rates = {
        "primary": [bucket.primary for bucket in buckets],
        "local": [bucket.local for bucket in buckets],
        "handed back": [bucket.handed_back for bucket in buckets],
    }
    top = max(map(max, rates.values()))
    rates["rate found"] = [min(bucket.found or 0.0, top) for bucket in buckets]
    step = step_of(buckets)
    ticks = (format_duration(column * step) for column in range(0, len(buckets), _TICK_EVERY))
    rows = {"messages/s": "".join(f"{tick:<{_TICK_EVERY}}" for tick in ticks).rstrip()}
    rows |= {label: "".join(_level(rate, top, signs) for rate in row) for label, row in rates.items()}
    return [
        *(f"{label:<{_LABEL_WIDTH}}{row}" for label, row in rows.items()),
        f"A column is {format_duration(step)}, {signs[-1]} is {round(top):,}/s or more.",
    ]


def _level(rate: float, top: float, signs: str) -> str:
    """The sign for a rate: the first for none, the last for `top`, and at least the second for any other."""
    return signs[math.ceil(rate / top * (len(signs) - 1))] if rate else signs[0]


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def closing(report: Report) -> list[str]:
    """What the reader has just seen, in words: a paragraph a string."""
    plain, fallback = report.plain, report.fallback
    if not report.throttled:
        return [never_throttled(report)]
    paragraphs = [f"Plainly, {plain.lost:,} of {counted(plain.published, 'message')} never arrived."]
    if fallback.lost:
        paragraphs.append(
            f"With localdelay {fallback.lost:,} of {counted(fallback.published, 'message')} never arrived "
            "either. That must not happen: please report it."
        )
    else:
        paragraphs.append(f"With localdelay all {fallback.received:,} arrived. {_saved(fallback)}")
    if fallback.duplicates:
        paragraphs.append(
            f"{counted(fallback.duplicates, 'message')} came again, under the same id: an answer of the "
            "broker's came too late, and what it had taken was given to it once more."
        )
    return paragraphs


def _saved(fallback: FallbackResult) -> str:
    native = fallback.accepted + fallback.handed_back
    sent = fallback.degraded - fallback.handed_back
    return (
        f"The broker took {native:,} natively, {fallback.handed_back:,} of them handed back; "
        f"{counted(sent, 'message')} waited here until due."
    )


def never_throttled(report: Report) -> str:
    """Why the demo has shown nothing."""
    return (
        f"The broker never throttled: {counted(report.plain.published, 'message')} at this rate were no "
        "burst to it, so there was nothing to save. Try a higher --rate."
    )


def _duration(late: float) -> str:
    return f"{'-' if late < 0 else ''}{format_duration(abs(late))}"
