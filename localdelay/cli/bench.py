"""`localdelay bench`: how late sends begin, on your machine and with your broker."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from localdelay.benchmark import hlog, plot
from localdelay.benchmark.meter import INTERVAL, Meter
from localdelay.benchmark.result import HELD_P99, Distribution, Result, Settings
from localdelay.benchmark.round import Round
from localdelay.benchmark.run import check, run
from localdelay.brokers import without_secrets
from localdelay.cli.options import (
    DURATION,
    OUTPUT,
    RATE,
    Parsed,
    delays_in_words,
    load_options,
    naming_options,
    option,
    picture_option,
    run_options,
)
from localdelay.cli.output import Block, Output, Row, Styled, Table
from localdelay.cli.running import measuring
from localdelay.cli.terminal import Teller, stopped
from localdelay.lateness import Latencies
from localdelay.units import counted, format_duration, format_number

_COLUMNS = {
    "p50": "p50",
    "p90": "p90",
    "p99": "p99",
    "p999": "p99.9",
    "p9999": "p99.99",
    "max": "max",
}

_EPILOG = """\b
Examples:
  localdelay bench --rate 100k --batch 500
  localdelay bench --rate 1k..100k --seconds 60 --plot ramp.svg
  localdelay bench --to nats://127.0.0.1:4222/orders --rate 2k --json

