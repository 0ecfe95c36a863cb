"""What the samples of `bench.peers` come to: the rows of its table, and its targets. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .contenders import BARE, BATCH, BATCH_UNCANCELLABLE, LITERAL, LOCALDELAY
from .samples import HELD_P99, Result, medians, ratio
from .targets import Target

OURS = (LOCALDELAY, BATCH, BATCH_UNCANCELLABLE)
_ONLY_OURS = {"await", "five"}
_LOADS = ("low", "high", "mixed", "five")


def belongs(figure: str, name: str) -> bool:
    """Whether this figure is taken of this contender."""
    if name == BARE:
        return figure == "put"
    return figure not in _ONLY_OURS or name in OURS


def kept_up(result: Result | None) -> bool:
    """Whether a load was put on time, and all of it was sent: only then do its percentiles mean something."""
    return (
        result is not None
        and not result["unsent"]
        and not result["early"]
        and result["put_lateness"]["p99"] < HELD_P99
    )


def row(samples: Mapping[str, Sequence[Any]]) -> Result:
    """The figures of one contender: medians over the runs, in seconds, µs, messages/s and bytes.

    A load has None if it was kept up with in no more than half of the runs.
    """
    made: Result = {}
    if held := samples.get("held"):
        made["held"] = statistics.median(rate or 0.0 for rate in held) or None
        made["held_runs"] = list(held)
    for figure in ("put", "await", "memory", "burst"):
        if results := samples.get(figure):
            made |= {name: value for name, value in medians(list(results)).items() if name != "early"}
    for figure in _LOADS:
        results = samples.get(figure, ())
        good = [result for result in results if kept_up(result)]
        made[figure] = medians(good) if 2 * len(good) > len(results) else None
    shares = [load["waited_share"] for figure in _LOADS if (load := made[figure]) is not None]
    made["waited_share"] = max((share for share in shares if share is not None), default=None)
    taken = [result for figure in (*_LOADS, "burst") for result in samples.get(figure, ()) if result]
    made["early"] = sum(result["early"] for result in taken)
    return made


def with_ratios(rows: Mapping[str, Result]) -> dict[str, Result]:
    """The rows, each with its ratios to the literal port; None where one of the two is missing."""
    base = values(rows.get(LITERAL, {}))
    return {
        name: {
            **made,
            "ratios": {column: over(value, base[column]) for column, value in values(made).items()},
        }
        for name, made in rows.items()
    }


def values(made: Result) -> dict[str, float | None]:
    """What is compared of a row."""
    columns = {name: made.get(name) for name in ("held", "put_nowait", "drained", "beyond_payload")}
    return {**columns, **{figure: p99(made, figure) for figure in _LOADS}}


def p99(made: Result, figure: str) -> float | None:
    """Lateness, in seconds."""
    load = made.get(figure)
    return None if load is None else load["lateness"]["p99"]


def over(value: float | None, base: float | None) -> float | None:
    """Their ratio, where there is one."""
    return None if value is None or base is None else ratio(value, base)


def targets(rows: Mapping[str, Result]) -> list[Target]:
    """What was aimed at, and what came out."""

    def of(name: str, column: str) -> float | None:
        return values(rows.get(name, {}))[column]

    def milliseconds(name: str, column: str) -> float | None:
        seconds = of(name, column)
        return None if seconds is None else 1e3 * seconds

    def to_literal(name: str, column: str) -> float | None:
        return over(of(name, column), of(LITERAL, column))

    def aimed(name: str, aim: str) -> str:
        held = of(name, "held")
        return aim if held is None else f"{aim}, is {held:,.0f}/s"

    bare = of(BARE, "put_nowait")
    awaited = rows.get(LOCALDELAY, {})
    awaited_less = awaited["await_put"] - awaited["checkpoint"] if "await_put" in awaited else None
    early = sum(made.get("early", 0) for name, made in rows.items() if name in OURS)
    send, batch, lean = (f"{title}: " for title in ("send", "send_batch", "cancellable=False"))
    return [
        Target(
            f"{batch}held / literal port",
            to_literal(BATCH, "held"),
            at_least=5,
            aim=aimed(BATCH, "500,000/s"),
        ),
        Target(
            f"{lean}held / literal port",
            to_literal(BATCH_UNCANCELLABLE, "held"),
            at_least=5,
            aim=aimed(BATCH_UNCANCELLABLE, "500,000/s"),
        ),
        Target(
            f"{send}held / literal port",
            to_literal(LOCALDELAY, "held"),
            at_least=2.5,
            aim=aimed(LOCALDELAY, "150,000/s"),
        ),
        Target(f"{send}p99 at 10k/s / literal port", to_literal(LOCALDELAY, "low"), at_most=0.7),
        Target(f"{batch}p99 at 10k/s / literal port", to_literal(BATCH, "low"), at_most=0.7),
        Target(f"{send}p99 at 100k/s in ms", milliseconds(LOCALDELAY, "high"), at_most=2),
        Target(f"{batch}p99 at 100k/s in ms", milliseconds(BATCH, "high"), at_most=2),
        Target(f"{lean}p99 at 100k/s in ms", milliseconds(BATCH_UNCANCELLABLE, "high"), at_most=2),
        Target(
            f"{lean}put_nowait / bare channel",
            over(of(BATCH_UNCANCELLABLE, "put_nowait"), bare),
            at_most=2,
            aim="1.2",
        ),
        Target("put_nowait / bare channel", over(of(LOCALDELAY, "put_nowait"), bare), at_most=2.5),
        Target("await put less a checkpoint, in µs", awaited_less, at_most=1.5),
        Target(f"{send}p99 with mixed delays in ms", milliseconds(LOCALDELAY, "mixed"), at_most=2),
        Target(f"{batch}p99 with mixed delays in ms", milliseconds(BATCH, "mixed"), at_most=2),
        Target(
            f"{send}p99 with five delays / with one",
            over(of(LOCALDELAY, "five"), of(LOCALDELAY, "low")),
            at_most=1.2,
        ),
        Target(
            f"{batch}p99 with five delays / with one", over(of(BATCH, "five"), of(BATCH, "low")), at_most=1.2
        ),
        Target(
            f"{lean}bytes beyond the payload",
            of(BATCH_UNCANCELLABLE, "beyond_payload"),
            at_most=200,
            aim="120",
        ),
        Target("bytes beyond the payload", of(LOCALDELAY, "beyond_payload"), at_most=260),
        Target("messages sent early", early, at_most=0),
    ]
