"""The journal's file: who may have it, what it is when something is wrong, and the room that it keeps."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from localdelay import JournalError, SqliteJournal, open_delay_queue
from localdelay.journal.record import Record
from tests.kit.journals import content_of, nothing
from tests.kit.programs import python

FULL = """
import resource, sys, time
import trio
from localdelay import JournalError, SqliteJournal, open_delay_queue

sent = []


async def send(message):
    sent.append(message.id)


async def main():
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with open_delay_queue(
        send, capacity=10**6, workers=5, journal=SqliteJournal(sys.argv[1], "os")
    ) as queue:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # of each file: what is there stays
        accepted, refused = [], 0
        while refused < 5:
            try:
                accepted.append((await queue.put(bytes(5000), delay=0.5)).id)
            except JournalError:
                refused += 1
        while queue.statistics().pending:
            await trio.sleep(0.01)
        assert sorted(sent) == sorted(accepted), "what was accepted is sent, once; workers keep no order"
        assert queue.statistics().lateness.max < 5
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        await queue.put(b"", delay=0.1)
        await queue.put(b"", delay=100.0)
        while queue.statistics().pending > 1:
            await trio.sleep(0.01)
        await queue.drain(0.0)
    print(len(accepted), refused)


trio.run(main)
"""


def test_a_real_file_that_can_not_grow(path: Path) -> None:
    """The kernel refuses to write more: puts fail, sends go on, and afterwards the journal is in order."""
    done = python("-c", FULL, str(path))
    assert done.returncode == 0, done.stderr
    accepted, refused = map(int, done.stdout.split())
    assert accepted > 0
    assert refused == 5
    assert done.stderr.count("the journal can't be written") == 1
    assert len(SqliteJournal(path).read()) == 1


def test_the_room_for_removals_is_given_up_and_regained(path: Path) -> None:
    """A write that fails frees the reserve; nothing new is kept before it is there again."""
    journal = SqliteJournal(path)
    reserve = path.with_name("journal-reserve")
    journal.open()
    rows = [Record(key, 1.0, 1, f"m{key}", None, bytes(5000)) for key in range(1, 1001)]
    journal.write(rows, [], durable=True)
    size = path.stat().st_size
    assert reserve.stat().st_size == 8 << 20
    connection = journal._connection
    assert connection is not None
    connection.execute("PRAGMA max_page_count = 1")  # that is, of those there are
    with pytest.raises(JournalError, match="the disk is full"):
        journal.write([rows[0]._replace(key=2000)], [], durable=True)
    assert reserve.stat().st_size == 0
    journal.write([], [row.key for row in rows[1:]], durable=False)
    assert reserve.stat().st_size == 0
    connection.execute("PRAGMA max_page_count = 1000000")
    journal.write([Record(3000, 1.0, 1, "new", None, b"")], [], durable=True)
    assert reserve.stat().st_size == 8 << 20
    assert path.stat().st_size < size / 10, "what is mostly empty was rewritten to make room"
    journal.close()
    assert [record.id for record in SqliteJournal(path).read()] == ["m1", "new"]


class Failing(sqlite3.Connection):
    """Its statements are counted with those of all others, and one of them fails."""

    left: ClassVar[int]

    def execute(self, *args: Any) -> sqlite3.Cursor:
        Failing.left -= 1
        if not Failing.left:
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(*args)


def test_an_opening_that_fails_leaves_nothing_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever statement fails: each connection is closed, and the journal can be opened then."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def failing(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, factory=Failing, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", failing)
    for number in range(1, 100):
        Failing.left = number
        journal = SqliteJournal(path)
        try:
            journal.open()
        except JournalError as error:
            assert "disk I/O error" in str(error)
        else:
            break
        for connection in opened:
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                connection.cursor()
    journal.close()
    assert 10 < number < 100


async def test_one_queue_a_journal(path: Path) -> None:
    """A second opener, here or in another process, gets a clear error; after the end it may have it."""
    journal = SqliteJournal(path)
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=journal):
        for other in (journal, SqliteJournal(path)):
            with pytest.raises(JournalError, match="in use by") as refused:
                async with open_delay_queue(nothing, capacity=1, workers=1, journal=other):
                    pass
        assert str(os.getpid()) in str(refused.value)
        assert str(path) in str(refused.value)
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=journal):
        pass


def modes_in(directory: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}


async def test_the_files_are_for_their_owner_alone(path: Path, tmp_path: Path) -> None:
    """Whatever the umask, no one else can read the payloads."""
    before = os.umask(0)
    try:
        async with open_delay_queue(nothing, capacity=1, workers=1, journal=SqliteJournal(path)) as queue:
            await queue.put(b"secret", delay=60.0)
            modes = modes_in(tmp_path)
            await queue.drain(0.0)
    finally:
        os.umask(before)
    assert modes == {f"journal{end}": 0o600 for end in ("", "-wal", "-lock", "-reserve")}


def not_a_database(path: Path) -> None:
    path.write_bytes(b"hello" * 1000)


def another_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()


def another_version(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.open()
    journal.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()


def other_tables(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE messages ADD COLUMN more")
    connection.close()


def cut_off(path: Path) -> None:
    os.truncate(path, 4096)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"payload-7")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (not_a_database, "no SQLite database"),
        (another_database, "another database"),
        (another_version, "version 3, not 2"),
        (other_tables, "damaged"),
        (cut_off, "damaged"),
        (flipped, "row 8 is damaged"),
    ],
)
async def test_what_is_no_sound_journal_is_refused(
    path: Path, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    """With one clear line that names the file, which stays as it is, byte for byte."""
    if spoil not in (not_a_database, another_database, another_version):
        journal = SqliteJournal(path)
        journal.open()
        rows = [Record(n, 1.0, 1, f"m{n}", None, b"payload-%d" % (n - 1) * 100) for n in range(1, 30)]
        journal.write(rows, [], durable=True)
        journal.close()
    spoil(path)
    before = content_of(tmp_path)
    with pytest.raises(JournalError, match=says) as refused:
        async with open_delay_queue(nothing, capacity=1, workers=1, journal=SqliteJournal(path)):
            pass
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content_of(tmp_path) == before


FORKS = """
import os, signal, sys, time
from localdelay import SqliteJournal
from localdelay.journal.record import Record

