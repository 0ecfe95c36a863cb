"""`localdelay compare`: both plans, as written and as built, under the same load."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from localdelay.benchmark import plot
from localdelay.benchmark.compare import BenchError, Stopped, run
from localdelay.benchmark.comparison import Comparison, Plan, Report
from localdelay.benchmark.meter import INTERVAL
from localdelay.cli.bench import parse_delays, parse_picture, parse_rate
from localdelay.cli.compare_report import NAMES, headline, lines
from localdelay.cli.units import DURATION, SIZE, Parsed

_DEFAULT = Comparison()

_EPILOG = """\b
Examples:
  localdelay compare
  localdelay compare --rate 200 --delay 100ms..5s --plot compare.svg
  localdelay compare --redis redis://127.0.0.1:6379/1 --only redis --json

\b
Exit codes:
  0    compared
  2    wrong options, or it could not run
  130  stopped by Ctrl-C; nothing is left behind
"""


class _Failed(click.ClickException):
    """It could not run, or write what it found."""

    exit_code = 2


def parse_one_rate(text: str) -> float:
    """Messages/s, from `500`, `10k` or `1.5M`."""
    first, last = parse_rate(text)
    if first != last:
        raise ValueError(f"{text[:60]!r} is a ramp; write one rate, as 500 or 10k")
    return first


@click.command(epilog=_EPILOG)
@click.option(
    "--rate",
    type=Parsed("rate", parse_one_rate),
    default=_DEFAULT.rate,
    help="Messages per second: 500, 10k.  [default: 1k]",
)
@click.option(
    "--delay",
    "delays",
    type=Parsed("delay", parse_delays),
    default=_DEFAULT.delays,
    help="One delay, a range, or several, at random: 2s, 100ms..5s, 1s,5s.  [default: 2s]",
)
@click.option("--size", type=SIZE, default=_DEFAULT.size, show_default=True, help="Bytes of a payload.")
@click.option(
    "--seconds",
    type=DURATION,
    default=_DEFAULT.seconds,
    help="How long to measure, once messages come due.  [default: 2]",
)
@click.option(
    "--shards", type=int, default=_DEFAULT.shards, show_default=True, help="Sorted sets of the Redis plans."
)
@click.option(
    "--workers", type=int, default=_DEFAULT.workers, show_default=True, help="Sends at the same time."
)
@click.option(
    "--redis",
    metavar="URL",
    help="A Redis for this: redis://host:6379, or .../1 for database 1.  [default: one of its own]",
)
@click.option(
    "--only",
    type=click.Choice([plan.value for plan in Plan]),
    multiple=True,
    help="One plan; can be repeated.  [default: all]",
)
@click.option("--quick", is_flag=True, help="Shorter; does not look for the highest rate that is carried.")
@click.option(
    "--plot", "picture", type=Parsed("file", parse_picture), help="Draw a picture: FILE.svg or FILE.png."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, times in seconds.")
def compare(*, only: tuple[str, ...], picture: Path | None, as_json: bool, **options: Any) -> None:
    """Compare both plans, as they are written and as localdelay builds them.

    Runs Redis sorted sets that are polled, localdelay's Redis queue, a channel whose workers sleep on
    messages, and localdelay's queue in memory, each in a process of its own under the same load. Takes about
    a minute and a quarter.
    """
    # What the library would log is in the report.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    try:
        report = _compare(only, picture, as_json, options)
    except Stopped as stopped:
        _stopped(stopped.signum)
    except KeyboardInterrupt:
        _stopped(signal.SIGINT)
    try:
        # First, so that it is there even if who reads the report leaves before its end.
        if picture is not None:
            _draw(report, picture)
    finally:
        _print(report, as_json)


def _compare(
    only: tuple[str, ...],
    picture: Path | None,
    as_json: bool,
    options: dict[str, Any],
) -> Report:
    if picture is not None and not plot.available():
        raise _Failed("--plot needs matplotlib: pip install 'localdelay[plot]'")
    plans = tuple(Plan(name) for name in only) or tuple(Plan)
    try:
        settings = Comparison(only=plans, **options)
        display = _display(settings, as_json)
        try:
            return run(settings, display)
        finally:
            display.close()
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(" ")
        if name not in options and name != "delay":
            raise
        raise click.BadParameter(reason, param_hint=f"'--{name}'") from error
    except BenchError as error:
        if isinstance(error, Stopped):
            raise
        raise _Failed(str(error)) from error


def _print(report: Report, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
        for line, style in lines(report):
            console.print(line, style=style)


def _draw(report: Report, picture: Path) -> None:
    series = [
        plot.Series(NAMES[found.plan], found.measured.intervals, INTERVAL)
        for found in report.found
        if any(interval.counts for interval in found.measured.intervals)
    ]
    if not series:
        return
    try:
        plot.draw(picture, *headline(report), series)
    except OSError as error:
        raise _Failed(f"{str(picture)!r} can't be written: {error.strerror or error}") from error


def _stopped(signum: int) -> NoReturn:
    click.echo("Stopped. No Redis, process or file is left behind.", err=True)
    sys.exit(128 + signum)


class _Display:
    """Shows nothing."""

    def __init__(self, settings: Comparison) -> None:
        self._plans = settings.plans
        self._begun = time.monotonic()

    def step(self, plan: Plan | None, what: str) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, plan: Plan | None, what: str) -> str:
        where = "all" if plan is None else f"{self._plans.index(plan) + 1}/{len(self._plans)} {plan}"
        return f"{time.monotonic() - self._begun:4.0f} s  {where}: {what}"


class _Lines(_Display):
    """A line a step, for a log or a pipe."""

    def step(self, plan: Plan | None, what: str) -> None:
        click.echo(self._line(plan, what), err=True)


class _LiveLine(_Display):
    """One line that changes."""

    def step(self, plan: Plan | None, what: str) -> None:
        room = shutil.get_terminal_size().columns - 1
        click.echo(f"\r{self._line(plan, what)[:room]}\x1b[K", err=True, nl=False)

    def close(self) -> None:
        click.echo("\r\x1b[K", err=True, nl=False)


def _display(settings: Comparison, as_json: bool) -> _Display:
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return _LiveLine(settings)
    return _Display(settings) if as_json else _Lines(settings)
