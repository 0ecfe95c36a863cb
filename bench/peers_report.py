"""The tables that `bench.peers` prints, less than 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from .contenders import BARE, BATCH, BATCH_UNCANCELLABLE, CALL_AT, LITERAL, LOCALDELAY, TASKS, THREADS
from .foreign import GO, JAVA
from .report import machine_lines, target_lines
from .samples import Result

_NAME, _VALUE, _RATIO = 29, 11, 6

TITLES = {
    GO: "Go: channel, 20 goroutines",
    JAVA: "Java: DelayQueue, 20 threads",
    LITERAL: "literal port: channel on Trio",
    TASKS: "Trio, a task per message",
    CALL_AT: "asyncio, call_at per message",
    THREADS: "threads, heapq + Condition",
    LOCALDELAY: "localdelay, send",
    BATCH: "localdelay, send_batch",
    BATCH_UNCANCELLABLE: "  with cancellable=False",
    BARE: "bare memory channel",
}


def lines(measured: Result) -> Iterator[str]:
    """The whole report, line by line."""
    settings, rows = measured["settings"], measured["rows"]
    low, high = settings["mixed"]
    yield from machine_lines(measured["machine"])
    yield (
        f"medians of {settings['runs']} runs · loads of {settings['seconds']:g} s, each message of 500 bytes "
        f"due after {settings['delay']:g} s,"
    )
    yield f"mixed delays {low:g}-{high:g} s, seed {settings['seed']} · {settings['workers']} workers"
    yield "fails: not all put and sent on time · ×: over the literal port of the same run"
    yield ""
    yield _line("OPEN LOOP", ("held", ""), ("p99 at", ""), ("p99 at", ""), ("p99 mixed", ""))
    yield _line("", ("/s", "×"), (f"{_k(settings['low'])}/s ms", "×"), (f"{_k(settings['high'])}/s ms", "×"),
                (f"{_k(settings['low'])}/s ms", "×"))  # fmt: skip
    for name in TITLES:
        made = rows.get(name)
        if made is None or name == BARE:
            continue
        if "unavailable" in made:
            yield f"{TITLES[name]:<{_NAME}}  {made['unavailable']}"
            continue
        ratios = made["ratios"]
        held = "none" if made["held"] is None else f"{made['held']:,.0f}"
        loads = [(_p99(made[figure]), _times(ratios[figure])) for figure in ("low", "high", "mixed")]
        yield _line(TITLES[name], (held, _times(ratios["held"])), *loads)
    yield ""
    yield _line("CLOSED LOOP, AND MEMORY", ("put", ""), ("all due at", ""), ("beyond 500", ""))
    yield _line("", ("µs cpu", "×"), ("once, /s", "×"), ("bytes", "×"))
    for name in TITLES:
        made = rows.get(name)
        if made is None or "unavailable" in made:
            continue
        cells = [
            (_number(made.get(column), form), _times(made["ratios"][column]))
            for column, form in (("put_nowait", ".2f"), ("drained", ",.0f"), ("beyond_payload", ",.0f"))
        ]
        yield _line(TITLES[name], *cells)
    yield from _notes(rows)
    yield from target_lines(measured["targets"])


def _notes(rows: dict[str, Result]) -> Iterator[str]:
    """What stands in no column."""
    yield ""
    shares = [made["waited_share"] for made in rows.values() if made.get("waited_share") is not None]
    if shares:
        yield f"other programs had a contender's core for up to {100 * max(shares):.1f} % of its loads"
    for name, made in rows.items():
        if "await_put" in made:
            yield (
                f"{TITLES[name].strip()}: await put {made['await_put']:.2f} µs (a checkpoint "
                f"{made['checkpoint']:.2f}); five delays: p99 {_p99(made['five'])} ms"
            )


def _line(name: str, *cells: tuple[str, str]) -> str:
    columns = "".join(f"{value:>{_VALUE}}{times:>{_RATIO}}" for value, times in cells)
    return f"{name:<{_NAME}}{columns}".rstrip()


def _p99(load: Result | None) -> str:
    if load is None:
        return "fails"
    value = 1e3 * load["lateness"]["p99"]
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _times(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return "<0.01" if ratio < 0.01 else f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _k(rate: float) -> str:
    return f"{rate / 1000:g}k"
