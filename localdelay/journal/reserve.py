"""Room on the disk for the removals.

To remove a message takes room in the log, too. On a disk that the journal itself has filled nothing could
ever be removed again: so a file, `PATH-reserve`, keeps some room. It is given up when the disk is full, the
log goes to the database with what that frees, and nothing new is kept until the reserve is there again.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

_RESERVE: Final = 8 << 20
"""Bytes: more than the log has when it goes to the database."""
_SPARSE: Final = 4
"""A database is rewritten to make room where no more than one page in so many is in use,"""
_SMALL: Final = 16_384
"""and no more than so many pages are."""


class Reserve:
    """That of the journal at `path`."""

    def __init__(self) -> None:
        self.is_there = False

    def make(self, path: Path) -> None:
        """Make it anew. Raises `OSError` where there is no room."""
        file = os.open(f"{path}-reserve", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, _RESERVE)
            else:
                os.write(file, bytes(_RESERVE))
        except OSError:
            os.ftruncate(file, 0)
            raise
        finally:
            os.close(file)
        self.is_there = True

    def give_up(self, path: Path, connection: sqlite3.Connection) -> None:
        """Move the log to the database, with the room that this frees: then things can be removed."""
        self.is_there = False
        with suppress(OSError):
            os.truncate(f"{path}-reserve", 0)
        with suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def regain(self, path: Path, connection: sqlite3.Connection) -> None:
        """Make room for it, if there is any by now. Raises `OSError`."""
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        [free] = connection.execute("PRAGMA freelist_count").fetchone()
        if (pages - free) * _SPARSE <= pages and pages - free <= _SMALL:
            connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.make(path)
