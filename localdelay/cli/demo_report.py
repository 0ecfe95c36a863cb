"""What `localdelay demo` says about its two runs: a table, a timeline, and a few words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from localdelay.cli.output import Block, Row, Table
from localdelay.demo.timeline import step_of
from localdelay.units import counted, format_duration, format_number

if TYPE_CHECKING:  # the demo's parts come with an extra
    from localdelay.demo.report import FallbackResult, Report, RunResult
    from localdelay.demo.timeline import Bucket

TITLES = {"plain": "plain", "fallback": "with localdelay"}
STATES = {"closed": ("closed", "."), "open": ("open", "#"), "half_open": ("half-open", "-")}
"""What a state of the breaker is called, and its sign."""
_BLOCKS = ".\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DIGITS = ".123456789"
_LABEL_WIDTH = 13
_TICK_EVERY = 10


def report(found: Report, timeline: Sequence[str]) -> list[Block]:
    """The report, with these lines of a timeline in it."""
    titles = [TITLES["plain"], TITLES["fallback"]]
    rows = list(_rows(found.plain, found.fallback))
    return ["", Table(titles, rows), "", *timeline, "", *closing(found)]


def timeline_lines(buckets: Sequence[Bucket], encoding: str) -> list[str]:
    """The timeline, 80 columns wide at the most: an axis, a line for each rate and the breaker, a legend.

    All rates have one scale. Where the encoding has no blocks they are digits.
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
    step = step_of(buckets)
    rows = {"messages/s": _axis(len(buckets), step)}
    rows |= {label: "".join(_level(rate, top, signs) for rate in row) for label, row in rates.items()}
    rows["breaker"] = "".join(STATES[bucket.breaker][1] for bucket in buckets)
    states = "  ".join(f"{sign} {name}" for name, sign in STATES.values())
    return [
        *(f"{label:<{_LABEL_WIDTH}}{row}" for label, row in rows.items()),
        f"A column is {format_duration(step)}, {signs[-1]} is {round(top):,}/s. Breaker: {states}",
    ]


def _axis(columns: int, step: float) -> str:
    ticks = (format_duration(column * step) for column in range(0, columns, _TICK_EVERY))
    return "".join(f"{tick:<{_TICK_EVERY}}" for tick in ticks).rstrip()


def _level(rate: float, top: float, signs: str) -> str:
    """The sign for a rate: the first for none, the last for `top`, and at least the second for any other."""
    return signs[math.ceil(rate / top * (len(signs) - 1))] if rate else signs[0]


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def _rows(plain: RunResult, fallback: FallbackResult) -> Iterator[Row]:
    for name, label, note in (
        ("published", "published", ""),
        ("accepted", "accepted by the broker", ""),
        ("refused", "refused by the broker", "with 429"),
        ("degraded", "degraded", "held here at first"),
        ("handed_back", "handed back", "to the broker, before due"),
        ("received", "received", "by the consumer"),
        ("lost", "lost", ""),
        ("duplicates", "duplicates", ""),
        ("breaker_opened", "breaker opened", "times"),
    ):
        values = [getattr(plain, name, 0), getattr(fallback, name)]
        yield Row(label, values, format_number, note, "bold" if name == "lost" else "")
    for name, label, note in (
        ("lateness_p50", "lateness p50", "from due to received"),
        ("lateness_p99", "lateness p99", ""),
        ("lateness_max", "lateness max", ""),
    ):
        yield Row(label, [getattr(plain, name), getattr(fallback, name)], _duration, note)


def closing(report: Report) -> list[str]:
    """What the reader has just seen, in words: a paragraph a string."""
    plain, fallback = report.plain, report.fallback
    if not report.throttled:
        return [never_throttled(report)]
    paragraphs = [
        f"Plainly, {plain.lost:,} of {counted(plain.published, 'message')} never arrived: "
        f"the broker refused {plain.refused:,}."
    ]
    if fallback.lost:
        return [
            *paragraphs,
            f"With localdelay {fallback.lost:,} of {counted(fallback.published, 'message')} never arrived "
            "either. That must not happen: please report it.",
        ]
    late = (fallback.lateness_p99 or 0) > 1.5 * (plain.lateness_p99 or 0)
    lateness = (
        "What came late was sent as fast as the broker would take it."
        if late
        else "Most of the lateness is the broker's own timer: see the plain column."
    )
    return [
        *paragraphs,
        f"With localdelay all {fallback.received:,} arrived: {_saved(fallback)}",
        *_twice(fallback),
        lateness,
    ]


def _saved(fallback: FallbackResult) -> str:
    if not fallback.degraded:
        return "the broker refused none of them."
    why = f"{fallback.refused:,} because the broker refused them"
    if fallback.breaker_opened:
        why += f", {fallback.degraded - fallback.refused:,} because the breaker was open"
    sent = fallback.degraded - fallback.handed_back
    fates = []
    if fallback.handed_back:
        fates.append(f"{fallback.handed_back:,} went back to the broker before they were due")
    if sent:
        fates.append(f"{sent:,} went to it as ordinary messages when they were due")
    return f"{fallback.degraded:,} were held here at first, {why}. Of these {', and '.join(fates)}."


def _twice(fallback: FallbackResult) -> list[str]:
    if not fallback.duplicates:
        return []
    return [
        f"{counted(fallback.duplicates, 'message')} came again, under the same id: an answer of the broker's "
        "came too late or not at all, and what it had taken was given to it once more."
    ]


def never_throttled(report: Report) -> str:
    """Why the demo has shown nothing."""
    return (
        f"The broker never throttled: {counted(report.plain.published, 'message')} at this rate were no "
        "burst to it, so there was nothing to save. Try a higher --rate."
    )


def _duration(late: float) -> str:
    return f"{'-' if late < 0 else ''}{format_duration(abs(late))}"
