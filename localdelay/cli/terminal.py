"""What the commands share of the terminal: failing in one line, the line that changes, and a question."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import wrap
from typing import Any, NoReturn, TextIO

import click

from localdelay.brokers.address import hide_urls
from localdelay.errors import LocalDelayError

_LONGEST = 1000  # characters; less than what a pipe takes at once
_WIDTH = 200  # of a line about how far it is, where there is no terminal
_LAST_WORDS = 1.0  # seconds
_LIVE_EVERY = 0.25  # seconds
_LOOK_UP_EVERY = 0.1  # seconds
_HELP_NEEDS = 54  # columns
_COLUMNS = 80  # of a terminal that does not say
_COLUMN = re.compile(r" *(?:\S{1,10} {2,})?")


class _Help(click.HelpFormatter):
    """Help that fits a narrow terminal: click's needs 50 columns, and has lines that stay as they are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        columns = shutil.get_terminal_size().columns
        self._narrow = columns < _HELP_NEEDS
        if self._narrow:
            self.width = max(1, columns - 1)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """A list with two columns; what is long in the first has a line of its own."""
        super().write_dl(rows, 12 if self._narrow else col_max, col_spacing)

    def getvalue(self) -> str:
        """The text."""
        text = super().getvalue()
        return "".join(map(self._fit, text.splitlines())) if self._narrow else text

    def _fit(self, line: str) -> str:
        under = _COLUMN.match(line)
        indent = " " * len(under[0] if under else "")
        return "\n".join([*(wrap(line, self.width, subsequent_indent=indent) or [""]), ""])


class _Context(click.Context):
    formatter_class = _Help


class Commands(click.Group):
    """A group that says what is wrong in one line on standard error: click puts the usage before it."""

    context_class = _Context

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command, and exit. Ctrl-C ends it with 130, as in a shell."""
        code: Any = 0
        if sys.stdout is None:
            sys.stdout = _unwritable()
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            # A class with a `show` of its own is no error but help, asked for by giving no arguments.
            if isinstance(error, click.UsageError) and type(error).show is click.UsageError.show:
                _tell_error(_message(error))
            else:
                error.show()
            code = error.exit_code
        except (LocalDelayError, ModuleNotFoundError, OSError) as error:
            code = _failed(error)
        sys.exit(code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            found.context_class = _Context
        return found

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Take the options in, which may be from a file that somebody else has yet to write."""
        with _ctrl_c():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _ctrl_c():
            return super().invoke(ctx)


class Failed(click.ClickException):
    """It could not begin."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """In one line, if there is where to."""
        _tell_error(self.format_message())


class BrokeOff(Failed):
    """It has begun, and could not be finished."""

    exit_code = 1


def stopped(signum: int, text: str) -> NoReturn:
    """End as a program does that a signal has ended, with a line."""
    with Teller() as teller:
        pass
    teller.last(text)
    sys.exit(128 + signum)


@contextmanager
def _ctrl_c() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        stopped(signal.SIGINT, "Stopped by SIGINT.")


def no_output(error: OSError) -> str:
    """Why standard output can't be written to."""
    reason = "it is closed" if sys.__stdout__ is None else error.strerror
    return f"standard output can't be written to: {reason}"


def _unwritable() -> TextIO:
    """Stands for a standard output that was closed before Python began: what is written to it fails.

    Click would write nowhere, and say nothing. And no file that is opened from here on gets its number.
    """
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


