"""What SQLite has written and what it has synced: the files as the loss of power leaves them.

SQLite does all that it does to files through a table of functions, its VFS. For the length of a block the
default one is a copy of it whose files note each write, each truncation and each sync before they do it.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from .journal_copies import Files

_POINTER = ctypes.c_void_p
_OPEN = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, _POINTER, ctypes.c_int, _POINTER)
_WRITE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, _POINTER, ctypes.c_int, ctypes.c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_int)


_GIVEN_TO_SQLITE: list[object] = []
"""Never let go: a connection may outlive the block, and goes on to call these."""


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, of version 3."""

    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        ("next", _POINTER),
        ("name", ctypes.c_char_p),
        ("data", _POINTER),
        ("open", _OPEN),
        ("others", _POINTER * 15),
    ]


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, of version 3."""

    _fields_: ClassVar = [
        ("version", ctypes.c_int),
        ("close", _POINTER),
        ("read", _POINTER),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("others", _POINTER * 13),
    ]


class Power:
    """Notes what is done to files, each by the end of its name: "" is a database, and "-wal" its log."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._synced: dict[str, bytes] = {}
        self._unsynced: dict[str, list[tuple[int, bytes | None]]] = {}
        self.syncs: dict[str, int] = {}

    def wrote(self, name: str, offset: int, data: bytes | None) -> None:
        """These bytes were written there; None: the file was cut off there."""
        self._unsynced.setdefault(name, []).append((offset, data))

    def synced(self, name: str) -> None:
        """All that was written to this file before survives from now on."""
        self._synced[name] = self._content(name, len(self._unsynced.get(name, [])))
        self._unsynced[name] = []
        self.syncs[name] = self.syncs.get(name, 0) + 1

    def begin(self) -> None:
        """What is there now survives."""
        for end in ("", "-wal"):
            file = Path(self._path + end)
            self._synced[file.name] = file.read_bytes() if file.exists() else b""
        self._unsynced.clear()
        self.syncs.clear()

    def after_loss(self, rng: random.Random | None = None) -> Files:
        """The database and its log, without what was not synced; with some of it, by chance."""
        names = [Path(self._path + end).name for end in ("", "-wal")]
        counts = [len(self._unsynced.get(name, [])) for name in names]
        kept = [0 if rng is None else rng.randint(0, count) for count in counts]
        database, log = map(self._content, names, kept)
        return database, log

    def _content(self, name: str, writes: int) -> bytes:
        content = bytearray(self._synced.get(name, b""))
        for offset, data in self._unsynced.get(name, [])[:writes]:
            if data is None:
                del content[offset:]
            else:
                content.extend(bytes(max(0, offset - len(content))))
                content[offset : offset + len(data)] = data
        return bytes(content)


@contextmanager
def watched_power(path: Path) -> Iterator[Power]:
    """Note what SQLite does to the journal at this path. Skips where its library can't be reached."""
    library: Any = ctypes.CDLL(_sqlite3.__file__)
    if not hasattr(library, "sqlite3_vfs_register"):
        pytest.skip("SQLite is linked into this Python, which does not show its functions")
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    library.sqlite3_vfs_register.argtypes = [ctypes.POINTER(_Vfs), ctypes.c_int]
    library.sqlite3_vfs_unregister.argtypes = [ctypes.POINTER(_Vfs)]
    power = Power(path)
    original = library.sqlite3_vfs_find(None)
    noting = _Vfs.from_buffer_copy(original.contents)
    noting.name = b"noting"
    _GIVEN_TO_SQLITE.append(noting)

    # A path is passed on as the address that it is: SQLite reads it again, to name the "-shm" file, long
    # after this has returned, when a copy of it would be gone.
    def open_(_: int, name: int | None, file: int, flags: int, flags_out: int | None) -> int:
        vfs = original.contents
        result: int = vfs.open(ctypes.addressof(vfs), name, file, flags, flags_out)
        methods = ctypes.cast(file, ctypes.POINTER(_POINTER)).contents  # a file begins with them
        if result == 0 and name is not None and methods.value is not None:
            own = _noting(power, Path(ctypes.string_at(name).decode()).name, methods.value)
            _GIVEN_TO_SQLITE.append(own)
            methods.value = ctypes.addressof(own)
        return result

    noting.open = _OPEN(open_)
    library.sqlite3_vfs_register(noting, 1)
    try:
        yield power
    finally:
        library.sqlite3_vfs_unregister(noting)


def _noting(power: Power, name: str, methods: int) -> _Methods:
    original = _Methods.from_address(methods)
    write_on, truncate_on, sync_on = original.write, original.truncate, original.sync

    def write(file: int, data: int, size: int, offset: int) -> int:
        power.wrote(name, offset, ctypes.string_at(data, size))
        done: int = write_on(file, data, size, offset)
        return done

    def truncate(file: int, size: int) -> int:
        power.wrote(name, size, None)
        done: int = truncate_on(file, size)
        return done

    def sync(file: int, flags: int) -> int:
        done: int = sync_on(file, flags)
        power.synced(name)
        return done

    noting = _Methods.from_buffer_copy(original)
    noting.write, noting.truncate, noting.sync = _WRITE(write), _TRUNCATE(truncate), _SYNC(sync)
    return noting
