"""`localdelay demo`: a broker that throttles, what it costs, and what localdelay saves."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

import attrs
import click

from localdelay.cli.options import DURATION, metrics_option, naming_options, option, run_options
from localdelay.cli.output import WIDTH, Block, Output, Row, Table
from localdelay.cli.running import exporter, measuring
from localdelay.cli.terminal import Failed, tell
from localdelay.demo.report import Bucket, FallbackResult, Report, Run, step_of
from localdelay.demo.server import Server
from localdelay.units import counted, format_duration, format_number, format_size

_SECONDS = 2.0
_MESSAGE_BYTES = 500
_MAX_INPUT_BYTES = 500_000_000
TITLES = {"plain": "plain", "fallback": "with localdelay"}
_BLOCKS = ".\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_DIGITS = ".123456789"
_LABEL_WIDTH = 13
_TICK_EVERY = 10
_NOTES = {
    "published": "",
    "accepted": "by the broker, as delayed publishes",
    "refused": "by the broker, with 429",
    "degraded": "held here at first",
    "handed_back": "to the broker, before due",
    "received": "by the consumer",
    "lost": "",
    "duplicates": "",
    "lateness_p50": "from due to received",
    "lateness_p99": "",
    "lateness_max": "",
}

_EPILOG = """\b
Exit codes:
  0    with localdelay nothing was lost
  1    something was lost
  2    wrong options, the demo could not run, or it could not be printed
  3    the broker never throttled: nothing was shown
  130, 143
       stopped by Ctrl-C, SIGTERM; no server is left behind
"""


class _Input(click.File):
    """A file, or standard input, unless that is closed: click would end in a traceback."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The file, opened."""
        if value == "-" and sys.stdin is None:
            self.fail("standard input can't be read: it is closed", param, ctx)
        return super().convert(value, param, ctx)


@click.command(epilog=_EPILOG)
@option("--rate", float, "Messages per second at the peak.", 3000)
@option("--seconds", DURATION, "How long the peak lasts.", unset="2 s; with --input, all its lines")
@option("--delay", DURATION, "When each message is due, after it is published: 4, 4s, 500ms.", 4.0)
@option(
    "--input file",
    _Input("rb"),
    "Publish the lines of FILE, each a message; '-' is standard input.",
    metavar="FILE",
)
@metrics_option
@option("--forever", bool, "Begin again and again, until Ctrl-C.")
@run_options
@click.pass_context
def demo(
    ctx: click.Context,
    *,
    rate: float,
    seconds: float | None,
    delay: float,
    file: BinaryIO | None,
    metrics: int | None,
    forever: bool,
    form: str | None,
    quiet: bool,
) -> None:
    """Show what a throttled broker loses, and what localdelay saves.

    Starts a NATS server on this machine that refuses bursts, and publishes a peak of delayed messages to
    it, twice: plainly, so that a refused message is lost, and through localdelay, which finds how many the
    broker takes, holds the others, and hands them back to it or sends them when they are due. A consumer
    reads back what arrives.
    """
    try:
        from localdelay.demo import scene as scenes
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "nats":
            raise
        raise Failed("the demo needs a NATS client and server: pip install 'localdelay[demo]'") from error
    output = Output(Failed)  # 1 would say that messages were lost
    with exporter(metrics, "demo") as export:
        with naming_options():
            messages = _messages(rate, seconds, file, scenes.MAX_MESSAGES, scenes.MAX_MESSAGE_BYTES)
            scene = scenes.Scene(messages=messages, rate=rate, delay=delay)

        def started(server: Server) -> None:
            opening = (
                f"NATS server {server.version}, started for this demo; it answers bursts with 429.",
                f"Two runs of {counted(len(messages), 'message')} at {format_number(rate)}/s, each due "
                f"{format_duration(delay)} after it is published:",
            )
            if form is None:
                output.report(None, opening, None)

        def play() -> Report:
            with measuring(quiet or form is not None, "Stopped. No NATS server is left behind.") as teller:
                began = time.monotonic()

                def progress(run: Run) -> None:
                    teller.show(time.monotonic() - began, lambda: parts(run), at_once=run.finished)

                return scenes.run(scene, started, progress, export)

        while True:
            found = play()
            timeline = timeline_lines(found.fallback.timeline, output.encoding)
            if max(map(len, timeline), default=0) > (output.columns or WIDTH):
                timeline = []  # cut into pieces it would say nothing
            output.report(form, report(found, timeline), attrs.asdict(found))
            if form and not found.throttled:
                tell(never_throttled(found))
            if not forever:
                break
    ctx.exit(exit_code(found))


def exit_code(found: Report) -> int:
    """What the demo tells the shell."""
    if found.fallback.lost:
        return 1
    return 0 if found.throttled else 3


def _messages(
    rate: float, seconds: float | None, file: BinaryIO | None, most: int, longest: int
) -> list[bytes]:
    """What is published; made up where there is no file."""
    if file is not None:
        count = None if seconds is None else _count(rate, seconds, most)
        try:
            return _read(file, count, most, longest)
        except OSError as error:
            raise ValueError(f"input can't be read: {error.strerror}") from error
    count = _count(rate, _SECONDS if seconds is None else seconds, most)
    text = "order {}: close it if it is still unpaid. "
    return [text.format(number).encode().ljust(_MESSAGE_BYTES, b".") for number in range(1, count + 1)]


