"""What `localdelay compare` says: a table for people, and the words over a picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from localdelay.benchmark.comparison import CARRIED_P99, Comparison, Formula, Found, Plan, Report
from localdelay.cli.loads import delays_in_words
from localdelay.cli.output import Styled, filled, known, row
from localdelay.units import format_duration, format_number, format_size

_row = partial(row, label_width=23, cell_width=14)
TITLES = {
    Plan.REDIS_LITERAL: ("Redis,", "as written"),
    Plan.REDIS: ("Redis,", "localdelay"),
    Plan.MEMORY_LITERAL: ("memory,", "as written"),
    Plan.MEMORY: ("memory,", "localdelay"),
}
NAMES = {plan: " ".join(title) for plan, title in TITLES.items()}
_SETNX = "set"
"""The command that SETNX with an expiry is."""


def lines(report: Report) -> Iterator[str]:
    """The report, at most 79 columns wide."""
    settings = report.settings
    yield from filled(_load(settings), "bold")
    yield from filled(_machine(report))
    yield ""
    yield from _table(report)
    if report.of(Plan.REDIS_LITERAL) or report.of(Plan.REDIS):
        yield ""
        yield from _formulas(report)
    yield ""
    yield from _notes(report)


def headline(report: Report) -> tuple[str, str]:
    """The two lines over the picture."""
    return f"How late sends begin: {_load(report.settings)}", _machine(report)


def _load(settings: Comparison) -> str:
    rate, delays = format_number(settings.rate), delays_in_words(settings.delays)
    return f"{rate} messages/s of {settings.size:,} bytes, each due after {delays}"


def _machine(report: Report) -> str:
    settings, machine = report.settings, report.machine
    facts = []
    if settings.needs_redis:
        facts.append(f"{settings.shards:,} shards")
    facts += [f"{settings.workers:,} workers", f"{machine.cores} cores", machine.system, machine.python]
    if report.redis is not None:
        facts.append(f"Redis {report.redis}")
    return ", ".join(facts)


def _table(report: Report) -> Iterator[str]:
    found = report.found
    for part in (0, 1):
        yield Styled(_row("", [TITLES[one.plan][part] for one in found]), "bold")
    rows: list[tuple[str, Callable[[Found], str]]] = [
        ("messages/s carried", lambda one: known(one.measured.carried_rate, format_number, "none")),
        ("lateness p50", lambda one: _duration(one.measured.busy.p50)),
        ("lateness p99", lambda one: _duration(one.measured.busy.p99)),
        ("lateness max", lambda one: _duration(one.measured.busy.longest)),
        ("commands/s busy", lambda one: _of_redis(one, _busy(one, "sent_per_s", _rate))),
        ("  scripts' own too", lambda one: _of_redis(one, _busy(one, "inside_per_s", _rate))),
        ("  for each message", lambda one: _of_redis(one, _busy(one, "sent_per_message", "{:.2f}".format))),
        ("commands/s idle", lambda one: _of_redis(one, _rate(one.measured.idle.sent_per_s))),
        ("cpu busy, process", lambda one: _busy(one, "cpu", _share)),
        ("cpu busy, Redis", lambda one: _of_redis(one, _busy(one, "redis_cpu", _share))),
        ("cpu idle, process", lambda one: _share(one.measured.idle.cpu)),
        ("a message, process", lambda one: _bytes(one.measured.waiting.process_bytes)),
        ("a message, Redis", lambda one: _of_redis(one, _bytes(one.measured.waiting.redis_bytes))),
        ("lost by kill -9", lambda one: f"{one.crash.lost:,}"),
        ("sent twice then", lambda one: f"{one.crash.twice:,}"),
    ]
    for label, cell in rows:
        wrong = label.startswith("lost") and any(one.crash.lost and one.plan.in_redis for one in found)
        line = _row(label, [cell(one) for one in found])
        yield Styled(line, "yellow") if wrong else line


def _formulas(report: Report) -> Iterator[str]:
    formula = Formula.of(report.settings)
    literal, ours = report.of(Plan.REDIS_LITERAL), report.of(Plan.REDIS)
    yield Styled(_row("Commands/s to Redis", ["formula", "measured"]), "bold")
    if literal is not None:
        cost = literal.measured.busy.cost
        calls = {} if cost is None else cost.calls_per_s
        for name, rate, command in (
            ("zadd", formula.zadd, "zadd"),
            ("zrange", formula.zrange, "zrange"),
            ("setnx", formula.setnx, _SETNX),
            ("zrem", formula.zrem, "zrem"),
        ):
            yield _row(f"  as written, {name}", [_rate(rate), _rate(calls.get(command, 0.0))])
    if ours is not None:
        busy, idle = _busy(ours, "sent_per_s", _rate), _rate(ours.measured.idle.sent_per_s)
        yield _row("  localdelay, all", [known(formula.redis_commands, _rate), busy])
        yield _row("  localdelay, idle", [_rate(formula.redis_commands_idle), idle])


def _notes(report: Report) -> Iterator[str]:
    found = report.found
    stored = max(one.crash.stored for one in found)
    waiting = max(one.measured.waiting.messages for one in found)
    rate = format_number(report.settings.rate)
    search = "the rate asked for, if all" if report.settings.quick else "the highest rate tried at which all"
    notes = [
        f"Carried: {search} was put and sent, with p99 under {format_duration(CARRIED_P99)}. "
        f"Lateness and busy: at {rate}/s. Commands: what the process sends; the line below has what "
        f"scripts call inside Redis, too. Cpu: of one core, the load's own share included. A message: bytes "
        f"of memory that one takes while {waiting:,} wait.",
        f"Lost: of some {stored:,} messages, when the process is killed half-way and another one goes on.",
    ]
    for one in found:
        busy = one.measured.busy
        if not busy.carried:
            reasons = [f"p99 {_duration(busy.p99)}"]
            if busy.sent < busy.offered:
                reasons.append(f"{busy.offered - busy.sent:,} of {busy.offered:,} not sent in time")
            if busy.early:
                reasons.append(f"{busy.early:,} sent too early: please report it")
            notes.append(f"Not carried at {rate}/s: {NAMES[one.plan]} ({', '.join(reasons)}).")
        if one.plan.in_redis and one.crash.recovered_in is None:
            notes.append(f"{NAMES[one.plan]}: not all was sent again after the kill.")
    for note in notes:
        yield from filled(note)


def _busy(one: Found, name: str, shown: Callable[[float], str]) -> str:
    cost = one.measured.busy.cost
    return "-" if cost is None else known(getattr(cost, name), shown)


def _of_redis(one: Found, text: str) -> str:
    return text if one.plan.in_redis else "-"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _share(value: float) -> str:
    return f"{value * 100:.1f} %" if value < 0.1 else f"{value:.0%}".replace("%", " %")


def _bytes(value: float | None) -> str:
    return known(value, lambda size: format_size(max(0, round(size))))


def _duration(value: float | None) -> str:
    return known(value, format_duration)
