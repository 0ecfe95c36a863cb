"""Whether the files of a journal that is open are still its own.

What SQLite has open it goes on with, though nobody finds it again: a log that was removed, say. And its lock
on the database is the process's, which loses it when it closes any other descriptor of that file, such as
that of a copy in the making. A client of SQLite that is let in then takes the log away when it leaves. So
before each commit the lock is taken once more, which changes nothing where it is held, and then the database
and its log are looked at.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Final

from localdelay.errors import JournalError

from .record import Gone

_LOCK: Final = (512, 1 << 30)
"""Bytes, and from which: what all clients of SQLite lock in a database, far beyond what most of them hold."""


class Files:
    """Those of the journal at `path`, which SQLite has opened and locked. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        import fcntl

        log = Path(f"{path}-wal")
        self._path, self._log = str(path), str(log)
        # There is a log, and until SQLite lets go of it that is never another: all that it does is empty it.
        self._opened, self._opened_log = _which(path.stat()), _which(log.stat())
        self._database = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._take_lock = partial(fcntl.lockf, self._database, fcntl.LOCK_EX | fcntl.LOCK_NB, *_LOCK)
        self.is_logged = False
        """Whether something was kept since SQLite has emptied the log."""

    def check(self) -> None:
        """Raise where nobody would find what is written, which is `Gone`, or somebody else is in."""
        try:
            self._take_lock()  # before the looks: from here on no client of SQLite takes the log away
        except (BlockingIOError, PermissionError):
            raise JournalError(f"the journal {self._path}: it is in use by another program") from None
        self._look(self._path, self._opened, "it", "its", has_bytes=True)
        self._look(self._log, self._opened_log, "its log", "its log's", has_bytes=self.is_logged)

    def close(self) -> None:
        """Let go of them. What SQLite has locked is open then: its connection must be closed before."""
        os.close(self._database)

    def _look(self, path: str, opened: tuple[int, int], it: str, its: str, *, has_bytes: bool) -> None:
        try:
            found = os.stat(path)  # noqa: PTH116 (twice a commit: text is faster than a `Path`)
        except (FileNotFoundError, NotADirectoryError):
            how = f"{it} was removed"
        else:
            if _which(found) != opened:
                how = f"another file is in {its} place"
            elif has_bytes and not found.st_size:
                how = f"{it} was emptied"
            else:
                return
        raise Gone(f"the journal {self._path} is gone: {how}")


def _which(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