def reason(error: Exception) -> str:
    """Why it failed, without the number that Python puts before it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename!r} can't be used: {error.strerror}"


def _failed(error: Exception) -> int:
    """Tell an error that no command has told, and find its exit code."""
    is_broken_pipe = isinstance(error, BrokenPipeError)
    if not isinstance(error, OSError) or (isinstance(error, ConnectionError) and not is_broken_pipe):
        _tell_error(str(error))  # the library says it in a sentence
        return Failed.exit_code
    if error.filename is not None:
        _tell_error(reason(error))
        return BrokeOff.exit_code
    abandon(sys.stdout)  # it is of --help, say
    if not is_broken_pipe:
        _tell_error(no_output(error))
    return Failed.exit_code if error.errno == errno.EBADF else BrokeOff.exit_code


def _message(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split())
    wrong_value = isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)
    if wrong_value or error.ctx is None:
        return message
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See '{error.ctx.command_path} --help'."


class Teller:
    """Writes lines to standard error, and never waits for it.

    It may be closed, full, or a pipe that nobody empties: none of that is to hold up a message.
    """

    def __init__(
        self, *, live: bool = False, status: bool = True, every: float = 1.0, first: float = 0.0
    ) -> None:
        """Live: the status is one line that changes, for the eye.

        Elsewhere there are lines of it, if at all: `every` so many seconds one, from the `first` on.
        """
        self.live = live
        self._status = status or live
        self._every = _LIVE_EVERY if live else every
        self._next = 0.0 if live else first
        self._before = (0.0, 0)
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
        text = printable(text[:_LONGEST])
        if self._dropped:
            text = f"({self._dropped:,} lines are missing here: nobody has read them)\n{text}"
            self._dropped = 0
        _write(f"\r\x1b[K{text}\n" if self._shown else f"{text}\n")
        self._shown = False

    def status(self, parts: Sequence[str]) -> None:
        """How far it is, in a line: the one that changes, or one as any other."""
        if self.live and _has_room(0):
            _write(f"\r{fitted(parts, _columns() - 1)}\x1b[K")
            self._shown = True
        elif self._status and not self.live:
            self.line(fitted(parts, _WIDTH))

    def show(self, now: float, parts: Callable[[], Sequence[str]], *, at_once: bool = False) -> None:
        """The status, if it is time to; `now` is in seconds since the beginning."""
        if now >= self._next or at_once:
            self._next = now + self._every
            self.status(parts())

    def rate(self, now: float, count: int) -> float:
        """How many a second since this was asked before."""
        (before, counted), self._before = self._before, (now, count)
        return (count - counted) / max(1e-9, now - before)

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        """Take away the line that changes, or what a terminal shows of Ctrl-C: what follows begins left."""
        if (self._shown or can_be_live()) and _has_room(0):
            _write("\r\x1b[K")
        self._shown = False

    def last(self, text: str) -> None:
        """One of the lines at the end, when there is nothing to hold up any more."""
        self.line(text, wait=_LAST_WORDS)


def tell(text: str) -> None:
    """Say something on standard error, in one line, if there is where to."""
    Teller().last(text)


def _tell_error(text: str) -> None:
    tell(f"Error: {hide_urls(text)}")  # somebody may have put a URL, and a password, in the wrong place


def fitted(parts: Sequence[str], width: int) -> str:
    """As many whole parts as there is room for, the first ones first: half a number would be a wrong one."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line[:width]


def printable(text: str) -> str:
    """In one line, and nothing in it that a terminal obeys: it may be of somebody else's making."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def can_be_live() -> bool:
    """Whether standard error is a terminal on which a line can change."""
    return is_terminal(sys.stderr) and os.environ.get("TERM") not in ("dumb", "unknown")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody looks at it."""
    return stream is not None and stream.isatty()  # None: it was closed before Python began


def ask(question: str) -> bool | None:
    """Ask on standard error, and read the answer from standard input; None: nobody answers."""
    _write(f"{question} [y/N]: ")
    # A signal that comes between Python's last look for one and a read would not be seen while that goes
    # on, perhaps for ever: so the read begins when there is something to read, and the wait looks up.
    # Where standard input is closed or no file, or Windows's, it can't be waited for.
    with suppress(OSError, ValueError, TypeError):
        while not select.select([sys.stdin], [], [], _LOOK_UP_EVERY)[0]:
            pass
    answer = sys.stdin.readline() if sys.stdin else ""
    if not answer:
        tell("")
    return answer.strip().lower() in ("y", "yes") if answer else None


def _columns() -> int:
    """How wide the terminal is that standard error is: `shutil` asks standard output, which may be a file."""
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal():
        return int(told) or _COLUMNS
    with suppress(OSError, ValueError, AttributeError):  # it is none, or gone
        return os.get_terminal_size(sys.stderr.fileno()).columns or _COLUMNS
    return _COLUMNS


def _has_room(wait: float) -> bool:
    try:
        poll = select.poll()
        poll.register(sys.stderr, select.POLLOUT)
        return bool(poll.poll(wait * 1000))
    except (OSError, ValueError, TypeError, AttributeError):
        return True  # it is no descriptor, or none that one can wait for


def _write(text: str) -> None:
    with suppress(AttributeError):  # it was closed before Python began
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            abandon(sys.stderr)


def abandon(stream: TextIO) -> None:
    """Write no more to it: what is in its buffer would fail again at the exit, and change the exit code."""
    with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
