"""`localdelay bench`: how late sends begin, on your machine and with your broker."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import attrs
import click
from rich.console import Console

from localdelay.benchmark import hlog, plot
from localdelay.benchmark.load import Delays
from localdelay.benchmark.meter import INTERVAL
from localdelay.benchmark.result import Distribution, Result, Settings
from localdelay.benchmark.run import BenchError, Progress, Stopped, check, run
from localdelay.brokers import without_secrets
from localdelay.cli.bench_report import headline, in_words, legend, lines
from localdelay.cli.files import parse_output
from localdelay.cli.units import DURATION, SIZE, Parsed, format_duration, parse_duration
from localdelay.lateness import Latencies

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6}
_RATE = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([km]?)\s*", re.IGNORECASE)
_LINE_EVERY = 1.0
_LIVE_EVERY = 0.5

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


class _Failed(click.ClickException):
    """It could not run, or say what it found."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """In one line, if there is where to."""
        _tell(f"Error: {self.format_message()}")


class _NotPrinted(_Failed):
    """It ran, and nobody can see the report."""

    exit_code = 1


def parse_rate(text: str) -> tuple[float, float]:
    """Messages/s at the beginning and at the end, from `500`, `10k`, `1.5M` or `1k..100k`."""
    parts = [_RATE.fullmatch(part) for part in text.split("..", 1)] if len(text) < 100 else [None]
    first, last = parts[0], parts[-1]
    if first is None or last is None:
        raise ValueError(f"{text[:60]!r} is no rate; write 500, 10k, 1.5M or 1k..100k")
    return tuple(float(part[1]) * _SUFFIXES[part[2].lower()] for part in (first, last))  # type: ignore[return-value]


def parse_delays(text: str) -> Delays:
    """The delays, from one, as in `2s`, a range, as in `100ms..5s`, or several, as in `1s,5s,30s`."""
    if ".." in text:
        return Delays(tuple(map(parse_duration, text.split("..", 1))), is_range=True)
    return Delays(tuple(map(parse_duration, text.split(","))))


def parse_picture(text: str) -> Path:
    """A file for a picture: SVG or PNG."""
    path = parse_output(text)
    if path.suffix.lower() not in plot.SUFFIXES:
        raise ValueError(f"{text!r} must end in {' or '.join(plot.SUFFIXES)}")
    return path


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
@click.option("--to", metavar="URL", help="The broker to send to.  [default: a send that does nothing]")
@click.option(
    "--rate",
    type=Parsed("rate", parse_rate),
    default=_DEFAULT.rate,
    help="Messages per second: 500, 10k, 1.5M; or a ramp: 1k..100k.  [default: 10k]",
)
@click.option("--seconds", type=DURATION, default=_DEFAULT.seconds, help="How long to put.  [default: 10]")
@click.option(
    "--delay",
    "delays",
    type=Parsed("delay", parse_delays),
    default=_DEFAULT.delays,
    help="One delay, a range, or several, at random: 2s, 100ms..5s, 1s,5s,30s.  [default: 2s]",
)
@click.option("--size", type=SIZE, default=_DEFAULT.size, show_default=True, help="Bytes of a payload.")
@click.option(
    "--workers", type=int, default=_DEFAULT.workers, show_default=True, help="Sends at the same time."
)
@click.option("--batch", type=int, help="The most messages of one send.  [default: one a send, no batches]")
@click.option(
    "--warmup", type=DURATION, default=_DEFAULT.warmup, help="A load before, not recorded.  [default: 1]"
)
@click.option("--seed", type=int, default=_DEFAULT.seed, show_default=True, help="Of random delays.")
@click.option("--cancellable/--no-cancellable", default=True, help="As in open_delay_queue.  [default: yes]")
@click.option("--timer", type=click.Choice(["auto", "trio"]), default="auto", show_default=True)
@click.option(
    "--hlog",
    "log_file",
    type=Parsed("file", parse_output),
    help="Write HdrHistogram's log format, an interval a second.",
)
@click.option(
    "--plot", "picture", type=Parsed("file", parse_picture), help="Draw a picture: FILE.svg or FILE.png."
)
@click.option(
    "--compare",
    "others",
    type=Parsed("file", parse_log),
    multiple=True,
    help="Another run's --hlog, beside this one; can be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, times in seconds.")
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
    try:
        result = _measure(options, picture, as_json)
        try:
            # First, so that they are there even if who reads the report leaves before its end.
            _write(result, log_file, picture, others)
        finally:
            _report(result, others, as_json)
    except Stopped as stopped:
        _stopped(stopped.signum, "before anything was measured.")
    except KeyboardInterrupt:
        _stopped(signal.SIGINT, "by Ctrl-C.")
    if result.stopped_by is not None:
        _stopped(result.stopped_by, f"after {format_duration(result.seconds)}.")


def _measure(options: dict[str, Any], picture: Path | None, as_json: bool) -> Result:
    # What the library would log is in the report.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    try:
        settings = Settings(**options)
        check(settings)
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(" ")
        raise click.BadParameter(reason, param_hint=f"'--{name}'") from error
    if picture is not None and not plot.available():
        raise _Failed("--plot needs matplotlib: pip install 'localdelay[plot]'")
    display = _display(settings, as_json)
    try:
        with display:
            return run(settings, display)
    except (BenchError, ConnectionError, ModuleNotFoundError) as error:
        if isinstance(error, Stopped):
            raise
        raise _Failed(str(error)) from error


def _stopped(signum: int, when: str) -> NoReturn:
    _tell(f"Stopped {when}")
    sys.exit(128 + signum)


def _tell(text: str, *, nl: bool = True) -> None:
    """On standard error, which may be closed or full: no reason to lose what is measured."""
    try:
        click.echo(text, err=True, nl=nl)
    except (OSError, ValueError):
        _abandon(sys.stderr)


def _abandon(stream: TextIO) -> None:
    # What is in its buffer would fail again at the exit, and change the exit code.
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def _report(result: Result, others: Sequence[tuple[str, hlog.Log]], as_json: bool) -> None:
    try:
        _print(result, others, as_json)
    except BrokenPipeError:
        raise
    except OSError as error:
        _abandon(sys.stdout)
        raise _NotPrinted(f"the report can't be printed: {error.strerror or error}") from error


def _print(result: Result, others: Sequence[tuple[str, hlog.Log]], as_json: bool) -> None:
    compared = [(name, Distribution.of(Latencies.together(log.intervals))) for name, log in others]
    if as_json:
        shown = result.as_json()
        if result.settings.to is not None:
            shown["settings"]["to"] = without_secrets(result.settings.to)
        shown["compare"] = [{"name": name, "latency": attrs.asdict(found)} for name, found in compared]
        click.echo(json.dumps(shown, indent=2))
        return
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for line, style in lines(result, compared):
        console.print(line, style=style)


def _write(
    result: Result, log_file: Path | None, picture: Path | None, others: Sequence[tuple[str, hlog.Log]]
) -> None:
    facts = in_words(result.settings)
    failures: list[str] = []
    if log_file is not None:
        log = hlog.Log(facts, result.began_at, INTERVAL, result.intervals)
        with _writing(log_file, failures):
            hlog.write(log_file, log, seconds=result.measured_seconds)
    if picture is not None and result.latency.count:
        own = plot.Series(log_file.stem if log_file else "this run", result.intervals, INTERVAL)
        beside = [
            plot.Series(legend(name, log.facts, facts), log.intervals, log.length) for name, log in others
        ]
        with _writing(picture, failures):
            plot.draw(picture, *headline(result), [own, *beside])
    if failures:
        raise _Failed("; ".join(failures))


@contextmanager
def _writing(path: Path, failures: list[str]) -> Iterator[None]:
    """Note a failure, and go on: the other file may have room."""
    try:
        yield
    except OSError as error:
        # The path as it was given: a full disk's error names none.
        failures.append(f"{str(path)!r} can't be written: {error.strerror or error}")


class _Display:
    """Shows nothing."""

    def __init__(self, settings: Settings) -> None:
        self._whole = settings.expected_seconds
        self._next = 0.0
        self._before = (0.0, 0)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def _line(self, progress: Progress) -> str:
        elapsed, put = self._before
        self._before = progress.elapsed, progress.put
        rate = (progress.put - put) / max(1e-9, progress.elapsed - elapsed)
        p99 = "" if progress.p99 is None else f"  p99 {format_duration(progress.p99)}"
        return (
            f"{progress.elapsed:.1f} of {self._whole:.1f} s  {rate:,.0f}/s put  "
            f"{progress.pending:,} pending  {progress.sent:,} sent{p99}"
        )


class _Lines(_Display):
    """A line each second, for a log or a pipe."""

    def progress(self, progress: Progress) -> None:
        if progress.elapsed >= self._next:
            self._next += _LINE_EVERY
            _tell(self._line(progress))


class _LiveLine(_Display):
    """One line that changes."""

    def __exit__(self, *_: object) -> None:
        _tell("\r\x1b[K", nl=False)

    def progress(self, progress: Progress) -> None:
        if progress.elapsed >= self._next:
            self._next = progress.elapsed + _LIVE_EVERY
            room = shutil.get_terminal_size().columns - 1
            _tell(f"\r{self._line(progress)[:room]}\x1b[K", nl=False)


def _display(settings: Settings, as_json: bool) -> _Display:
    # None: it was closed before Python began.
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        return _LiveLine(settings)
    return _Display(settings) if as_json else _Lines(settings)
