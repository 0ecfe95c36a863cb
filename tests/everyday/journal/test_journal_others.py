"""What others do to the files of a journal that is open: who cleans up, copies, or opens SQLite on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from localdelay import DelayQueue, JournalError, SqliteJournal, Statistics, open_delay_queue
from localdelay.journal.record import Gone
from tests.kit.journal_files import held, record
from tests.kit.journals import nothing

Conserved = Callable[[DelayQueue], Statistics]

CLIENT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    print("sees", connection.execute("SELECT count(*) FROM messages").fetchone()[0], flush=True)
except sqlite3.Error as error:
    print(error, flush=True)
sys.stdin.readline()
connection.close()
"""


class Client:
    """Another process that has SQLite count the messages, and leaves in good order when it is told to."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", CLIENT, str(path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline().strip()

    def leave(self) -> None:
        self._process.communicate("\n", timeout=20)


def said_to_a_client(path: Path) -> str:
    client = Client(path)
    client.leave()
    return client.said


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def removed(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replaced(path: Path) -> None:
    removed(path)
    shutil.copy(path.with_name("elsewhere"), path)


def emptied(path: Path) -> None:
    path.open("wb").close()


harms = pytest.mark.parametrize("harm", [removed, replaced, emptied])
files = pytest.mark.parametrize("file", [Path, log_of])
Harm = Callable[[Path], None]
File = Callable[[Path], Path]


@harms
@files
async def test_puts_are_refused_where_nobody_would_find_them(
    path: Path, conserved: Conserved, harm: Harm, file: File
) -> None:
    """From the next one on, and all that was kept is at risk; what is pending stays so."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        message = await queue.put(b"x", delay=100.0)
        harm(file(path))
        for _ in range(2):
            with pytest.raises(JournalError, match=r"is gone"):
                await queue.put(b"x", delay=100.0)
        assert conserved(queue).at_risk == queue.at_risk == 1
        assert queue.cancel(message.id)


@harms
@files
async def test_what_is_lost_is_not_said_to_be_kept(
    path: Path, conserved: Conserved, caplog: pytest.LogCaptureFixture, harm: Harm, file: File
) -> None:
    """A drain looks whether it is there: what it held is in `remaining`, and the log says why."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        message = await queue.put(b"x", delay=100.0)
        await queue.flush()
        harm(file(path))
        with pytest.raises(JournalError, match="is gone"):
            await queue.flush()
        assert queue.statistics().at_risk == queue.at_risk == 1
        report = await queue.drain(0.0)
    assert [left.id for left in report.remaining] == [message.id]
    assert (report.spooled, conserved(queue).pending) == (0, 1)
    assert "what is pending could not be written to the journal" in caplog.text
    assert "1 message (1 B) pending, lost with this process: the journal is gone" in caplog.text


@files
async def test_a_journal_that_came_back_keeps_what_it_held(
    path: Path, conserved: Conserved, file: File
) -> None:
    """What was moved away for a while is there at the end."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        await queue.put(b"x", delay=100.0)
        removed(file(path))
        with pytest.raises(JournalError, match="is gone"):
            await queue.flush()
        path.with_name("elsewhere").rename(file(path))
        report = await queue.drain(0.0)
    assert (report.spooled, report.remaining, conserved(queue).pending) == (1, [], 0)


@pytest.mark.parametrize(
    ("harm", "file", "told"),
    [
        (removed, Path, "it was removed"),
        (replaced, Path, "another file is in its place"),
        (emptied, Path, "it was emptied"),
        (removed, log_of, "its log was removed"),
        (replaced, log_of, "another file is in its log's place"),
        (emptied, log_of, "its log was emptied"),
    ],
)
def test_the_line_says_what_has_happened(path: Path, harm: Harm, file: File, told: str) -> None:
    """To which of the two files: an operator is to find who did it."""
    with closing(SqliteJournal(path)) as journal:
        journal.open()
        journal.write([record(1)], [], durable=True)
        harm(file(path))
        with pytest.raises(Gone) as caught:
            journal.write([record(2)], [], durable=True)
    assert str(caught.value) == f"the journal {path} is gone: {told}"


