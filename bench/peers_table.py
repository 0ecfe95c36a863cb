"""What the samples of `bench.peers` come to: the rows of its table, and its targets. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .contenders import (
    AIO,
    BARE,
    BATCH,
    CALL_AT_TASK,
    CLOSED_BREAKER,
    CONTENDERS,
    HEAP,
    LEAN,
    LITERAL,
    LOCALDELAY,
    OPEN_BREAKER,
    THREADS,
)
from .figures import Figure
from .samples import Result, heading, median, medians, ms, shown, table, targets

OURS = tuple(name for name in CONTENDERS if name.startswith("localdelay"))
LOADS = ("low", "high", "mixed", "five")
_HIGH_IS_BEST = frozenset({"held", "puts", "drained", "producers"})
_KEPT = ("offered", "put", "sent", "twice", "early", "held", "cpu_us", "waited_share")


def kept_up(result: Result) -> bool:
    """Whether a load was put, and all of it was sent: only then do its percentiles mean something."""
    return "failed" not in result and result["sent"] == result["offered"] and not result["early"]


def compact(samples: Mapping[str, Sequence[Any]]) -> Result:
    """What the file keeps of each run."""
    return {
        figure: [_compact_load(result) if figure in LOADS else result for result in results]
        for figure, results in samples.items()
    }


def _compact_load(result: Result) -> Result:
    if "failed" in result:
        return result
    times = {f"{what}_{share}": result[what][share] for what in ("latency", "put_lateness")
             for share in ("p50", "p99", "max")}  # fmt: skip
    return {name: result[name] for name in _KEPT if name in result} | times


def row(samples: Mapping[str, Sequence[Any]]) -> Result:
    """The figures of one contender: medians over the runs, in seconds, µs, messages/s and bytes.

    A run that failed is in them, as the worst; None: the median is a run that failed. `failed` has how many
    runs of each figure did, and `early` what all of them have sent early.
    """
    made: Result = {"failed": {}, "early": 0}
    for figure, results in samples.items():
        if figure == "held":
            made["held"] = median(list(results), highest_is_best=True)
            made["failed"]["held"] = sum(rate is None for rate in results)
        elif figure in LOADS:
            p99s = [result["latency"]["p99"] if kept_up(result) else None for result in results]
            made[figure] = median(p99s)
            made["failed"][figure] = sum(p99 is None for p99 in p99s)
            made["early"] += sum(result.get("early", 0) for result in results)
        else:
            made |= medians(results, _HIGH_IS_BEST)
            made["failed"][figure] = sum("failed" in result for result in results)
    return made


def lines(measured: Result) -> Iterator[str]:
    """The README's table, what stands in no column, and the targets."""
    settings, rows = measured["settings"], measured["rows"]
    low, high = (f"{settings[which] / 1000:g}k" for which in ("low", "high"))
    waited = _most_waited(measured["runs"])
    others = "" if waited is None else f"; others had a contender's core for up to {waited:.1%} of a load"
    yield (
        f"{heading(measured)}; medians of {settings['runs']} runs, a run that failed counted as the worst"
        f"{others}; raw: [results/peers.json](results/peers.json)."
    )
    yield ""
    head = ["", "held /s", f"p99 at {low}/s", f"p99 at {high}/s", "p99 mixed", "put", "all due at once"]
    yield from table([*head, "beyond 500 B"], _open_rows(rows))
    yield ""
    yield from table(["", "µs a call", "the same without a checkpoint"], _await_rows(rows))
    yield ""
    producing = ((name, made) for name, made in rows.items() if "producers" in made)
    head = ["", "puts/s by one thread", "by eight, while they fall due"]
    yield from table(
        head,
        ([CONTENDERS[name].title, shown(made["puts"]), shown(made["producers"])] for name, made in producing),
    )
    yield from targets(found(rows))


def _most_waited(runs: Mapping[str, Result]) -> float | None:
    loads = (load for taken in runs.values() for figure in LOADS for load in taken.get(figure, ()))
    shares = [share for load in loads if (share := load.get("waited_share")) is not None]
    return max(shares, default=None)


def _open_rows(rows: Mapping[str, Result]) -> Iterator[list[str]]:
    for name, made in rows.items():
        figures = CONTENDERS[name].figures
        if "unavailable" in made:
            yield [CONTENDERS[name].title, made["unavailable"], *[""] * 6]
        elif {"held", "put", "memory"} & set(figures):
            cells = {
                "held": shown(made.get("held")),
                **{which: shown(ms(made.get(which)), ".2f", " ms") for which in ("low", "high", "mixed")},
                "put": shown(made.get("put_us"), ".2f", " µs"),
                "burst": shown(made.get("drained"), ",.0f", "/s"),
                "memory": shown(made.get("beyond_payload"), ",.0f", " B"),
            }
            yield [
                CONTENDERS[name].title,
                *(_told(text, made, figure) if figure in figures else "" for figure, text in cells.items()),
            ]


