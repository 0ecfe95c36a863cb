"""The table that `bench.speed` prints, 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterator

from .contenders import BARE, LITERAL, TITLES
from .samples import Result

_NAME, _COLUMN = 24, 9


def lines(measured: Result) -> Iterator[str]:
    """The whole report, line by line."""
    settings = measured["settings"]
    yield from machine_lines(measured["machine"])
    yield (
        f"medians of {settings['runs']} runs · {settings['seconds']:g} s of load · "
        f"{settings['workers']} workers · seed {settings['seed']}"
    )
    yield from _closed(measured["closed"])
    yield from _memory(measured["memory"])
    for loop in measured["open"]:
        yield from _open(loop, settings)
    yield from target_lines(measured["targets"])


def machine_lines(machine: Result) -> Iterator[str]:
    """What the figures were measured on."""
    yield f"localdelay {machine['localdelay']} · trio {machine['trio']} · {machine['python']}"
    yield f"{machine['system']} · {machine['cores_allowed']} of {machine['cores']} cores"


def _closed(closed: Result) -> Iterator[str]:
    put_floor = closed[BARE]["put_nowait"]
    send_base = closed[LITERAL]["put_take_send"]
    yield ""
    yield _row("CLOSED LOOP", "put_", "× bare", "await", "less the", "put+take", "×literal")
    yield _row("cpu µs a message", "nowait", "channel", "put", "checkp.", "+ send", "port")
    for name, result in closed.items():
        put, awaited, sent = result["put_nowait"], result["await_put"], result["put_take_send"]
        both = ("-", "-") if sent is None else (f"{sent:.2f}", f"{sent / send_base:.2f}")
        cells = (put, put / put_floor, awaited, awaited - result["checkpoint"])
        yield _row(TITLES[name], *(f"{cell:.2f}" for cell in cells), *both)


def _memory(memory: Result) -> Iterator[str]:
    messages = max(result["messages"] for result in memory.values())
    yield ""
    yield f"MEMORY with {messages:,.0f} pending: bytes a message beyond the 500 of its payload"
    for name, result in memory.items():
        beyond = result["beyond_payload"]
        yield _row(TITLES[name], "unknown" if beyond is None else f"{beyond:.0f}")


def _open(loop: Result, settings: Result) -> Iterator[str]:
    low, high = settings[loop["delays"]]
    span = f"{low:g} s" if low == high else f"{low:g}-{high:g} s"
    yield ""
    yield f"OPEN LOOP {loop['rate']:,.0f}/s, {loop['delays']} delay {span}: lateness in ms"
    yield _row("", "p50", "p90", "p99", "p99.9", "max", "cpu µs")
    notes: list[str] = []
    for name, result in loop["contenders"].items():
        title = TITLES[name]
        yield _row(title, *_milliseconds(result["lateness"]), f"{result['cpu_us']:.1f}")
        if result["own"] is not None:
            yield _row("  its own statistics", *_milliseconds(result["own"]["lateness"]))
        yield _row("  the generator's puts", *_milliseconds(result["put_lateness"]))
        held = f"{title}: held in {result['held_runs']} of {settings['runs']} runs"
        if result["waited_share"] is not None:
            held += f"; others had its core for {100 * result['waited_share']:.1f} %"
        notes.append(held)
        if result["unsent"] or result["early"]:
            notes.append(
                f"{title}: {result['unsent']:,.0f} of {result['offered']:,.0f} not sent in time, "
                f"{result['early']:,.0f} early"
            )
    yield _row("generator alone", *"     ", f"{loop['generator_cpu_us']:.1f}")
    p99, cpu = loop["p99_ratio"], loop["cpu_ratio"]
    if p99 is not None and cpu is not None:
        notes.append(f"localdelay / literal port: p99 {p99:.3g}, cpu {cpu:.2f}")
    yield from (f"  {note}" for note in notes)


def target_lines(targets: list[Result]) -> Iterator[str]:
    """What was aimed at, and what came out."""
    yield ""
    yield "TARGETS"
    yield from (f"  {target['line']}" for target in targets)


def _milliseconds(summary: Result) -> list[str]:
    return [_short(1e3 * summary[name]) for name in ("p50", "p90", "p99", "p999", "max")]


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _row(name: str, *cells: str) -> str:
    return f"{name:<{_NAME}}{''.join(f'{cell:>{_COLUMN}}' for cell in cells)}".rstrip()
