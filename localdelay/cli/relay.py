"""`localdelay relay`: messages from standard input, each held until it is due, to a broker."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from localdelay.cli.options import DURATION, OUTPUT, SIZE, naming_options, option
from localdelay.cli.relay_status import Display, has_the_terminal, problems, summary
from localdelay.cli.terminal import Failed, Teller
from localdelay.relay.run import NoDelay, check, run, stops
from localdelay.relay.settings import FORMATS, Outcome, Settings
from localdelay.relay.source import InputError

_EPILOG = """\b
Examples:
  producer | localdelay relay --to nats://127.0.0.1:4222/orders --delay 2m
  localdelay relay --to kafka://host:9092/orders --format jsonl < orders.jsonl
  tail -F app.log | localdelay relay --to stdout: --delay 5s | consumer

\b
Lines:
  text   the line is the message, without its line break (\\n or \\r\\n);
         an empty line is an empty message
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
       messages left in --unsent
"""

_DEFAULT = Settings(to="stdout:", delay=0.0)
_LEFT = ("localdelay", logging.WARNING)


class _Notices(logging.Handler):
    """Shows what the library logs: that sends fail, and with what."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show one line."""
        # The only warning says that messages were left, and where they went is said better at the end; what a
        # drain is going to do stands in the status.
        if record.name != "localdelay.drain" and (record.name, record.levelno) != _LEFT:
            self._display.notice(record.getMessage())


def exit_code(outcome: Outcome) -> int:
    """What the relay tells the shell."""
    if outcome.saved.lost:
        return 3
    if outcome.stopped_by is not None and (outcome.unsent or not outcome.input_ended):
        return 128 + outcome.stopped_by
    return 1 if outcome.wrong or outcome.dead or outcome.unsent or outcome.failure else 0


@click.command(epilog=_EPILOG)
@option("--to", str, "The broker to send to, or stdout:.", required=True, metavar="URL")
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
@option("--attempts", int, "Sends of a message before it is given up.", unset="no end")
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
@option("--quiet -q", bool, "No status and no summary, only what goes wrong.")
def relay(*, quiet: bool, **options: Any) -> None:
    """Send lines from standard input to a broker, each when it is due.

    Reads no faster than there is room to hold messages, sends each once it is due, and at the end of the
    input waits until all are sent. How far it is goes to standard error.
    """
    with naming_options():
        settings = Settings(**options)
        check(settings)
    if sys.stdin is None:  # it was closed before Python began, and its number may be another file's by now
        raise Failed("standard input can't be read: it is closed")
    teller = Teller(live=not quiet and has_the_terminal(settings), status=not quiet)
    display = Display(teller, settings)
    with outlasting_signals(display):
        try:
            with teller, _noticing(display):
                outcome = run(settings, display)
        except NoDelay as error:
            raise click.BadParameter(str(error), param_hint="'--hand-back'") from error
        except InputError as error:
            raise Failed(f"standard input can't be read: {error}") from error
        except (ConnectionError, ModuleNotFoundError) as error:
            raise Failed(str(error)) from error
        for line in [*([] if quiet else summary(outcome, settings)), *problems(outcome, settings)]:
            teller.last(line)
    sys.exit(exit_code(outcome))


@contextmanager
def outlasting_signals(display: Display) -> Iterator[None]:
    """What signals do while the relay does not listen to them.

    Before it does there is nothing to save. One that comes when it has saved all is not to keep from being
    told where that is.
    """

    def handle(signum: int, _: object) -> None:
        if not display.began:
            display.stopped_early(signum)
            os._exit(128 + signum)

    before = {signum: signal.signal(signum, handle) for signum in stops()}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _noticing(display: Display) -> Iterator[None]:
    logger = logging.getLogger("localdelay")
    handler, level = _Notices(display), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