def _told(text: str, made: Result, figure: str) -> str:
    """A figure of which some runs failed says so, though its median did not."""
    failed = made["failed"].get(figure, 0)
    return text if text == "fails" or not failed else f"{text} ({failed} failed)"


def _await_rows(rows: Mapping[str, Result]) -> Iterator[list[str]]:
    for name, made in rows.items():
        if "await_us" in made:
            less = _less(made["await_us"], made["checkpoint_us"])
            yield [CONTENDERS[name].title, shown(made["await_us"], ".2f"), shown(less, ".2f")]


def _less(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base


def found(rows: Mapping[str, Result]) -> list[Figure]:
    """What is aimed at, and what came out."""

    def of(name: str, column: str) -> float | None:
        """None: not measured. What failed is as bad as can be."""
        made = rows.get(name, {})
        if column not in made:
            return None
        worst = 0.0 if column in _HIGH_IS_BEST else math.inf
        value: float | None = made[column]
        return worst if value is None else value

    def over(name: str, column: str, base: str, of_base: str | None = None) -> float | None:
        value, below = of(name, column), of(base, of_base or column)
        return None if value is None or not below or math.isinf(below) else value / below

    early = sum(made.get("early", 0) for name, made in rows.items() if name in OURS)
    awaited = _less(of(LOCALDELAY, "await_us"), of(LOCALDELAY, "checkpoint_us"))
    send, batch, lean = "send: ", "send_batch: ", "cancellable=False: "
    return [
        Figure(f"{batch}held / literal port", over(BATCH, "held", LITERAL), at_least=5),
        Figure(f"{lean}held / literal port", over(LEAN, "held", LITERAL), at_least=5),
        Figure(f"{send}held / literal port", over(LOCALDELAY, "held", LITERAL), at_least=2.5),
        Figure(f"{send}p99 at 10k/s / literal port", over(LOCALDELAY, "low", LITERAL), at_most=0.7),
        Figure(f"{batch}p99 at 10k/s / literal port", over(BATCH, "low", LITERAL), at_most=0.7),
        Figure(f"{send}p99 at 100k/s in ms", ms(of(LOCALDELAY, "high")), at_most=2),
        Figure(f"{batch}p99 at 100k/s in ms", ms(of(BATCH, "high")), at_most=2),
        Figure(f"{lean}p99 at 100k/s in ms", ms(of(LEAN, "high")), at_most=2),
        Figure(f"{lean}put_nowait / bare channel", over(LEAN, "put_us", BARE), at_most=2),
        Figure("put_nowait / bare channel", over(LOCALDELAY, "put_us", BARE), at_most=2.5),
        Figure("await put less a checkpoint, in µs", awaited, at_most=1.5),
        Figure(f"{send}p99 with mixed delays in ms", ms(of(LOCALDELAY, "mixed")), at_most=2),
        Figure(f"{batch}p99 with mixed delays in ms", ms(of(BATCH, "mixed")), at_most=2),
        Figure(
            f"{send}p99 with five delays / with one", over(LOCALDELAY, "five", LOCALDELAY, "low"), at_most=1.2
        ),
        Figure(f"{batch}p99 with five delays / with one", over(BATCH, "five", BATCH, "low"), at_most=1.2),
        Figure(f"{lean}bytes beyond the payload", of(LEAN, "beyond_payload"), at_most=200),
        Figure("bytes beyond the payload", of(LOCALDELAY, "beyond_payload"), at_most=260),
        Figure("a publish, primary takes all, in µs", of(CLOSED_BREAKER, "await_us"), at_most=15),
        Figure("a publish, breaker open, in µs", of(OPEN_BREAKER, "await_us"), at_most=15),
        Figure("threads: all due at once /s", of(THREADS, "drained"), at_least=100_000),
        Figure("threads: held /s", of(THREADS, "held"), at_least=60_000),
        Figure("threads: held / heapq and a Condition", over(THREADS, "held", HEAP), at_least=1),
        Figure("threads: puts/s by one", of(THREADS, "puts"), at_least=100_000),
        Figure("threads: puts/s by eight, while they fall due", of(THREADS, "producers"), at_least=60_000),
        Figure("aio: all due at once /s", of(AIO, "drained"), at_least=110_000),
        Figure("aio: held /s", of(AIO, "held"), at_least=60_000),
        Figure("aio: held / call_at and a task", over(AIO, "held", CALL_AT_TASK), at_least=1),
        Figure("messages sent early", early, at_most=0),
    ]
