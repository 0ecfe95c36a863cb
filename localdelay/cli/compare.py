"""`localdelay compare`: queues in memory and in Redis, plain ones and localdelay's, under the same load."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from localdelay.benchmark import plot
from localdelay.benchmark.compare import run
from localdelay.benchmark.comparison import CARRIED_P99, Comparison, Cost, Found, Plan, Report, formula
from localdelay.benchmark.meter import INTERVAL
from localdelay.cli.options import (
    DURATION,
    delays_in_words,
    load_options,
    naming_options,
    option,
    picture_option,
    run_options,
)
from localdelay.cli.output import Block, Output, Row, Styled, Table
from localdelay.cli.running import measuring
from localdelay.units import format_duration, format_number, format_size

_DEFAULT = Comparison()
_TITLES = {
    Plan.REDIS_LITERAL: "Redis,\npolled",
    Plan.REDIS: "Redis,\nlocaldelay",
    Plan.MEMORY_LITERAL: "memory,\nsleepers",
    Plan.MEMORY: "memory,\nlocaldelay",
}
NAMES = {plan: title.replace("\n", " ") for plan, title in _TITLES.items()}

_EPILOG = f"""\b
Examples:
  localdelay compare
  localdelay compare --rate 200 --delay 100ms..5s --plot compare.svg
  localdelay compare --redis redis://127.0.0.1:6379/1 --only redis --json

Carried: the highest rate tried at which all was put and sent, with p99 under {format_duration(CARRIED_P99)}.
Lateness and busy are at --rate. Commands are those that the process sends; --json has those
that scripts call inside Redis, too. Cpu is of one core, the load's own share included. Lost is what nobody
has sent when the process is killed half-way and another one goes on.

\b
Exit codes:
  0    compared
  1    the report could not be printed, or the picture not written
  2    wrong options, or it could not run
  130, 143
       stopped by Ctrl-C, SIGTERM; nothing is left behind
