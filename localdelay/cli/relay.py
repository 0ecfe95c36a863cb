"""`localdelay relay`: messages from standard input, each held until it is due, to a broker."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import click

from localdelay.brokers import STDOUT, without_secrets
from localdelay.cli.options import DURATION, OUTPUT, SIZE, metrics_option, naming_options, option
from localdelay.cli.running import Export, exporter
from localdelay.cli.terminal import Failed, Teller, can_be_live, is_terminal
from localdelay.message import Message
from localdelay.relay.run import check, run, stops
from localdelay.relay.settings import FORMATS, AnyQueue, Outcome, Phase, Settings
from localdelay.relay.source import InputError
from localdelay.statistics import Statistics
from localdelay.units import counted, format_duration

_EPILOG = """\b
Examples:
  producer | localdelay relay --to nats://127.0.0.1:4222/orders --delay 2m
  localdelay relay --to kafka://host:9092/orders --format jsonl < orders.jsonl
  tail -F app.log | localdelay relay --to stdout: --delay 5s | consumer

\b
Lines:
  text   the line is the message, without its line break (\\n or \\r\\n)
  jsonl  {"payload": "...", "delay": 120, "id": "...", "headers": {"a": "b"}}
         payload or payload_base64; delay (120 or "2m") or at (ISO 8601 with
         an offset), or neither where there is --delay; id and headers at will
A delay counts from when its line is read. A wrong line is told and skipped.

\b
Signals:
  The first SIGINT, SIGTERM or SIGHUP stops the reading; what comes due within
  --grace is sent, and the rest goes to --unsent, which --format jsonl reads
  back, with the delay that is left. The second stops it at once, writing too.

\b
Exit codes:
  0    all of the input was sent
  1    wrong lines, messages given up, or standard output or input broke off
  2    wrong options, or the broker can't be reached; nothing was read
  3    messages were not sent and could not be written to any file: lost
  129, 130, 143
       stopped by SIGHUP, SIGINT, SIGTERM before the end of the input, or with
       messages left in --unsent or --hold
