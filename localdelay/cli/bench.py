"""`localdelay bench`: how late sends begin, on your machine and with your broker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from localdelay.benchmark import hlog, plot
from localdelay.benchmark.meter import INTERVAL
from localdelay.benchmark.result import Distribution, Result, Settings
from localdelay.benchmark.run import Progress, check, run
from localdelay.brokers import without_secrets
from localdelay.cli.bench_report import headline, in_words, legend, lines
from localdelay.cli.loads import DELAYS, RATE, measuring, picture_option, written
from localdelay.cli.options import DURATION, OUTPUT, SIZE, Parsed, naming_options, option
from localdelay.cli.output import Output
from localdelay.cli.terminal import Failed, Status, Teller, stopped
from localdelay.lateness import Latencies
from localdelay.units import format_duration

_LINE_EVERY = 1.0  # seconds

_EPILOG = """\b
Examples:
  localdelay bench --rate 100k --batch 500
  localdelay bench --rate 1k..100k --seconds 60 --plot ramp.svg
  localdelay bench --to nats://127.0.0.1:4222/orders --rate 2k --json

\b
Exit codes:
  0    measured
  1    the report could not be printed
  2    wrong options, or it could not run
  130  stopped by Ctrl-C; what was measured until then is printed
"""


def parse_log(text: str) -> tuple[str, hlog.Log]:
    """The name and the content of another run's log."""
    path = Path(text)
    try:
        return path.stem, hlog.read(path)
    except OSError as error:
        raise ValueError(f"{text!r} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{text!r} can't be used: {error}") from error


_DEFAULT = Settings()


@click.command(epilog=_EPILOG)
@option("--to", str, "The broker to send to.", unset="a send that does nothing", metavar="URL")
@option("--rate", RATE, "Messages per second: 500, 10k, 1.5M; or a ramp: 1k..100k.", _DEFAULT.rate)
@option("--seconds", DURATION, "How long to put.", _DEFAULT.seconds)
@option(
    "--delay delays",
    DELAYS,
    "One delay, a range, or several, at random: 2s, 100ms..5s, 1s,5s,30s.",
    _DEFAULT.delays,
)
@option("--size", SIZE, "Bytes of a payload.", _DEFAULT.size)
@option("--workers", int, "Sends at the same time.", _DEFAULT.workers)
@option("--batch", int, "The most messages of one send.", unset="one a send, no batches")
@option("--warmup", DURATION, "A load before, not recorded.", _DEFAULT.warmup)
@option("--seed", int, "Of random delays.", _DEFAULT.seed)
@option("--cancellable/--no-cancellable", bool, "As in open_delay_queue.", True, unset="yes")
@option("--timer", click.Choice(["auto", "trio"]), "What wakes the queue.", "auto")
@option("--hlog log_file", OUTPUT, "Write HdrHistogram's log format, an interval a second.")
@picture_option
@option(
    "--compare others",
    Parsed("file", parse_log),
    "Another run's --hlog, beside this one; can be repeated.",
    multiple=True,
)
@option("--json as_json", bool, "Print one JSON object, times in seconds.")
def bench(
    *,
    log_file: Path | None,
    picture: Path | None,
    others: Sequence[tuple[str, hlog.Log]],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how late sends begin, under an open-loop load.

    Puts messages at a fixed pace, whether or not the earlier ones were sent, and measures from when each
    send should have begun to when it did.
    """
    with naming_options():
        settings = Settings(**options)
        check(settings)
    output = Output()
    with measuring(picture, as_json, "Stopped before anything was measured.") as teller:
        result = run(settings, _Display(settings, teller))
    try:
        # First, so that they are there even if who reads the report leaves before its end.
        _write(result, log_file, picture, others)
    finally:
        _print(output, result, others, as_json)
    if result.stopped_by is not None:
        stopped(result.stopped_by, f"Stopped after {format_duration(result.seconds)}.")


class _Display:
    """How far a run is."""

    def __init__(self, settings: Settings, teller: Teller) -> None:
        self._whole = settings.expected_seconds
        self._status = Status(teller, every=_LINE_EVERY)
        self._before = (0.0, 0)

    def progress(self, progress: Progress) -> None:
        """Show it, unless that was just shown."""
        self._status.show(progress.elapsed, partial(self._parts, progress))

    def _parts(self, progress: Progress) -> list[str]:
        elapsed, put = self._before
        self._before = progress.elapsed, progress.put
        rate = (progress.put - put) / max(1e-9, progress.elapsed - elapsed)
        parts = [
            f"{progress.elapsed:.1f} of {self._whole:.1f} s",
            f"{rate:,.0f}/s put",
            f"{progress.pending:,} pending",
            f"{progress.sent:,} sent",
        ]
        return parts if progress.p99 is None else [*parts, f"p99 {format_duration(progress.p99)}"]


def _write(
    result: Result, log_file: Path | None, picture: Path | None, others: Sequence[tuple[str, hlog.Log]]
) -> None:
    facts = in_words(result.settings)
    failures = []
    if log_file is not None:
        log = hlog.Log(facts, result.began_at, INTERVAL, result.intervals)
        failures.append(written(log_file, lambda: hlog.write(log_file, log, seconds=result.measured_seconds)))
    if picture is not None and result.latency.count:
        name = log_file.stem if log_file else "this run"
        series = [plot.Series(name, result.intervals, INTERVAL)]
        series += [
            plot.Series(legend(name, log.facts, facts), log.intervals, log.length) for name, log in others
        ]
        failures.append(written(picture, lambda: plot.draw(picture, *headline(result), series)))
    if any(failures):
        raise Failed("; ".join(filter(None, failures)))


def _print(output: Output, result: Result, others: Sequence[tuple[str, hlog.Log]], as_json: bool) -> None:
    compared = [(name, Distribution.of(Latencies.together(log.intervals))) for name, log in others]
    if not as_json:
        output.text(lines(result, compared))
        return
    shown = result.as_json()
    if result.settings.to is not None:
        shown["settings"]["to"] = without_secrets(result.settings.to)
    shown["compare"] = [{"name": name, "latency": attrs.asdict(found)} for name, found in compared]
    output.text([json.dumps(shown, indent=2)])
