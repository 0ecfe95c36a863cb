"""A journal in a file: SQLite, with a write-ahead log.

A write goes to the end of the log (`PATH-wal`), and what the log has gathered goes to the database now and
then. So a group of messages costs one write and, where it is to survive a loss of power, one fsync; one that
is torn by a crash is not there at all. The file is checked by a connection that can only read, so that one
that is refused stays as it is.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sqlite3
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

from localdelay.errors import JournalError

from .files import Files
from .layout import APPLICATION, MESSAGES, SCHEMAS, SENDING, UPGRADE, VERSION, insert
from .record import Journal, Kept, Record, decode, decode_keys, encode, encode_keys
from .reserve import Reserve
from .salvage import damaged, in_words, salvage

_MAGIC: Final = b"SQLite format 3\0"
_WITH_LOG: Final = b"\2\2"
_PAGE: Final = 4096  # the larger a page, the more is written for a message
_MOST_WORKERS: Final = 1000
_T = TypeVar("_T")


class _InUse(JournalError):
    """Another process, or another queue of this one, has locked it."""


class SqliteJournal:
    """Pending messages in the SQLite database at `path`, for one queue at a time.

    What `put` has accepted survives the end of the process, whatever ends it. With `durability="fsync"` it
    survives a loss of power, too, as far as the disk keeps what it has confirmed; with "os" it may not, and
    a put waits for no disk. The file is to be on a local one. It is made if there is none, for its owner
    alone (mode 0600); beside it stand `PATH-wal`, `PATH-lock` and `PATH-reserve` (8 MiB). Where several
    workers of a service have a queue each, `first_free` finds each a file. Raises `TypeError` and
    `ValueError` for arguments that are wrong.
    """

    largest = 500_000_000

    def __init__(self, path: str | os.PathLike[str], durability: Literal["fsync", "os"] = "fsync") -> None:
        if durability not in ("fsync", "os"):
            raise ValueError(f'durability must be "fsync" or "os", not {durability!r}')
        given = os.fspath(path)
        if not isinstance(given, str):
            raise TypeError(f"path must be text or a Path, not {type(path).__name__}")
        if not given or "\0" in given:
            raise ValueError(f"path must name a file, which {given!r} does not")
        self.path = Path(os.path.realpath(given))
        self._pattern: str | None = None
        self.durability = durability
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""
        self._reserve = Reserve()
        self._files: Files | None = None
        self._version = VERSION

    def __repr__(self) -> str:
        return f"SqliteJournal({str(self.path)!r}, {self.durability!r})"

    @classmethod
    def first_free(
        cls, pattern: str | os.PathLike[str], durability: Literal["fsync", "os"] = "fsync"
    ) -> SqliteJournal:
        """The first of "orders-0.journal", "orders-1.journal", ... that nobody uses, for "orders-{}.journal".

        It is chosen and locked when a queue opens it, so that no two workers ever get the same. A worker that
        takes a dead one's place takes over what that one left. With fewer workers than before the last files
        stay as they are: `localdelay journal show` tells what is in them. Raises like the class.
        """
        journal = cls(pattern, durability)
        if str(pattern).count("{}") != 1:
            raise ValueError(
                f"pattern must have one {{}} in it, for a number, which {str(pattern)!r} has not"
            )
        journal._pattern = str(journal.path)
        return journal

    def open(self) -> list[Kept]:
        """Take hold of it, and return what it holds. Makes the file if there is none."""
        if self._pattern is None:
            return self._open()
        for number in range(_MOST_WORKERS):
            self.path = Path(self._pattern.replace("{}", f"{number}"))
            with suppress(_InUse):
                return self._open()
        raise JournalError(f"all of {_MOST_WORKERS} journals {self._pattern} are in use")

    def _open(self) -> list[Kept]:
        with self._errors():
            if not self._is_missing():
                self.check()
            with self._locked():
                if self._is_missing():
                    self._check_alone()
                    self._make()
                held = self._held(self._read_all)
                self._connection = connection = self._connect("rw")
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                connection.execute("PRAGMA fullfsync = ON")
                connection.execute("BEGIN IMMEDIATE")  # others are locked out from here on
                if self._version != VERSION:
                    for statement in UPGRADE:
                        connection.execute(statement)
                connection.execute("COMMIT")
                self._files = Files(self.path)
                with suppress(OSError):  # what is on a full disk can be sent all the same
                    self._reserve.make(self.path)
        return held

    def read(self) -> list[Record]:
        """What it holds, without changing anything: for a journal that no queue uses."""
        return [Record(*kept) for kept in self._look(self._read_all)]

    def salvage(self) -> tuple[list[Record], list[str]]:
        """What is sound of one that is damaged, without changing anything, and the rest in words."""
        held, lost = self._look(salvage)
        return [Record(*kept) for kept in held], lost

    def _look(self, read: Callable[[sqlite3.Connection], _T]) -> _T:
        self.check()
        with self._errors(), self._locked():
            found = self._held(read)
        self.close()
        return found

    def check(self) -> None:
        """Raise a `JournalError` unless there is a file that may be a journal. Nothing is made beside it."""
        with self._errors():
            if not self.path.exists():
                raise FileNotFoundError(2, "there is no such file", str(self.path))
            if not self.path.is_file():  # a named pipe would be waited for
                raise JournalError(f"{self.path} is not a journal of localdelay: it is no file")
            # Else a queue of this process may have it, which SQLite's lock would be lost to: see `files`. Who
            # gets the lock looks then.
            if not Path(f"{self.path}-lock").exists():
                self._check_header()

    def write(
        self,
        kept: Sequence[Record],
        gone: Sequence[int],
        sending: Collection[int] | None = None,
        *,
        durable: bool,
    ) -> None:
        """Keep and forget in one transaction: see `Journal.write`."""
        connection, files = self._connection, self._files
        if connection is None or files is None:
            raise JournalError(f"the journal {self.path} is closed")
        synchronous = "FULL" if durable and self.durability == "fsync" else "NORMAL"
        with self._errors():
            files.check()
            if not (kept or gone) and sending is None:
                return
            if kept and not self._reserve.is_there:
                self._reserve.regain(self.path, connection)
            try:
                if synchronous != self._synchronous:
                    self._synchronous = ""
                    connection.execute(f"PRAGMA synchronous = {synchronous}")
                    self._synchronous = synchronous
                connection.execute("BEGIN IMMEDIATE")
                insert(connection, list(map(encode, kept)))
                if gone:
                    connection.execute(
                        "DELETE FROM messages WHERE key IN (SELECT value FROM json_each(?))",
                        (json.dumps(gone),),
                    )
                if sending is not None:
                    connection.execute(
                        "INSERT OR REPLACE INTO sending VALUES (0, ?)", (encode_keys(sending),)
                    )
                connection.execute("COMMIT")
                files.is_logged = files.is_logged or bool(kept)
            except BaseException:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                files.is_logged = False  # nothing is kept then before the reserve is there again
                self._reserve.give_up(self.path, connection)
                raise

    def close(self) -> None:
        """Let go of it."""
        connection, self._connection = self._connection, None
        self._synchronous = ""
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        self._unlock()

    def _unlock(self) -> None:
        files, self._files = self._files, None
        if files is not None:
            files.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock from here on; where the block fails, let go of all."""
        import fcntl

        if self._lock is not None:
            raise JournalError(f"the journal {self.path} is in use by another queue")
        self._lock = lock = os.open(f"{self.path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        _open.add(self)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(lock, 20).decode("ascii", "replace").strip() or "?"
                raise _InUse(f"the journal {self.path} is in use by process {holder}") from None
            if not self._is_missing():
                self._check_header()
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
            yield
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        """Make an empty journal: all of it or nothing, even if the power fails meanwhile."""
        new = self.path.with_name(f"{self.path.name}-new")
        for leftover in (new, Path(f"{new}-wal"), Path(f"{new}-shm")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with closing(self._connect("rw", new)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(MESSAGES)
            connection.execute(SENDING)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _is_missing(self) -> bool:
        return not self.path.exists() or (self.path.is_file() and not self.path.stat().st_size)

    def _check_alone(self) -> None:
        """Raise where there was a journal before: what is left of it would go with a new one."""
        ends = ["-wal", "-reserve"] if self.path.exists() else ["-wal"]
        for end in ends:
            beside = Path(f"{self.path}{end}")
            if beside.exists() and beside.stat().st_size:
                raise JournalError(
                    f"the journal {self.path} is damaged: it is empty, and {beside.name} is not"
                )

    def _held(self, read: Callable[[sqlite3.Connection], _T]) -> _T:
        log, shared = Path(f"{self.path}-wal"), Path(f"{self.path}-shm")
        was_there = shared.exists()
        # Without a log, SQLite would make an empty one to read a database.
        mode = "ro" if log.exists() and log.stat().st_size else "ro&immutable=1"
        try:
            with closing(self._connect(mode)) as connection:
                return read(connection)
        finally:
            if not was_there:
                shared.unlink(missing_ok=True)

    def _read_all(self, connection: sqlite3.Connection) -> list[Kept]:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version not in SCHEMAS:
            raise JournalError(f"the journal {self.path} is of version {version}, not {VERSION}")
        self._version = version
        schema = connection.execute("SELECT sql FROM sqlite_schema").fetchall()
        if schema != SCHEMAS[version]:
            raise damaged(self.path, "its tables are not what they were")
        # A page that is damaged may hide its messages, and nothing else.
        [told] = connection.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise damaged(self.path, " ".join(told.split()))
        found = connection.execute("SELECT * FROM messages ORDER BY key")
        held: list[Kept] = []
        while rows := found.fetchmany(1000):
            held += map(decode, rows)
        if version > 1:
            for (packed,) in connection.execute("SELECT keys FROM sending"):
                sending = decode_keys(packed)
                if sending:
                    held = [(*kept[:-1], True) if kept[0] in sending else kept for kept in held]
        return held

    def _check_header(self) -> None:
        with self.path.open("rb") as file:
            header = file.read(100)
        if not header.startswith(_MAGIC):
            raise JournalError(f"{self.path} is not a journal of localdelay: it is no SQLite database")
        if int.from_bytes(header[68:72]) != APPLICATION:
            raise JournalError(f"{self.path} is not a journal of localdelay, but another database")
        if header[18:20] != _WITH_LOG:  # to write to it SQLite would refuse only later
            raise JournalError(f"the journal {self.path} is damaged: it is of a version of SQLite's to come")

    def _connect(self, mode: str, path: Path | None = None) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path or self.path))}?mode={mode}",
            uri=True,
            isolation_level=None,
            timeout=0,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
        except BaseException:
            connection.close()  # nobody has it yet who could
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            told = in_words(error)
            if told is None:
                raise damaged(self.path, "SQLite can't read it") from error
            raise JournalError(f"the journal {self.path}: {told}") from error
        except OSError as error:
            reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            raise JournalError(f"the journal {self.path}: {reason}") from error
        except (ValueError, OverflowError) as error:
            raise damaged(self.path, error) from error


def journal_of(given: Journal | str | os.PathLike[str] | None) -> Journal | None:
    """What a queue is given: a journal, or a path for one. Raises `TypeError` for anything else."""
    if given is None or isinstance(given, str | os.PathLike):
        return None if given is None else SqliteJournal(given)
    if not all(callable(getattr(given, name, None)) for name in ("open", "write", "close")):
        raise TypeError(f"journal must be a path or a SqliteJournal, not {type(given).__name__}")
    return given


def _in_child() -> None:
    """A forked child must not hold the lock when its parent has ended, nor touch what is the parent's."""
    for journal in list(_open):
        journal._unlock()  # noqa: SLF001 (nobody else may)
        connection, journal._connection = journal._connection, None  # noqa: SLF001
        if connection is not None:
            # It must never be closed, and at its end the interpreter would: SQLite then moves the log to the
            # database and removes it, and what the parent writes from there on is in a file without a name.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


_open: weakref.WeakSet[SqliteJournal] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