"""

_DEFAULT = Settings(to="stdout:", delay=0.0)
_LEFT = ("localdelay", logging.WARNING)
_LINE_EVERY = 10.0  # seconds, where there is no terminal to keep one up to date on
_LETTERS_SHOWN = 20


@click.command(epilog=_EPILOG, short_help="Send lines from standard input to a broker, each when due.")
@option("--to", str, "The broker, or stdout:.", required=True, metavar="URL", envvar="LOCALDELAY_TO")
@option("--hold", str, "Let messages wait in redis://host:6379/NAME.", unset="in memory", metavar="URL")
@option("--delay", DURATION, "When a line is due, after it is read: 120, 2m, 500ms.")
@option("--format", click.Choice(FORMATS), "See below.", _DEFAULT.format)
@option("--workers", int, "Sends at the same time.", _DEFAULT.workers)
@option("--batch", int, "The most messages of one send.", unset="one a send, no batches")
@option(
    "--capacity", int, "Messages held at once; the input waits while there are so many.", _DEFAULT.capacity
)
@option("--capacity-bytes", SIZE, "Bytes held at once.", _DEFAULT.capacity_bytes)
@option("--max-line", SIZE, "Bytes of a line.", _DEFAULT.max_line, unset="1MiB")
@option(
    "--attempts",
    int,
    "Sends of a message before it is given up; a throttled one doesn't count.",
    unset="no end",
)
@option("--send-timeout", DURATION, "How long a send may take.", _DEFAULT.send_timeout)
@option("--grace", DURATION, "How long to go on after the first signal.", _DEFAULT.grace)
@option("--hand-back", bool, "Then give what comes due later to the broker's own delay, if it has one.")
@option("--unsent", OUTPUT, "Append what was not sent.", unset="localdelay-unsent-PID.jsonl, if there is any")
@option(
    "--dead-letters",
    OUTPUT,
    "Append what was given up.",
    unset="localdelay-dead-letters-PID.jsonl, likewise",
)
@option("--strict", bool, "Read nothing after the first wrong line; what was read before it is sent.")
@metrics_option
@option("--quiet -q", bool, "No status and no summary, only what goes wrong.")
def relay(*, quiet: bool, metrics: int | None, **options: Any) -> None:
    """Send lines from standard input to a broker, each when it is due.

    Reads no faster than there is room to hold messages, sends each once it is due, and at the end of the
    input waits until all are sent. How far it is goes to standard error.
    """
    with naming_options():
        settings = Settings(**options)
        check(settings)
    if sys.stdin is None:  # it was closed before Python began, and its number may be another file's by now
        raise Failed("standard input can't be read: it is closed")
    live = not quiet and has_the_terminal(settings)
    teller = Teller(live=live, status=not quiet, every=_LINE_EVERY, first=_LINE_EVERY)
    with exporter(metrics, "relay") as export, ExitStack() as stack:
        reads = not quiet and is_terminal(sys.stdin)
        display = Display(teller, settings, export, reads_terminal=reads)
        for signum in stops():
            stack.callback(signal.signal, signum, signal.signal(signum, display.signal))
        try:
            with naming_options(settings.to), teller, _noticing(display):
                outcome = run(settings, display)
        except InputError as error:
            raise Failed(f"standard input can't be read: {error}") from error
        for line in [*([] if quiet else summary(outcome, settings)), *problems(outcome, settings)]:
            teller.last(line)
        sys.exit(exit_code(outcome))


def has_the_terminal(settings: Settings) -> bool:
    """Whether there is a terminal for a line that changes, and nothing else writes to it."""
    others = [sys.stdin, sys.stdout] if settings.to == STDOUT else [sys.stdin]
    return can_be_live() and not any(map(is_terminal, others))


def exit_code(outcome: Outcome) -> int:
    """What the relay tells the shell."""
    if outcome.saved.lost:
        return 3
    left = outcome.unsent or outcome.held != 0 or not outcome.input_ended
    if outcome.stopped_by is not None and left:
        return 128 + outcome.stopped_by
    return 1 if outcome.wrong or outcome.dead or outcome.unsent or outcome.failure else 0


def status_parts(outcome: Outcome, queue: Statistics, rate: float) -> list[str]:
    """How far it is, the most important first; `rate` is in messages sent/s."""
    parts: list[str] = []
    if outcome.phase is Phase.STOPPING:
        parts.append(f"stopping, {format_duration(round(outcome.grace_left or 0.0))} left")
    elif outcome.phase is Phase.LAST:
        parts.append("input ended")
    elif queue.puts_waiting:
        parts.append("full, input waits")
    parts.append(f"{queue.pending:,} pending")
    if queue.next_due_in is not None:
        # To be read at a glance: nobody needs the milliseconds of an hour.
        digits = 1 if queue.next_due_in < 10 else None
        parts.append(f"next {format_duration(round(queue.next_due_in, digits))}")
    parts += [f"{queue.sent:,} sent", f"{rate:,.0f}/s", f"{queue.failures:,} failed"]
    if queue.lateness.count:
        parts.append(f"p99 late {format_duration(queue.lateness.p99)}")
    more = ((queue.handed_back, "handed back"), (queue.dead, "given up"), (outcome.wrong, "wrong"))
    return parts + [f"{count:,} {what}" for count, what in more if count]


def summary(outcome: Outcome, settings: Settings) -> Iterator[str]:
    """What was relayed, in lines."""
    queue = outcome.queue
    if queue is None:
        return
    counts = [
        (queue.handed_back, "handed back"),
        (outcome.wrong, "wrong"),
        (outcome.dead, "given up"),
        (outcome.unsent, "not sent"),
    ]
    parts = [f"{queue.sent:,} sent", *(f"{count:,} {what}" for count, what in counts if count)]
    to, seconds = without_secrets(settings.to), format_duration(outcome.seconds)
    yield f"{_lines(outcome.lines)} to {to} in {seconds}: {', '.join(parts)}."
    late = queue.lateness
    if late.count:
        p50, p99, most = map(format_duration, (late.p50, late.p99, late.max))
        yield f"Late by {p50} (p50), {p99} (p99), {most} (max)."
    if queue.failures:
        yield f"Sends that failed: {queue.failures:,} ({queue.throttled:,} throttled)."


def problems(outcome: Outcome, settings: Settings) -> Iterator[str]:
    """What somebody must know, in lines."""
    if outcome.failure is not None:
        yield f"Error: {outcome.failure}"
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        if outcome.queue is None:
            yield f"Stopped by {name} before anything was read."
        elif not outcome.input_ended:
            yield f"Stopped by {name}: the input was read up to line {outcome.lines:,}."
        elif outcome.unsent or outcome.held != 0:
            yield f"Stopped by {name}."
    elif settings.strict and outcome.wrong:
        yield f"Stopped by a wrong line: the input was read up to line {outcome.lines:,}."
    for path, reason in outcome.saved.failures:
        where = "the directory for temporary files" if path is None else f"'{path}'"
        yield f"Error: {where} can't be written: {reason}"
    if outcome.half:
        yield f"The line after it was cut off: its first {outcome.half:,} bytes are kept, and no message."
    if outcome.dead and outcome.letters is not None:
        yield f"Given up, and kept in {shlex.quote(str(outcome.letters))}: {_lines(outcome.dead)}."
    again = f"localdelay relay --format jsonl --to {shlex.quote(without_secrets(settings.to))}"
    if settings.hold is not None:
        place = without_secrets(settings.hold)
        hold = f"--hold {shlex.quote(place)}"
        again = f"{again} {hold}"
        if outcome.held != 0:
            many = "" if outcome.held is None else f": {_lines(outcome.held)}"
            yield f"Not sent, and waiting in {place}{many}. A relay with {hold} sends what waits there."
    for path, count in outcome.saved.places:
        file = shlex.quote(str(path))
        yield f"Not sent, and kept in {file}: {_lines(count)}. To go on:"
        yield f"  {again} < {file}"
    if outcome.saved.lost:
        yield f"Error: {_lines(outcome.saved.lost)} LOST: not sent, and in no file."


@attrs.define
class Display:
    """Shows what happens to a relay."""

    _teller: Teller
    _settings: Settings
    _export: Export | None = None
    _reads_terminal: bool = attrs.field(default=False, kw_only=True)
    _stopping: bool = attrs.field(default=False, init=False)
    _opened: bool = attrs.field(default=False, init=False)
    _letters: int = attrs.field(default=0, init=False)

    def signal(self, signum: int, _: object) -> None:
        """What a signal does while the relay does not listen to them.

        Before it does nothing was read. One that comes when all is saved must not keep us from telling.
        """
        if not self._opened:
            os._exit(128 + signum)

    def opened(self, queue: AnyQueue) -> None:
        """Export the queue, and say what is waited for where nobody would see it."""
        self._opened = True
        if self._reads_terminal:
            self._teller.line("Reads lines from this terminal; Ctrl-D ends them.")
        if self._export is not None:
            self._export(queue, None)

    def progress(self, outcome: Outcome, queue: Statistics) -> None:
        """Show how far it is, unless that was just shown."""

        def parts() -> list[str]:
            return status_parts(outcome, queue, self._teller.rate(outcome.seconds, queue.sent))

        stops = outcome.phase is Phase.STOPPING and not self._stopping
        self._stopping |= stops
        self._teller.show(outcome.seconds, parts, at_once=stops)

    def wrong_line(self, number: int, reason: str) -> None:
        """Report a line that was skipped."""
        self._teller.line(f"line {number}: {reason}")

    def dead_letter(self, message: Message, error: Exception) -> None:
        """Report a message that was given up, as long as there are not too many."""
        self._letters += 1
        if self._letters <= _LETTERS_SHOWN:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self.notice(f"given up: message {message.id} of {message.size:,} bytes: {told}")
        elif self._letters == _LETTERS_SHOWN + 1:
            self._teller.line("more messages are given up; they are kept with the others, and not told")

    def notice(self, text: str) -> None:
        """Say something that is not of this command's own making."""
        self._teller.line(self._settings.hide_secrets(text))


def _lines(count: int) -> str:
    return counted(count, "line")


@contextmanager
def _noticing(display: Display) -> Iterator[None]:
    """Show what the library logs: that sends fail, and with what."""

    def emit(record: logging.LogRecord) -> bool:
        # The only warning says that messages were left, and where they went is said better at the end; what a
        # drain is going to do stands in the status.
        if record.name != "localdelay.drain" and (record.name, record.levelno) != _LEFT:
            display.notice(record.getMessage())
        return False

    logger, handler = logging.getLogger("localdelay"), logging.Handler()
    level = logger.level
    handler.addFilter(emit)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
