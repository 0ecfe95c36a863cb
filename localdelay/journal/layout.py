"""What a journal's file looks like: its tables, version by version, and how rows get there."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Final

from .record import Row

APPLICATION: Final = 0x1D31A70B
VERSION: Final = 2
_MESSAGES_1: Final = (
    "CREATE TABLE messages (key INTEGER PRIMARY KEY, due REAL NOT NULL, attempt INTEGER NOT NULL, "
    "id TEXT NOT NULL, headers BLOB, payload BLOB NOT NULL, dead TEXT, checksum INTEGER NOT NULL)"
)
MESSAGES: Final = f"{_MESSAGES_1[:-1]}, expires REAL, at REAL)"
# What is being sent is one small row, and no column: a commit changes one page for all of it.
SENDING: Final = "CREATE TABLE sending (id INTEGER PRIMARY KEY, keys BLOB NOT NULL)"
SCHEMAS: Final = {1: [(_MESSAGES_1,)], VERSION: [(MESSAGES,), (SENDING,)]}
UPGRADE: Final = (
    "ALTER TABLE messages ADD COLUMN expires REAL",
    "ALTER TABLE messages ADD COLUMN at REAL",
    SENDING,
    f"PRAGMA user_version = {VERSION}",
)
_AT_ONCE: Final = (64, 16, 4, 1)
"""Rows a statement. Each statement hands the interpreter's lock over and waits to have it back."""


def insert(connection: sqlite3.Connection, rows: list[Row]) -> None:
    """Keep these rows; one that is there under its key is replaced."""
    begin = 0
    for count in _AT_ONCE:
        while len(rows) - begin >= count:
            values = ",".join(["(?,?,?,?,?,?,?,?,?,?)"] * count)
            flat = tuple(chain.from_iterable(rows[begin : begin + count]))
            connection.execute(f"INSERT OR REPLACE INTO messages VALUES {values}", flat)  # noqa: S608
            begin += count
