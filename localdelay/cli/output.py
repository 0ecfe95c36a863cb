"""Standard output, and what it is like to write a report or a great many lines to it."""

from __future__ import annotations

import os
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO, UnsupportedOperation
from pathlib import Path
from typing import Final, TypeVar

from rich.console import Console

from localdelay.cli.terminal import BrokeOff, Failed, is_terminal

WIDTH: Final = 79
"""Of the reports, in columns."""

_Value = TypeVar("_Value")
_AT_ONCE: Final = 1 << 20  # bytes


class Styled(str):
    """A line that has a look on a terminal: `bold`, `yellow` or `green`."""

    __slots__ = ("style",)

    style: str

    def __new__(cls, text: str, style: str) -> Styled:
        """This text in this style."""
        line = super().__new__(cls, text)
        line.style = style
        return line


class Output:
    """Standard output, past Python's buffer: what that holds when a write fails would fail again at exit.

    Where it is closed this raises `Failed`, before anything is done that could not be told. Once it can no
    longer be written to, the command ends as with `broke`: in silence where the reader has seen enough.
    """

    def __init__(self, broke: type[Failed] = BrokeOff) -> None:
        # Its number may be another file's by now if it was closed before Python began.
        if sys.stdout is None:
            raise Failed("standard output can't be written to: it is closed")
        self._broke = broke
        self.encoding = sys.stdout.encoding or "utf-8"
        try:
            self._descriptor: int | None = sys.stdout.fileno()
        except UnsupportedOperation:
            self._descriptor = None

    @property
    def columns(self) -> int | None:
        """How many of them a line may fill; None where nobody looks at it."""
        return shutil.get_terminal_size().columns - 1 if is_terminal(sys.stdout) else None

    def write(self, content: bytes) -> None:
        """Write all of it, however long that takes."""
        if self._descriptor is None:
            sys.stdout.buffer.write(content)
            return
        room = memoryview(content)
        while room:
            try:
                room = room[os.write(self._descriptor, room) :]
            except BlockingIOError:  # another program has made it so
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                sys.exit(self._broke.exit_code)
            except OSError as error:
                raise self._broke(f"standard output can't be written to: {error.strerror}") from error

    def text(self, lines: Iterable[str]) -> None:
        """Write lines, piece by piece; a `Styled` one has its look where it is shown on a terminal."""
        shown = (_drawn(line) if isinstance(line, Styled) else line for line in lines)
        for piece in pieces(f"{line}\n".encode(self.encoding, "replace") for line in shown):
            self.write(b"".join(piece))

    def is_one_of(self, paths: Iterable[Path]) -> bool:
        """Whether it is one of these files."""
        if self._descriptor is None:
            return False
        found = os.fstat(self._descriptor)
        return any(path.exists() and os.path.samestat(path.stat(), found) for path in paths)


def _drawn(line: Styled) -> str:
    # Beside standard output, to which a console would write by itself, and badly.
    drawn = StringIO()
    terminal = Console(file=sys.stdout).is_terminal
    console = Console(file=drawn, force_terminal=terminal, highlight=False, markup=False, emoji=False)
    console.print(line, style=line.style, end="", soft_wrap=True)
    return drawn.getvalue()


def pieces(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """As many lines at a time as a write is worth."""
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


def row(label: str, cells: Sequence[str], *, label_width: int, cell_width: int, note: str = "") -> str:
    """A row of a table: its label on the left, its cells on the right of their columns, a note after them."""
    return f"{label:<{label_width}}{''.join(f'{cell:>{cell_width}}' for cell in cells)}{note}".rstrip()


def filled(text: str, style: str | None = None, width: int = WIDTH) -> list[str]:
    """A paragraph, in lines."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
    return lines if style is None else [Styled(line, style) for line in lines]


def known(value: _Value | None, shown: Callable[[_Value], str], unknown: str = "-") -> str:
    """The value as it is shown, where there is one."""
    return unknown if value is None else shown(value)