def _count(rate: float, seconds: float, most: int) -> int:
    """How many messages a peak has room for. What is wrong with the rate, the scene says."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a finite number over 0, not {seconds:g}")
    if not 0 < rate < math.inf:
        return 1
    if rate * seconds > most:
        raise ValueError(
            f"seconds must be {format_number(most / rate)} at most at this rate: "
            f"the demo keeps every message, and no more than {most:,}"
        )
    return max(1, round(rate * seconds))


def _read(file: BinaryIO, count: int | None, most: int, longest: int) -> list[bytes]:
    """The first `count` lines, or all, without their ends; it reads no more than the demo can use."""
    messages: list[bytes] = []
    size = 0
    while len(messages) != count and (line := file.readline(longest + 2)):
        if len(messages) == most:
            raise ValueError(f"input has more than {most:,} lines; --seconds takes its first lines only")
        message = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(message) > longest:
            raise ValueError(f"input has more than {longest:,} bytes in line {len(messages) + 1:,}")
        size += len(message)
        if size > _MAX_INPUT_BYTES:
            limit = format_size(_MAX_INPUT_BYTES)
            raise ValueError(f"input has more than {limit}; --seconds takes its first lines only")
        messages.append(message)
    if not messages:
        raise ValueError("input has no lines")
    return messages


def parts(run: Run) -> list[str]:
    """How far a run is, for one line; how the degrade path is only where there is one."""
    degrading = [f"{len(run.local):,} held", f"{len(run.handed_back):,} handed back"]
    return [
        f"{TITLES[run.name]}: {len(run.due):,} published",
        f"{len(run.first):,} received",
        f"{run.refused:,} refused",
        *([] if run.name == "plain" else degrading),
    ]


def report(found: Report, timeline: Sequence[str]) -> list[Block]:
    """The report, with these lines of a timeline in it; a terminal of 24 lines has room for all of it."""
    rows = []
    for name, note in _NOTES.items():
        values = [getattr(found.plain, name, 0), getattr(found.fallback, name)]
        shown = _duration if "lateness" in name else format_number
        rows.append(Row(name.replace("_", " "), values, shown, note, "bold" if name == "lost" else ""))
    return [Table([*TITLES.values()], rows), *timeline, *closing(found)]


def timeline_lines(buckets: Sequence[Bucket], encoding: str) -> list[str]:
    """The timeline, 80 columns wide at the most: an axis, a line for each rate, a legend.

    All have one scale. Where the encoding has no blocks they are digits.
    """
    if not buckets:
        return []
    signs = _BLOCKS if _can_encode(_BLOCKS, encoding) else _DIGITS
    rates = {
        "primary": [bucket.primary for bucket in buckets],
        "local": [bucket.local for bucket in buckets],
        "handed back": [bucket.handed_back for bucket in buckets],
    }
    top = max(map(max, rates.values()))
    rates["rate found"] = [min(bucket.found or 0.0, top) for bucket in buckets]
    step = step_of(buckets)
    ticks = (format_duration(column * step) for column in range(0, len(buckets), _TICK_EVERY))
    rows = {"messages/s": "".join(f"{tick:<{_TICK_EVERY}}" for tick in ticks).rstrip()}
    rows |= {label: "".join(_level(rate, top, signs) for rate in row) for label, row in rates.items()}
    return [
        *(f"{label:<{_LABEL_WIDTH}}{row}" for label, row in rows.items()),
        f"A column is {format_duration(step)}, {signs[-1]} is {round(top):,}/s or more.",
    ]


def _level(rate: float, top: float, signs: str) -> str:
    """The sign for a rate: the first for none, the last for `top`, and at least the second for any other."""
    return signs[math.ceil(rate / top * (len(signs) - 1))] if rate else signs[0]


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def closing(report: Report) -> list[str]:
    """What the reader has just seen, in words: a paragraph a string."""
    plain, fallback = report.plain, report.fallback
    if not report.throttled:
        return [never_throttled(report)]
    paragraphs = [f"Plainly, {plain.lost:,} of {counted(plain.published, 'message')} never arrived."]
    if fallback.lost:
        paragraphs.append(
            f"With localdelay {fallback.lost:,} of {counted(fallback.published, 'message')} never arrived "
            "either. That must not happen: please report it."
        )
    else:
        paragraphs.append(f"With localdelay all {fallback.received:,} arrived. {_saved(fallback)}")
    if fallback.duplicates:
        paragraphs.append(
            f"{counted(fallback.duplicates, 'message')} came again, under the same id: an answer of the "
            "broker's came too late, and what it had taken was given to it once more."
        )
    return paragraphs


def _saved(fallback: FallbackResult) -> str:
    native = fallback.accepted + fallback.handed_back
    sent = fallback.degraded - fallback.handed_back
    return (
        f"The broker took {native:,} natively, {fallback.handed_back:,} of them handed back; "
        f"{counted(sent, 'message')} waited here until due."
    )


def never_throttled(report: Report) -> str:
    """Why the demo has shown nothing."""
    return (
        f"The broker never throttled: {counted(report.plain.published, 'message')} at this rate were no "
        "burst to it, so there was nothing to save. Try a higher --rate."
    )


def _duration(late: float) -> str:
    return f"{'-' if late < 0 else ''}{format_duration(abs(late))}"
