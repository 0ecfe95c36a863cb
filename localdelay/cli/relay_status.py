"""What `localdelay relay` says on standard error: how far it is, and what became of it all."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from localdelay.brokers import STDOUT, hide_secrets, without_secrets
from localdelay.cli.units import format_duration, format_number
from localdelay.message import Message
from localdelay.relay.settings import Outcome, Phase, Progress, Settings

LINE_EVERY = 10.0
"""Seconds between two lines, where there is no terminal to keep one up to date on."""

_WIDTH = 79
_LETTERS_SHOWN = 20
_LONGEST = 1000  # characters; less than what a pipe takes at once
_LAST_WORDS = 1.0  # seconds


def status_line(progress: Progress, rate: float, width: int) -> str:
    """How far it is, in one line of at most `width` characters; `rate` is in messages sent/s."""
    queue = progress.queue
    parts: list[str] = []
    if progress.phase is Phase.STOPPING:
        parts.append(f"stopping, {format_duration(round(progress.grace_left or 0.0))} left")
    elif progress.phase is Phase.LAST:
        parts.append("input ended")
    elif queue.puts_waiting:
        parts.append("full, input waits")
    parts.append(f"{_counted(queue.pending)} pending")
    if queue.next_due_in is not None:
        parts.append(f"next {_next(queue.next_due_in)}")
    parts.append(f"{_counted(queue.sent)} sent")
    parts.append(f"{_counted(round(rate))}/s")
    parts.append(f"{_counted(queue.failures)} failed")
    if queue.lateness.count:
        parts.append(f"p99 late {format_duration(queue.lateness.p99)}")
    more = ((queue.handed_back, "handed back"), (queue.dead, "given up"), (progress.wrong, "wrong"))
    parts.extend(f"{_counted(count)} {what}" for count, what in more if count)
    line = parts[0]
    for part in parts[1:]:
        # Whole parts only, the most important ones first: half a number would be a wrong one.
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line[:width]


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
    yield from _filled(f"{_lines(outcome.lines)} to {to} in {seconds}: {', '.join(parts)}.")
    late = queue.lateness
    if late.count:
        p50, p99, most = map(format_duration, (late.p50, late.p99, late.max))
        yield from _filled(f"Late by {p50} (p50), {p99} (p99), {most} (max).")
    if queue.failures:
        throttled = f", {queue.throttled:,} of them throttled" if queue.throttled else ""
        yield f"Sends that failed: {queue.failures:,}{throttled}."


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


class Teller:
    """Writes lines to standard error, and never waits for it.

    It may be closed, full, or a pipe that nobody empties: none of that is to hold up a message.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self._shown = False
        self._dropped = 0
        self._gave_up = False

    def line(self, text: str, *, wait: float = 0.0) -> None:
        """A line that stays. It is dropped, and counted, where there is no room within `wait` seconds.

        Nobody is waited for twice.
        """
        if not _has_room(0.0 if self._gave_up else wait):
            self._dropped += 1
            self._gave_up |= wait > 0
            return
        # A part of it may be of somebody else's making, and a terminal obeys what it is shown.
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:_LONGEST])
        if self._dropped:
            text = f"({self._dropped:,} lines are missing here: nobody has read them)\n{text}"
            self._dropped = 0
        _write(f"\r\x1b[K{text}\n" if self._shown else f"{text}\n")
        self._shown = False

    def status(self, text: str) -> None:
        """The line that changes, on a terminal; elsewhere it is a line as any other."""
        if not self._live:
            self.line(text)
        elif _has_room(0):
            _write(f"\r{text}\x1b[K")
            self._shown = True

    def wipe(self) -> None:
        """Take the line away that changes."""
        if self._shown and _has_room(0):
            _write("\r\x1b[K")
        self._shown = False

    def last(self, text: str) -> None:
        """One of the lines at the end, when there is nothing to hold up any more."""
        self.line(text, wait=_LAST_WORDS)


class Display:
    """Shows what happens to a relay."""

    def __init__(self, teller: Teller, settings: Settings, *, live: bool, quiet: bool) -> None:
        self._teller = teller
        self._url = settings.to
        self._live = live
        self._quiet = quiet
        self._next = 0.0 if live else LINE_EVERY
        self._before = (0.0, 0)
        self._stopping = False
        self._letters = 0
        self.began = False
        """Whether there has been any progress, so that something may have been read."""

    def progress(self, progress: Progress) -> None:
        """Show how far it is, unless that was just shown."""
        self.began = True
        stops = progress.phase is Phase.STOPPING and not self._stopping
        if self._quiet or (progress.elapsed < self._next and not stops):
            return
        self._stopping |= stops
        self._next = progress.elapsed + (0.0 if self._live else LINE_EVERY)
        elapsed, sent = self._before
        self._before = progress.elapsed, progress.queue.sent
        rate = (progress.queue.sent - sent) / max(1e-9, progress.elapsed - elapsed)
        width = shutil.get_terminal_size().columns - 1 if self._live else 200
        self._teller.status(status_line(progress, rate, width))

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


def can_be_live(settings: Settings) -> bool:
    """Whether there is a terminal for a line that changes, and nothing else writes to it."""
    # None: it was closed before Python began.
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    others = [sys.stdin, sys.stdout] if settings.to == STDOUT else [sys.stdin]
    return not any(stream is not None and stream.isatty() for stream in others)


def _early(name: str) -> str:
    return f"Stopped by {name} before anything was read."


def _counted(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"{number / 1e6:.2f}M"


def _next(seconds: float) -> str:
    # To be read at a glance: nobody needs the milliseconds of an hour.
    return format_duration(round(seconds, 1)) if seconds < 10 else format_duration(round(seconds))


def _lines(count: int) -> str:
    return f"{format_number(count)} line{'' if count == 1 else 's'}"


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _has_room(wait: float) -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stderr, select.POLLOUT)
        return bool(poll.poll(wait * 1000))
    except (OSError, ValueError, TypeError, AttributeError):
        return True  # it is no descriptor, or none that one can wait for


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except AttributeError:
        pass  # it was closed before Python began
    except (OSError, ValueError):
        # What is in its buffer would fail again at the exit, and change the exit code.
        with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