Latency is from when a message was to be put, plus its delay, to when its send began. It holds what the puts
were late (this benchmark's own error) and what the queue was.

\b
Exit codes:
  0    measured
  1    the report could not be printed, or a file of it not written
  2    wrong options, or it could not run
  130, 143
       stopped by Ctrl-C, SIGTERM; what was measured until then is printed
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
@load_options
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
@run_options
def bench(
    *,
    log_file: Path | None,
    picture: Path | None,
    others: Sequence[tuple[str, hlog.Log]],
    form: str | None,
    quiet: bool,
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
    quiet = quiet or form is not None
    with (
        naming_options(settings.to),
        measuring(quiet, "Stopped before anything was measured.", picture) as teller,
    ):

        def watch(one: Round, meter: Meter) -> None:
            teller.show(one.elapsed, lambda: parts(one, meter, settings, teller))

        result = run(settings, watch)
    compared = [(name, Distribution.of(Latencies.together(log.intervals))) for name, log in others]
    shown = result.as_json()
    shown["settings"]["to"] = None if settings.to is None else without_secrets(settings.to)
    shown["compare"] = [{"name": name, "latency": attrs.asdict(found)} for name, found in compared]
    output.report(form, report(result, compared), shown, _files(result, log_file, picture, others))
    if result.stopped_by is not None:
        stopped(result.stopped_by, f"Stopped after {format_duration(result.seconds)}.")


def parts(one: Round, meter: Meter, settings: Settings, teller: Teller) -> list[str]:
    """How far a run is."""
    parts = [
        f"{one.elapsed:.1f} of {settings.expected_seconds:.1f} s",
        f"{teller.rate(one.elapsed, one.put):,.0f}/s put",
        f"{one.pending:,} pending",
        f"{meter.sent:,} sent",
    ]
    return parts if meter.p99 is None else [*parts, f"p99 {format_duration(meter.p99)}"]


def _files(
    result: Result, log_file: Path | None, picture: Path | None, others: Sequence[tuple[str, hlog.Log]]
) -> dict[Path, Callable[[], object]]:
    settings, machine = result.settings, result.machine
    title = f"How late sends begin: {_load(settings)}"
    what = (_how(settings), counted(machine.cores, "core"), machine.python, machine.localdelay)
    facts = _short(", ".join(what), 135)
    files: dict[Path, Callable[[], object]] = {}
    if log_file is not None:
        log = hlog.Log(f"{title}, {facts}", result.began_at, INTERVAL, result.intervals)
        files[log_file] = partial(hlog.write, log_file, log, seconds=result.measured_seconds)
    if picture is not None and result.latency.count:
        series = [plot.Series(log_file.stem if log_file else "this run", result.intervals, INTERVAL)]
        series += [plot.Series(_short(name, 60), log.intervals, log.length) for name, log in others]
        files[picture] = partial(plot.draw, picture, title, facts, series)
    return files


def report(result: Result, others: Sequence[tuple[str, Distribution]]) -> Iterator[Block]:
    """The report; `others` are the names and the latencies of runs to compare with."""
    settings = result.settings
    yield Styled(_load(settings, f" for {format_duration(settings.seconds)}"), "bold")
    yield _how(settings)
    yield ""
    found = [
        ("latency", result.latency),
        ("  puts late", result.put_lateness),
        ("  queue late", result.queue_lateness),
        *([("send time", result.send_time)] if result.send_time.count else []),
        *((_short(name, 17), other) for name, other in others),
    ]
    rows = [
        Row(name, [getattr(times, column) for column in _COLUMNS], format_duration) for name, times in found
    ]
    yield Table(list(_COLUMNS.values()), [rows[0]._replace(style="bold"), *rows[1:]])
    yield ""
    yield _counts(result)
    yield _costs(result)
    yield from _verdict(result)


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder=" ...")


def _load(settings: Settings, how_long: str = "") -> str:
    first, last = settings.rate
    ramp = "" if first == last else f" to {format_number(last)}"
    delays = delays_in_words(settings.delays)
    return f"{format_number(first)}{ramp} messages/s{how_long}, each due after {delays}"


def _how(settings: Settings) -> str:
    batches = "one message a send" if settings.batch is None else f"batches of up to {settings.batch:,}"
    parts = [f"{settings.size:,} bytes", counted(settings.workers, "worker"), batches]
    if settings.to is not None:
        parts.append(f"to {without_secrets(settings.to)}")
    return ", ".join(parts)


def _counts(result: Result) -> str:
    parts = [
        f"{result.put:,} of {result.offered:,} put",
        f"{result.sent:,} sent",
        f"{result.unsent:,} unsent",
        f"{result.early:,} early",
    ]
    if result.refused:
        parts.append(f"{result.refused:,} refused by a full queue")
    if result.dead:
        parts.append(f"{result.dead:,} given up")
    if result.failures:
        parts.append(f"{result.failures:,} failed sends ({result.throttled:,} throttled)")
    return f"{', '.join(parts)}; at most {result.peak_pending:,} pending."


def _costs(result: Result) -> str:
    cpu, share, memory = result.cpu_us_per_message, result.cpu_share, result.resident_bytes_per_pending
    text = ""
    if cpu is not None and share is not None:
        text = f"Cpu {cpu:.3g} us a message, {share:.0%} of a core, load and recording included. "
    if memory is not None:
        text += f"Memory {memory:,.0f} bytes a pending message, payload included."
    return text or "Too few messages to tell what one costs."


def _verdict(result: Result) -> Iterator[str]:
    if result.failure is not None:
        yield f"The last failed send: {_short(result.failure, 200)}"
    most = format_duration(HELD_P99)
    if result.held is None:
        return
    if result.held:
        yield Styled(f"Held: p99 is under {most}, and all was put and sent in time.", "green")
        return
    reasons = []
    if result.latency.p99 is None or result.latency.p99 >= HELD_P99:
        reasons.append(f"p99 is not under {most}")
    if result.sent < result.offered:
        reasons.append(f"{result.offered - result.sent:,} messages were not sent in time")
    if result.early:
        reasons.append("sends began early, which must not happen: please report it")
    yield Styled(f"Not held: {', and '.join(reasons)}.", "yellow")
    if result.held_up_to:
        yield f"Held up to about {format_number(float(f'{result.held_up_to:.2g}'))} messages/s."
    if (result.put_lateness.p99 or 0) >= HELD_P99:
        yield "The puts were late themselves: this process can't put and send at this rate."
