"""What could not be sent, into files: appended to, readable by their owner alone, and synced."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import tempfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias, TypeVar

import attrs

_Item = TypeVar("_Item")

Place: TypeAlias = "tuple[Path | None, Callable[[], JsonLines]]"
"""A file, and how it is opened; None is a new one in the directory for temporary files."""

_AT_ONCE = 1000
_PATIENCE = 200  # milliseconds


class JsonLines:
    """A file that lines are appended to; `open_lines` opens it. Its methods raise `OSError`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        self._is_file = stat.S_ISREG(found.st_mode)
        self._ready = select.poll()
        self._ready.register(descriptor, select.POLLOUT)
        # Its last line may have been cut off, by a full disk for instance.
        self._begun = self._is_file and found.st_size > 0 and not _ends_with_line_break(path)

    def append(self, lines: Sequence[bytes]) -> None:
        """Append whole lines. Raises `NotAllWritten`, an `OSError`, which tells how many are written."""
        content = b"".join((b"\n", *lines) if self._begun else lines)
        room = memoryview(content)
        while room:
            try:
                # A pipe that nobody reads must not stop everything: it is one that can't be written.
                if not self._is_file and not self._ready.poll(_PATIENCE):
                    raise BlockingIOError(errno.EAGAIN, "nobody reads it")
                room = room[os.write(self._descriptor, room) :]
            except OSError as error:
                written = content[: len(content) - len(room)].count(b"\n")
                written -= self._begun and written > 0
                self._begun = True  # for all that is known, in the middle of a line
                raise NotAllWritten(written, error) from error
        self._begun = False

    def close(self) -> None:
        """Wait until the disk has it all, and close the file."""
        try:
            if self._is_file:
                os.fsync(self._descriptor)
                with contextlib.suppress(OSError):  # or a power cut might forget the name of a new file
                    directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
                    try:
                        os.fsync(directory)
                    finally:
                        os.close(directory)
        finally:
            os.close(self._descriptor)


class NotAllWritten(OSError):
    """Some lines are written, and the rest is not."""

    def __init__(self, written: int, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.written = written


def open_lines(path: Path, *, follow_links: bool = True) -> JsonLines:
    """Open a file, or make it, for its owner alone. Raises `OSError`."""
    # A named pipe without a reader would block; not blocking, it is an error as any other.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    return JsonLines(path, os.open(path, flags, 0o600))


def open_temporary(prefix: str) -> JsonLines:
    """Make a file in the directory for temporary files. Raises `OSError`."""
    descriptor, path = tempfile.mkstemp(prefix=prefix, suffix=".jsonl")
    return JsonLines(Path(path), descriptor)


def places(kind: str, asked: Path | None) -> list[Place]:
    """Where lines of this kind are to go, in the order in which it is tried.

    First the file that was asked for, or else one in the current directory with this process's number in its
    name; then a temporary one.
    """
    prefix = f"localdelay-{kind}-{os.getpid()}"
    path = asked or Path(f"{prefix}.jsonl")
    # Whoever can guess the name might have made it a link to somewhere else.
    follow_links = asked is not None
    return [
        (path, lambda: open_lines(path, follow_links=follow_links)),
        (None, lambda: open_temporary(f"{prefix}-")),
    ]


@attrs.define
class Saved:
    """Where items went."""

    places: list[tuple[Path, int]] = attrs.field(factory=list)
    """(file, how many items are in it)"""
    failures: list[tuple[Path | None, str]] = attrs.field(factory=list)
    """(file, why it could not take all of them); None is the directory for temporary files."""
    lost: int = 0
    """Items that are in no file."""


def save(items: Sequence[_Item], encode: Callable[[_Item], bytes], places: Iterable[Place]) -> Saved:
    """Write a line for each item into the first file that takes it; what one does not take, the next does."""
    saved = Saved(lost=len(items))
    for where, opened in places:
        if not saved.lost:
            break
        lines = map(encode, islice(items, len(items) - saved.lost, None))
        path, taken = where, 0
        try:
            with contextlib.closing(opened()) as file:
                path = file.path
                while batch := list(islice(lines, _AT_ONCE)):
                    file.append(batch)
                    taken += len(batch)
        except OSError as error:
            # Where it was not opened, or the disk does not confirm what it has, it has nothing for certain.
            taken = taken + error.written if isinstance(error, NotAllWritten) else 0
            saved.failures.append((path, error.strerror or str(error)))
        if path and taken:
            saved.places.append((path, taken))
        saved.lost -= taken
    return saved


def _ends_with_line_break(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:
        return False  # an empty line too many is better than two in one
