"""What `localdelay relay` says on standard error: how far it is, and what became of it all."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator

from localdelay.brokers import STDOUT, hide_secrets, without_secrets
from localdelay.cli.output import filled
from localdelay.cli.terminal import Status, Teller, can_be_live, is_terminal
from localdelay.message import Message
from localdelay.relay.settings import Outcome, Phase, Progress, Settings
from localdelay.units import counted, format_duration

_LINE_EVERY = 10.0  # seconds, where there is no terminal to keep one up to date on
_LETTERS_SHOWN = 20


def status_parts(progress: Progress, rate: float) -> list[str]:
    """How far it is, the most important first; `rate` is in messages sent/s."""
    queue = progress.queue
    parts: list[str] = []
    if progress.phase is Phase.STOPPING:
        parts.append(f"stopping, {format_duration(round(progress.grace_left or 0.0))} left")
    elif progress.phase is Phase.LAST:
        parts.append("input ended")
    elif queue.puts_waiting:
        parts.append("full, input waits")
    parts.append(f"{_short(queue.pending)} pending")
    if queue.next_due_in is not None:
        parts.append(f"next {_next(queue.next_due_in)}")
    parts += [f"{_short(queue.sent)} sent", f"{_short(round(rate))}/s", f"{_short(queue.failures)} failed"]
    if queue.lateness.count:
        parts.append(f"p99 late {format_duration(queue.lateness.p99)}")
    more = ((queue.handed_back, "handed back"), (queue.dead, "given up"), (progress.wrong, "wrong"))
    return parts + [f"{_short(count)} {what}" for count, what in more if count]


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
    to = without_secrets(settings.to)
    seconds = format_duration(outcome.seconds)
    lines = [f"{_lines(outcome.lines)} to {to} in {seconds}: {', '.join(parts)}."]
    late = queue.lateness
    if late.count:
        p50, p99, most = map(format_duration, (late.p50, late.p99, late.max))
        lines.append(f"Late by {p50} (p50), {p99} (p99), {most} (max).")
    if queue.failures:
        throttled = f", {queue.throttled:,} of them throttled" if queue.throttled else ""
        lines.append(f"Sends that failed: {queue.failures:,}{throttled}.")
    for line in lines:
        yield from filled(line)


def problems(outcome: Outcome, settings: Settings) -> Iterator[str]:
    """What somebody must know, in lines."""
    if outcome.failure is not None:
        yield f"Error: {outcome.failure}"
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        if outcome.queue is None:
            yield _early(name)
        elif not outcome.input_ended:
            yield f"Stopped by {name}: the input was read up to line {outcome.lines:,}."
        elif outcome.unsent:
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
    for path, count in outcome.saved.places:
        file = shlex.quote(str(path))
        yield f"Not sent, and kept in {file}: {_lines(count)}. To go on:"
        yield f"  localdelay relay --format jsonl --to {shlex.quote(without_secrets(settings.to))} < {file}"
    if outcome.saved.lost:
        yield f"Error: {_lines(outcome.saved.lost)} LOST: not sent, and in no file."


class Display:
    """Shows what happens to a relay."""

    def __init__(self, teller: Teller, settings: Settings) -> None:
        self._teller = teller
        self._status = Status(teller, every=_LINE_EVERY, first=_LINE_EVERY)
        self._url = settings.to
        self._before = (0.0, 0)
        self._stopping = False
        self._letters = 0
        self.began = False
        """Whether there has been any progress, so that something may have been read."""

    def progress(self, progress: Progress) -> None:
        """Show how far it is, unless that was just shown."""

        def parts() -> list[str]:
            elapsed, sent = self._before
            self._before = progress.elapsed, progress.queue.sent
            rate = (progress.queue.sent - sent) / max(1e-9, progress.elapsed - elapsed)
            return status_parts(progress, rate)

        self.began = True
        stops = progress.phase is Phase.STOPPING and not self._stopping
        self._stopping |= stops
        self._status.show(progress.elapsed, parts, at_once=stops)

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

    def stopped_early(self, signum: int) -> None:
        """Say that a signal has come before anything was read."""
        self._teller.last(_early(signal.Signals(signum).name))

    def notice(self, text: str) -> None:
        """Say something that is not of this command's own making."""
        self._teller.line(hide_secrets(text, self._url))


def has_the_terminal(settings: Settings) -> bool:
    """Whether there is a terminal for a line that changes, and nothing else writes to it."""
    others = [sys.stdin, sys.stdout] if settings.to == STDOUT else [sys.stdin]
    return can_be_live() and not any(map(is_terminal, others))


def _early(name: str) -> str:
    return f"Stopped by {name} before anything was read."


def _lines(count: int) -> str:
    return counted(count, "line")


def _short(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}M"


def _next(seconds: float) -> str:
    # To be read at a glance: nobody needs the milliseconds of an hour.
    return format_duration(round(seconds, 1)) if seconds < 10 else format_duration(round(seconds))