def test_a_directory_that_is_none_any_more(tmp_path: Path) -> None:
    """A file in the place of the journal's directory is told as what was removed is."""
    (tmp_path / "d").mkdir()
    with closing(SqliteJournal(tmp_path / "d" / "journal")) as journal:
        journal.open()
        (tmp_path / "d").rename(tmp_path / "elsewhere")
        (tmp_path / "d").touch()
        with pytest.raises(Gone, match="it was removed"):
            journal.write([], [], durable=False)


def test_a_log_that_the_journal_has_emptied_itself(path: Path) -> None:
    """It does so where the disk is full, and before it keeps anything again: that is no one else's doing."""
    with closing(SqliteJournal(path)) as journal:
        journal.open()
        journal.write([record(1)], [], durable=True)
        assert journal._connection is not None
        journal._connection.execute("PRAGMA max_page_count = 1")  # that is, of those there are
        with pytest.raises(JournalError, match="the disk is full"):
            journal.write([record(2, payload=bytes(50_000))], [], durable=True)
        assert not log_of(path).stat().st_size
        journal.write([], [1], durable=True)
        journal._connection.execute("PRAGMA max_page_count = 1000000")
        for key in (3, 4):
            journal.write([record(key)], [], durable=True)
    assert held(path) == ["m3", "m4"]


def read(path: Path) -> None:
    SqliteJournal(path).read()


def salvaged(path: Path) -> None:
    SqliteJournal(path).salvage()


def opened(path: Path) -> None:
    SqliteJournal(path).open()


def next_one(path: Path) -> None:
    with closing(SqliteJournal.first_free(f"{path.parent}/{{}}")) as journal:
        journal.open()
    assert journal.path.name == "1"


@pytest.mark.parametrize("look", [read, salvaged, opened, next_one])
def test_a_second_look_in_the_same_process_lets_nobody_in(
    tmp_path: Path, look: Callable[[Path], None]
) -> None:
    """Whoever closes a file loses the process's locks on it: who is refused has not even opened it."""
    path = tmp_path / "0"
    with closing(SqliteJournal(path)) as journal:
        journal.open()
        journal.write([record(1)], [], durable=True)
        with suppress(JournalError):
            look(path)
        assert said_to_a_client(path) == "database is locked"
        journal.write([record(2)], [], durable=True)
    assert held(path) == ["m1", "m2"]


def test_a_lock_that_is_lost_is_taken_again(path: Path) -> None:
    """A copy that the process has made costs it SQLite's lock: the next commit takes it once more."""
    with closing(SqliteJournal(path)) as journal:
        journal.open()
        journal.write([record(1)], [], durable=True)
        shutil.copy(path, path.with_name("copy"))
        journal.write([record(2)], [], durable=True)
        assert said_to_a_client(path) == "database is locked"


async def test_beside_another_program_nothing_is_written(path: Path, conserved: Conserved) -> None:
    """One that came in when the lock was lost: it would take the log away, and did so when it had left."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        await queue.put(b"x", delay=100.0, id="a")
        shutil.copy(path, path.with_name("copy"))
        client = Client(path)
        assert client.said == "sees 1"
        with pytest.raises(JournalError, match="in use by another program"):
            await queue.put(b"x", delay=100.0)
        assert conserved(queue).at_risk == 0
        client.leave()
        with pytest.raises(JournalError, match="its log was removed"):
            await queue.put(b"x", delay=100.0)
        assert conserved(queue).at_risk == 1
        await queue.drain(0.0)
    assert held(path) == ["a"]


def test_what_lies_beside_a_file_that_is_no_journal_stays_as_it_is(path: Path) -> None:
    """Though it has the name of a lock: it may be anybody's."""
    path.write_text("no journal")
    beside = path.with_name("journal-lock")
    beside.write_text("worth something")
    for look in (read, salvaged, opened):
        with pytest.raises(JournalError, match="no SQLite database"):
            look(path)
    assert beside.read_text() == "worth something"
