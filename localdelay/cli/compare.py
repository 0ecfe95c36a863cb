"""`localdelay compare`: both plans, as written and as built, under the same load."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from localdelay.benchmark import plot
from localdelay.benchmark.compare import run
from localdelay.benchmark.comparison import Comparison, Plan, Report
from localdelay.benchmark.meter import INTERVAL
from localdelay.cli.compare_report import NAMES, headline, lines
from localdelay.cli.loads import DELAYS, ONE_RATE, measuring, picture_option, written
from localdelay.cli.options import DURATION, SIZE, naming_options, option
from localdelay.cli.output import Output
from localdelay.cli.terminal import Failed, Teller

_DEFAULT = Comparison()

_EPILOG = """\b
Examples:
  localdelay compare
  localdelay compare --rate 200 --delay 100ms..5s --plot compare.svg
  localdelay compare --redis redis://127.0.0.1:6379/1 --only redis --json

\b
Exit codes:
  0    compared
  1    the report could not be printed
  2    wrong options, or it could not run
  130  stopped by Ctrl-C; nothing is left behind
"""


@click.command(epilog=_EPILOG)
@option("--rate", ONE_RATE, "Messages per second: 500, 10k.", _DEFAULT.rate)
@option(
    "--delay delays",
    DELAYS,
    "One delay, a range, or several, at random: 2s, 100ms..5s, 1s,5s.",
    _DEFAULT.delays,
)
@option("--size", SIZE, "Bytes of a payload.", _DEFAULT.size)
@option("--seconds", DURATION, "How long to measure, once messages come due.", _DEFAULT.seconds)
@option("--shards", int, "Sorted sets of the Redis plans.", _DEFAULT.shards)
@option("--workers", int, "Sends at the same time.", _DEFAULT.workers)
@option(
    "--redis",
    str,
    "A Redis for this: redis://host:6379, or .../1 for database 1.",
    unset="one of its own",
    metavar="URL",
)
@option(
    "--only",
    click.Choice([plan.value for plan in Plan]),
    "One plan; can be repeated.",
    unset="all",
    multiple=True,
)
@option("--quick", bool, "Shorter; does not look for the highest rate that is carried.")
@picture_option
@option("--json as_json", bool, "Print one JSON object, times in seconds.")
def compare(*, only: tuple[str, ...], picture: Path | None, as_json: bool, **options: Any) -> None:
    """Compare both plans, as they are written and as localdelay builds them.

    Runs Redis sorted sets that are polled, localdelay's Redis queue, a channel whose workers sleep on
    messages, and localdelay's queue in memory, each in a process of its own under the same load. Takes about
    a minute and a quarter.
    """
    with naming_options():
        settings = Comparison(only=tuple(Plan(name) for name in only) or tuple(Plan), **options)
    output = Output()
    with (
        measuring(picture, as_json, "Stopped. No Redis, process or file is left behind.") as teller,
        naming_options(),
    ):
        report = run(settings, _Display(settings, teller))
    try:
        # First, so that it is there even if who reads the report leaves before its end.
        if picture is not None:
            _draw(report, picture)
    finally:
        output.text([json.dumps(report.as_json(), indent=2)] if as_json else lines(report))


class _Display:
    """What is done just now."""

    def __init__(self, settings: Comparison, teller: Teller) -> None:
        self._plans = settings.plans
        self._teller = teller
        self._begun = time.monotonic()

    def step(self, plan: Plan | None, what: str) -> None:
        """Show it."""
        where = "all" if plan is None else f"{self._plans.index(plan) + 1}/{len(self._plans)} {plan}"
        self._teller.status([f"{time.monotonic() - self._begun:4.0f} s", f"{where}: {what}"])


def _draw(report: Report, picture: Path) -> None:
    series = [
        plot.Series(NAMES[found.plan], found.measured.intervals, INTERVAL)
        for found in report.found
        if any(interval.counts for interval in found.measured.intervals)
    ]
    failure = written(picture, lambda: plot.draw(picture, *headline(report), series)) if series else None
    if failure is not None:
        raise Failed(failure)