def keep(*keys):
    journal.write([Record(key, time.time() + 3600, 1, str(key), None, b"") for key in keys], [], durable=True)

journal = SqliteJournal(sys.argv[1])
journal.open()
keep(1, 2, 3)
child = os.fork()
if not child:
    journal.close()
    sys.exit()
os.waitpid(child, 0)
keep(4, 5, 6)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing can be forked here")
def test_a_forked_child_that_ends_takes_nothing_of_its_parents(path: Path) -> None:
    """The log is the parent's, and is there when that is killed: all that it has kept is found."""
    run = subprocess.run([sys.executable, "-c", FORKS, str(path)], capture_output=True, timeout=60)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert [record.key for record in SqliteJournal(path).read()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing can be forked here")
def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """The journal can be opened again though a child of the one that had it still runs."""
    journal = SqliteJournal(tmp_path / "journal")
    journal.open()
    reading, writing = os.pipe()
    born, bearing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.write(bearing, b"x")
        os.read(reading, 1)
        os._exit(0)
    try:
        os.read(born, 1)
        with pytest.raises(JournalError, match="in use"):
            SqliteJournal(journal.path).open()
        journal.close()
        again = SqliteJournal(journal.path)
        again.open()
        again.close()
    finally:
        for end in (reading, writing, born, bearing):
            os.close(end)
        os.waitpid(child, 0)


def test_a_write_that_fails_half_way(tmp_path: Path) -> None:
    """Nothing of it is kept, and the next one is as good as ever."""
    journal = SqliteJournal(tmp_path / "journal")
    journal.open()
    good = Record(1, 2.0, 3, "four", None, b"five")
    with pytest.raises(JournalError):
        journal.write([good, good._replace(key=2, id="\ud800")], [], durable=True)  # which no text can hold
    journal.write([good._replace(key=3)], [], durable=True)
    journal.close()
    assert journal.read() == [good._replace(key=3)]


OLD = Record(7, 2.0, 3, "ä", {"k": "v"}, b"old", "given up")


def of_version_1(path: Path) -> None:
    """As the library made it before what is being sent, `expires` and `at` were kept."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(
        "CREATE TABLE messages (key INTEGER PRIMARY KEY, due REAL NOT NULL, attempt INTEGER NOT NULL, "
        "id TEXT NOT NULL, headers BLOB, payload BLOB NOT NULL, dead TEXT, checksum INTEGER NOT NULL)"
    )
    row = (7, 2.0, 3, "ä", b'{"k": "v"}', b"old", "given up", 2_887_129_107)
    connection.execute("INSERT INTO messages VALUES (?,?,?,?,?,?,?,?)", row)
    connection.execute(f"PRAGMA application_id = {0x1D31A70B}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_version_1_is_read_as_it_is_and_upgraded_where_it_is(path: Path, tmp_path: Path) -> None:
    """Reading changes nothing; the first opening adds what is new, and keeps every row."""
    of_version_1(path)
    before = content_of(tmp_path)
    assert SqliteJournal(path).read() == [OLD]
    assert content_of(tmp_path) == before
    new = OLD._replace(key=8, expires=5.0, at=1.5)
    for held in ([OLD], [OLD, new._replace(sending=True)]):
        journal = SqliteJournal(path)
        assert [Record(*kept) for kept in journal.open()] == held
        journal.write([new], [], {8}, durable=True)
        journal.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)  # which an older library refuses
    connection.close()


def test_what_is_being_sent_is_known_until_it_is_written_anew(tmp_path: Path) -> None:
    """A write that says nothing of it leaves it as it was; keys that are gone are nobody's."""
    journal = SqliteJournal(tmp_path / "journal")
    journal.open()
    rows = [OLD._replace(key=key, dead=None) for key in (1, 2, 3)]
    journal.write(rows, [], {1, 2, 9}, durable=False)
    journal.write([], [1], durable=False)
    journal.close()
    assert [(record.key, record.sending) for record in journal.read()] == [(2, True), (3, False)]
    journal.open()
    journal.write([], [], set(), durable=False)
    journal.close()
    assert not any(record.sending for record in journal.read())
