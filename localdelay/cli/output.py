"""Standard output: a report for people, as wide as their terminal, or its table as CSV, or JSON."""

from __future__ import annotations

import csv
import errno
import json
import os
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import StringIO, UnsupportedOperation
from itertools import islice, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias

import attrs
from rich.console import Console

from localdelay.cli.terminal import BrokeOff, Failed, is_terminal, no_output

WIDTH: Final = 79
"""Of the reports, in columns, where there is room for it."""

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


class Row(NamedTuple):
    """A row of a table: its label on the left, its values below their titles, a note after them."""

    label: str
    values: Sequence[Any]
    """As they are in CSV: numbers, seconds, bytes; None is what is not known."""
    shown: Callable[[Any], str] = str
    note: str = ""
    style: str = ""


@attrs.frozen
class Table:
    """Rows with one value below each title; a title may have two lines."""

    titles: Sequence[str]
    rows: Sequence[Row]

    def lines(self, width: int) -> Iterator[str]:
        """The table, or where that is too wide each row in lines of its own."""
        cells = [["-" if value is None else row.shown(value) for value in row.values] for row in self.rows]
        heads = list(zip_longest(*(title.split("\n") for title in self.titles), fillvalue=""))
        widths = [max(map(len, column)) + 2 for column in zip(*heads, *cells, strict=True)]
        first = max(len(row.label) for row in self.rows)
        lines = [Styled(_joined("", head, first, widths), "bold") for head in heads if any(head)]
        for row, shown in zip(self.rows, cells, strict=True):
            note = f"  {row.note}" if row.note else ""
            lines.append(Styled(_joined(row.label, shown, first, widths) + note, row.style))
        yield from lines if max(map(len, lines)) <= width else self._stacked(cells, width)

    def _stacked(self, cells: list[list[str]], width: int) -> Iterator[str]:
        titles = [title.replace("\n", " ") for title in self.titles]
        first = max(map(len, titles))
        for row, shown in zip(self.rows, cells, strict=True):
            label, note = row.label.strip(), f" {row.note}" if row.note else ""
            if any(titles):
                yield from filled(f"{label}{note and ','}{note}", row.style or "bold", width)
                yield from (f"  {title:<{first}}  {cell}" for title, cell in zip(titles, shown, strict=True))
            else:
                yield from filled(f"{label}: {', '.join(shown)}{note}", row.style, width, "  ")

    def csv(self) -> str:
        """The table as a spreadsheet reads it; rows without labels have no column for them."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        first = slice(None if any(row.label for row in self.rows) else 1, None)
        writer.writerow(["", *(title.replace("\n", " ") for title in self.titles)][first])
        writer.writerows([row.label.strip(), *row.values][first] for row in self.rows)
        return text.getvalue().rstrip("\n")


class Lines(list[str]):
    """Lines that stay as they are, however wide."""


Block: TypeAlias = "str | Table | Lines"
"""A paragraph, which may be `Styled`, a table, or lines."""


def laid_out(blocks: Iterable[Block], width: int = WIDTH) -> Iterator[str]:
    """A report in lines."""
    for block in blocks:
        if isinstance(block, Table):
            yield from block.lines(width)
        elif isinstance(block, Lines):
            yield from block
        else:
            yield from filled(block, getattr(block, "style", None), width) or [""]


class Output:
    """Standard output, past Python's buffer: what that holds when a write fails would fail again at exit.

    Where it is closed this raises `Failed`, before anything is done that could not be told. Once it can no
    longer be written to, the command ends as with `broke`: in silence where the reader has seen enough.
    """

    def __init__(self, broke: type[Failed] = BrokeOff) -> None:
        self._broke = broke
        self.encoding = sys.stdout.encoding or "utf-8"
        try:
            self._descriptor: int | None = sys.stdout.fileno()
            os.write(self._descriptor, b"")
        except UnsupportedOperation:
            self._descriptor = None
        except OSError as error:
            if error.errno == errno.EBADF:
                raise Failed(no_output(error)) from error

    @property
    def columns(self) -> int | None:
        """How many of them a line may fill; None where nobody looks at it."""
        return max(1, shutil.get_terminal_size().columns - 1) if is_terminal(sys.stdout) else None

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
                raise self._broke(no_output(error)) from error

    def text(self, lines: Iterable[str]) -> None:
        """Write lines, piece by piece; a `Styled` one has its look where it is shown on a terminal."""
        shown = (_drawn(line) if isinstance(line, Styled) else line for line in lines)
        for piece in pieces(f"{line}\n".encode(self.encoding, "replace") for line in shown):
            self.write(b"".join(piece))

    def report(
        self,
        form: str | None,
        blocks: Iterable[Block],
        found: object,
        files: Mapping[Path, Callable[[], object]] = MappingProxyType({}),
    ) -> None:
        """Write a report, or the first table of it as CSV, or what it tells of as JSON.

        Before it come files, each with its function, so that they are there even if who reads the report
        leaves before its end; one that can't be written is told last.
        """
        failures = []
        for path, write in files.items():
            try:
                write()
            except OSError as error:  # another one may have room all the same
                # The path as it was given: a full disk's error names none.
                failures.append(f"{str(path)!r} can't be written: {error.strerror or error}")
        if form == "json":
            self.text([json.dumps(found, indent=2)])
        elif form == "csv":
            self.text(list(islice((block.csv() for block in blocks if isinstance(block, Table)), 1)))
        else:
            self.text(laid_out(blocks, min(WIDTH, self.columns or WIDTH)))
        if failures:
            raise self._broke("; ".join(failures))

    def is_one_of(self, paths: Iterable[Path]) -> bool:
        """Whether it is one of these files."""
        if self._descriptor is None:
            return False
        found = os.fstat(self._descriptor)
        return any(path.exists() and os.path.samestat(path.stat(), found) for path in paths)


def _joined(label: str, cells: Sequence[str], first: int, widths: Sequence[int]) -> str:
    shown = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{label:<{first}}{''.join(shown)}".rstrip()


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


def filled(text: str, style: str | None = None, width: int = WIDTH, hanging: str = "") -> list[str]:
    """A paragraph, in lines: those after the first are indented like it, and by what is `hanging`."""
    indent = text[: -len(text.lstrip()) or None] + hanging
    lines = textwrap.wrap(
        text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return lines if style is None else [Styled(line, style) for line in lines]
