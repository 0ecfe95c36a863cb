"""What is sound of a journal that is damaged."""

from __future__ import annotations

import shlex
import sqlite3
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from localdelay.errors import JournalError

from .record import Kept, decode, decode_keys

_LEAST: Final = -(1 << 63)
_MOST: Final = (1 << 63) - 1
_DEPTH: Final = 10
"""A range of keys is halved so often to get past pages that can't be read: a journal's keys lie close."""


def salvage(connection: sqlite3.Connection) -> tuple[list[Kept], list[str]]:
    """Every message whose checksum holds, by its key; and what else there is, in words."""
    # Else the first text that is none would hide the rows behind it. Its checksum tells that it is none.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    found: dict[int, Kept] = {}
    wrong: list[int] = []

    def take(row: tuple[Any, ...]) -> None:
        try:
            kept = decode(row)
        except (ValueError, OverflowError):
            wrong.append(row[0])
        else:
            found[kept[0]] = kept

    hidden = list(_unreadable(connection, take, _LEAST, _MOST, _DEPTH))
    keys = sorted(found)
    lost = [f"{rows} can't be read" for rows in _rows(hidden, keys)]
    lost += [f"{rows} is damaged" for rows in _rows([(key, key) for key in wrong], keys)]
    sending: set[int] = set()
    try:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        for (packed,) in connection.execute("SELECT keys FROM sending") if version != 1 else ():
            try:
                sending |= decode_keys(packed)
            except ValueError as error:
                lost.append(str(error))
    except sqlite3.DatabaseError:
        lost.append("what was being sent can't be read")
    return [(*found[key][:-1], key in sending) for key in keys], list(dict.fromkeys(lost))


def _rows(ranges: Iterable[tuple[int, int]], found: Sequence[int]) -> Iterator[str]:
    """The rows of these ranges, in words; ranges with no key between them that was found are told as one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and bisect(found, joined[-1][1]) == bisect(found, first):
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    for first, last in joined:
        yield f"row {first}" if first == last else f"what there is of rows {first} to {last}"


def _unreadable(
    connection: sqlite3.Connection, take: Callable[[tuple[Any, ...]], None], first: int, last: int, depth: int
) -> Iterator[tuple[int, int]]:
    """Read the rows of these keys; return the ranges that hide behind pages that are damaged."""
    for order in ("ASC", "DESC"):  # what lies before the damage, and what lies behind it
        if first > last:
            return
        query = f"SELECT * FROM messages WHERE key BETWEEN ? AND ? ORDER BY key {order}"  # noqa: S608
        try:
            for row in connection.execute(query, (first, last)):
                take(row)
                if order == "ASC":
                    first = row[0] + 1
                else:
                    last = row[0] - 1
        except sqlite3.DatabaseError:
            continue
        return
    if first > last:
        return
    if depth == 0 or first == last:
        yield first, last
        return
    middle = (first + last) // 2
    yield from _unreadable(connection, take, first, middle, depth - 1)
    yield from _unreadable(connection, take, middle + 1, last, depth - 1)


def damaged(path: Path, why: object) -> JournalError:
    """What to raise where it is."""
    remedy = f"`localdelay journal salvage {shlex.quote(str(path))} --to NEW` takes what is sound"
    return JournalError(f"the journal {path} is damaged: {why}; {remedy}")


def in_words(error: sqlite3.Error) -> str | None:
    """What SQLite says; None where that is that it is damaged."""
    if str(error).startswith("Could not decode"):  # a text that is none; what follows is the text
        return None
    told = {
        "database is locked": "it is in use by another program",
        "file is not a database": "it is no SQLite database, or a damaged one",
        "database disk image is malformed": None,
        "database or disk is full": "the disk is full",
    }.get(str(error), str(error))
    return told if told is None or told.isprintable() else None  # it quotes what it can't read
