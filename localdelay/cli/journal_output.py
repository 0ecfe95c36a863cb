"""Where `localdelay journal` writes, and what it says when that can't be written."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from localdelay.cli.journal_report import counted
from localdelay.cli.relay_status import Teller
from localdelay.journal.record import Record
from localdelay.relay.orphan import line
from localdelay.relay.saving import NotAllWritten, open_lines

_AT_ONCE: Final = 1 << 20  # bytes


class Failed(click.ClickException):
    """It could not begin."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """In one line, if there is where to."""
        tell(f"Error: {self.format_message()}")


class BrokeOff(Failed):
    """It has begun, and could not be finished."""

    exit_code = 1


class Output:
    """Standard output, past Python's buffer: what that holds when a write fails would fail again at exit."""

    def __init__(self) -> None:
        # Its number may be another file's by now if it was closed before Python began.
        if sys.stdout is None:
            raise Failed("standard output can't be written to: it is closed")
        self._descriptor = sys.stdout.fileno()

    def write(self, content: bytes) -> None:
        """Write all of it, however long that takes. Who has seen enough of it ends the program."""
        room = memoryview(content)
        while room:
            try:
                room = room[os.write(self._descriptor, room) :]
            except BlockingIOError:  # another program has made it so
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                sys.exit(1)
            except OSError as error:
                raise BrokeOff(f"standard output can't be written to: {error.strerror}") from error

    def text(self, lines: Iterable[str]) -> None:
        """Write lines, piece by piece."""
        encoding = sys.stdout.encoding or "utf-8"
        for piece in _pieces(f"{text}\n".encode(encoding, "replace") for text in lines):
            self.write(b"".join(piece))

    def is_one_of(self, paths: Iterable[Path]) -> bool:
        """Whether it is one of these files."""
        found = os.fstat(self._descriptor)
        return any(path.exists() and os.path.samestat(path.stat(), found) for path in paths)


class Lines:
    """The lines of messages, for the relay."""

    def __init__(self, records: Sequence[Record], now: float) -> None:
        self._records = records
        self._now = now
        self.longest = 0
        """Bytes of the longest so far, without its line break."""

    def pieces(self) -> Iterator[list[bytes]]:
        """As many at a time as a write is worth."""
        for piece in _pieces(line(record, self._now) for record in self._records):
            self.longest = max(self.longest, max(map(len, piece)) - 1)
            yield piece


def append(path: Path, lines: Lines, count: int) -> None:
    """Append these lines to a file, and have the disk confirm them."""
    written = 0
    try:
        with closing(open_lines(path)) as file:
            for piece in lines.pieces():
                file.append(piece)
                written += len(piece)
    except OSError as error:
        written += error.written if isinstance(error, NotAllWritten) else 0
        reason = f"{error.strerror or error}; it has {written:,} of {counted(count, 'message')}"
        raise BrokeOff(f"'{path}' can't be written: {reason}") from error


def tell(text: str) -> None:
    """Say something on standard error, in one line, if there is where to."""
    Teller(live=False).last(text)


def _pieces(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    piece: list[bytes] = []
    size = 0
    for content in lines:
        piece.append(content)
        size += len(content)
        if size >= _AT_ONCE:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