"""


@click.command(epilog=_EPILOG, short_help="Compare queues in memory and in Redis.")
@option("--rate", float, "Messages per second: 500, 10k.", _DEFAULT.rate)
@load_options
@option("--seconds", DURATION, "How long to measure, once messages come due.", _DEFAULT.seconds)
@option("--shards", int, "Sorted sets of the Redis plans.", _DEFAULT.shards)
@option("--redis", str, "redis://host:6379, or .../1: database 1.", unset="one of its own", metavar="URL")
@option("--only", click.Choice(list(map(str, Plan))), "A plan; repeatable.", unset="all", multiple=True)
@option("--quick", bool, "Shorter; does not look for the highest rate that is carried.")
@picture_option
@run_options
def compare(*, picture: Path | None, form: str | None, quiet: bool, **options: Any) -> None:
    """Compare queues in memory and in Redis: plain ones, and localdelay's.

    Runs Redis sorted sets that are polled, localdelay's Redis queue, a channel whose workers sleep on
    messages, and localdelay's queue in memory, each in a process of its own under the same load. Takes about
    a minute and a quarter.
    """
    with naming_options():
        settings = Comparison(**options)
    output, begun = Output(), time.monotonic()
    quiet = quiet or form is not None
    with (
        measuring(quiet, "Stopped. No Redis, process or file is left behind.", picture) as teller,
        naming_options(),
    ):

        def step(plan: Plan | None, what: str) -> None:
            plans = settings.only
            where = "all" if plan is None else f"{plans.index(plan) + 1}/{len(plans)} {plan}"
            teller.status([f"{time.monotonic() - begun:4.0f} s", f"{where}: {what}"])

        found = run(settings, step)
    series = [
        plot.Series(NAMES[one.plan], one.intervals, INTERVAL)
        for one in found.found
        if any(interval.counts for interval in one.intervals)
    ]
    title = f"How late sends begin: {_load(settings)}"
    files = (
        {picture: partial(plot.draw, picture, title, _machine(found), series)} if picture and series else {}
    )
    output.report(form, report(found), found.as_json(), files)


def report(found: Report) -> Iterator[Block]:
    """The report."""
    yield Styled(_load(found.settings), "bold")
    yield _machine(found)
    yield ""
    yield Table([_TITLES[one.plan] for one in found.found], list(_rows(found)))
    yield ""
    for one in found.found:
        yield from _trouble(one, found.settings)


def _load(settings: Comparison) -> str:
    rate, delays = format_number(settings.rate), delays_in_words(settings.delays)
    return f"{rate} messages/s of {settings.size:,} bytes, each due after {delays}"


def _machine(found: Report) -> str:
    settings, machine = found.settings, found.machine
    facts = [f"{settings.workers:,} workers", f"{machine.cores} cores", machine.system, machine.python]
    if found.redis is not None:
        facts = [f"{settings.shards:,} shards", *facts, f"Redis {found.redis}"]
    return ", ".join(facts)


def _rows(found: Report) -> Iterator[Row]:
    said = formula(found.settings)
    polled = (said["zrange"] or 0.0) + (said["setnx"] or 0.0)
    formulas = {
        Plan.REDIS_LITERAL: (2 * found.settings.rate + polled, polled),
        Plan.REDIS: (said["redis_commands"], said["redis_commands_idle"]),
    }

    def row(label: str, value: Callable[[Found], Any], shown: Callable[[Any], str], style: str = "") -> Row:
        return Row(label, [value(one) for one in found.found], shown, style=style)

    def redis(value: Callable[[Found], Any]) -> Callable[[Found], Any]:
        return lambda one: value(one) if one.plan.in_redis else None

    def busy(value: Callable[[Cost], Any]) -> Callable[[Found], Any]:
        return lambda one: None if one.busy.cost is None else value(one.busy.cost)

    yield row("messages/s carried", lambda one: one.carried_rate, format_number)
    yield row("lateness p50", lambda one: one.busy.p50, format_duration)
    yield row("lateness p99", lambda one: one.busy.p99, format_duration)
    yield row("lateness max", lambda one: one.busy.longest, format_duration)
    if found.settings.needs_redis:
        yield row("commands/s busy", redis(busy(lambda cost: cost.sent_per_s)), _rate)
        yield row("  by the formula", redis(lambda one: formulas[one.plan][0]), _rate)
        yield row("commands/s idle", redis(lambda one: one.idle.sent_per_s), _rate)
        yield row("  by the formula", redis(lambda one: formulas[one.plan][1]), _rate)
    yield row("cpu busy, process", busy(lambda cost: cost.cpu), _share)
    yield row("cpu busy, Redis", redis(busy(lambda cost: cost.redis_cpu)), _share)
    yield row("cpu idle, process", lambda one: one.idle.cpu, _share)
    yield row("a message, process", lambda one: one.waiting.process_bytes, _bytes)
    yield row("a message, Redis", redis(lambda one: one.waiting.redis_bytes), _bytes)
    wrong = any(one.crash.lost and one.plan.in_redis for one in found.found)
    yield row("lost by kill -9", lambda one: one.crash.lost, format_number, "yellow" if wrong else "")
    yield row("sent twice then", lambda one: one.crash.twice, format_number)


def _trouble(one: Found, settings: Comparison) -> Iterator[str]:
    busy, name = one.busy, NAMES[one.plan]
    if not busy.carried:
        reasons = ["p99 " + ("unknown" if busy.p99 is None else format_duration(busy.p99))]
        if busy.sent < busy.offered:
            reasons.append(f"{busy.offered - busy.sent:,} of {busy.offered:,} not sent in time")
        if busy.early:
            reasons.append(f"{busy.early:,} sent too early: please report it")
        yield f"Not carried at {format_number(settings.rate)}/s: {name} ({', '.join(reasons)})."
    if one.plan.in_redis and one.crash.recovered_in is None:
        yield f"{name}: not all was sent again after the kill."


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _share(value: float) -> str:
    return f"{value * 100:.1f} %" if value < 0.1 else f"{value * 100:.0f} %"


def _bytes(value: float) -> str:
    return format_size(max(0, round(value)))
