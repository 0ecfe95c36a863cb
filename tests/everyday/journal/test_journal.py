"""The journal: what is accepted survives the process, and what is finished does not come back."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from localdelay import (
    DelayQueue,
    JournalError,
    Message,
    PermanentSendError,
    QueueClosed,
    QueueFull,
    RetryPolicy,
    SqliteJournal,
    Statistics,
    Throttled,
    open_delay_queue,
)
from localdelay.journal.record import Record
from tests.kit.journals import Disk, Gated, content_of, until

Conserved = Callable[[DelayQueue], Statistics]


async def nothing(_: Message) -> None:
    pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


async def test_what_a_put_has_accepted_is_on_disk(path: Path, tmp_path: Path, conserved: Conserved) -> None:
    """A copy of the files, taken when `put` has returned, has the message; a clean end leaves the rest."""
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        await queue.put(b"one", delay=60.0, headers={"a": "ä"}, id="first")
        for name in ("journal", "journal-wal"):
            shutil.copy(tmp_path / name, tmp_path / f"copy-{name}")
        assert conserved(queue).at_risk == 0
        report = await queue.drain(0.0)
    assert (report.spooled, report.remaining, report.plan.spool) == (1, [], 1)
    assert conserved(queue).spooled == 1
    [record] = SqliteJournal(tmp_path / "copy-journal").read()
    assert (record.id, record.payload, record.headers, record.attempt) == ("first", b"one", {"a": "ä"}, 1)
    assert SqliteJournal(path).read() == [record]


async def test_what_the_journal_holds_comes_back(path: Path, conserved: Conserved) -> None:
    """With its id, headers and attempt, and the delay that is left; counted as accepted and recovered."""
    started = time.time()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
        put = [await queue.put(b"x", delay=delay, headers={"n": "1"}) for delay in (0.3, 100.0, 0.2)]
        await queue.drain(0.0)
    arrived: list[Message] = []

    async def send(message: Message) -> None:
        arrived.append(message)

    async with open_delay_queue(send, capacity=1, workers=1, journal=SqliteJournal(path)) as queue:
        found = conserved(queue)
        assert (found.accepted, found.recovered, found.at_risk) == (3, 3, 0)
        with pytest.raises(QueueFull):
            queue.put_nowait(b"", delay=0.0)
        [due, other, last] = queue.messages()
        assert [due.id, other.id, last.id] == [put[2].id, put[0].id, put[1].id]
        assert last.execute_at - trio.current_time() == pytest.approx(100 - (time.time() - started), abs=0.2)
        with pytest.raises(ValueError, match="pending already"):
            await queue.put(b"", delay=1.0, id=last.id)
        assert queue.cancel(last.id)
        await until(lambda: len(arrived) == 2)
    assert time.time() - started >= 0.3
    assert [message.id for message in arrived] == [put[2].id, put[0].id]
    assert arrived[0].headers == {"n": "1"}
    assert SqliteJournal(path).read() == []


async def test_a_finished_message_is_removed(conserved: Conserved) -> None:
    """Sent, cancelled, handed back, or taken by the dead-letter hook."""
    disk = Disk()

    async def send(message: Message) -> None:
        if message.payload == b"bad":
            raise PermanentSendError

    async def hook(message: Message, _: Exception) -> None:
        pass

    async with open_delay_queue(send, capacity=10, workers=1, journal=disk, on_dead_letter=hook) as queue:
        await queue.put(b"good", delay=0.0)
        await queue.put(b"bad", delay=0.0)
        cancelled = await queue.put(b"", delay=50.0)
        await queue.put(b"", delay=60.0, id="back")
        assert queue.cancel(cancelled.id)
        await until(lambda: conserved(queue).pending == 1)
        await queue.flush()
        assert disk.ids == ["back"]

        async def hand_back(message: Message, _: float) -> None:
            pass

        report = await queue.drain(1.0, hand_back)
    assert report.handed_back == 1
    assert disk.rows == {}
    found = conserved(queue)
    assert (found.sent, found.dead, found.cancelled, found.handed_back) == (1, 1, 1, 1)


async def test_dead_letters_that_nobody_took_stay(conserved: Conserved) -> None:
    """Marked with the error, and not taken in again; so do those whose hook failed."""
    disk = Disk()

    async def send(message: Message) -> None:
        raise PermanentSendError("no such queue")

    async def hook(message: Message, error: Exception) -> None:
        raise OSError("disk full")

    async with open_delay_queue(send, capacity=10, workers=1, journal=disk) as queue:
        await queue.put(b"x", delay=0.0, id="a")
    async with open_delay_queue(send, capacity=10, workers=1, journal=disk, on_dead_letter=hook) as queue:
        assert conserved(queue).recovered == 0
        await queue.put(b"x", delay=0.0, id="b")
    assert conserved(queue).dead == 1
    assert disk.ids == ["a", "b"]
    assert {record.dead for record in disk.rows.values()} == {"PermanentSendError('no such queue')"}


async def test_attempts_are_kept() -> None:
    """A message that has failed twice begins with its third attempt after a crash; throttling counts not."""
    disk = Disk()
    errors: list[Exception] = [OSError(), Throttled(), OSError()]

    async def send(message: Message) -> None:
        if errors:
            raise errors.pop()
        await trio.sleep_forever()

    retry = RetryPolicy(wait_initial=0.001, wait_jitter=0.0, wait_exp_base=1.0)
    with trio.CancelScope() as scope:
        async with open_delay_queue(send, capacity=10, workers=1, journal=disk, retry=retry) as queue:
            await queue.put(b"x", delay=0.0)
            await until(lambda: queue.statistics().sending and not errors)
            scope.cancel()
    [record] = disk.rows.values()
    assert record.attempt == 3
    attempts: list[int] = []

    async def note(message: Message) -> None:
        attempts.append(message.attempt)

    async with open_delay_queue(note, capacity=10, workers=1, journal=disk):
        pass
    assert attempts == [3]


async def test_put_nowait_is_at_risk_until_it_is_flushed(conserved: Conserved) -> None:
    """It is accepted at once; after `flush` it is on disk."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        queue.put_nowait(b"123", delay=60.0, id="a")
        found = conserved(queue)
        assert (found.accepted, found.at_risk, found.at_risk_bytes) == (1, 1, 3)
        await queue.flush()
        assert disk.ids == ["a"]
        found = conserved(queue)
        assert (found.at_risk, found.at_risk_bytes) == (0, 0)
        await queue.drain(0.0)
    assert disk.closed == 1


async def test_a_message_that_is_finished_first_is_never_written(conserved: Conserved) -> None:
    """What is cancelled in the instant of its put needs no place on disk."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        for number in range(5):
            queue.put_nowait(b"", delay=60.0, id=f"m{number}")
            assert queue.cancel(f"m{number}")
        await queue.flush()
    assert all(kept == [] and gone == [] for kept, gone, _ in disk.writes)
    assert conserved(queue).cancelled == 5


async def test_puts_that_wait_share_a_commit() -> None:
    """A hundred puts at once take a few commits, not a hundred."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=1000, workers=1, journal=disk) as queue:
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(lambda: queue.put(b"", delay=60.0))
        assert len(disk.rows) == 100
        assert len(disk.writes) <= 20
        assert all(durable for *_, durable in disk.writes)
        await queue.drain(0.0)


async def test_a_full_disk_refuses_puts_and_harms_nothing_else(
    conserved: Conserved, caplog: pytest.LogCaptureFixture
) -> None:
    """`put` raises, what was accepted is sent, `put_nowait` stays at risk; with room again all goes on."""
    disk = Disk()
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)

    with caplog.at_level(logging.WARNING, "localdelay"):
        async with open_delay_queue(send, capacity=10, workers=2, journal=disk) as queue:
            await queue.put(b"", delay=0.1, id="before")
            disk.error = JournalError("the disk is full")
            for _ in range(2):
                with pytest.raises(JournalError, match="the disk is full"):
                    await queue.put(b"", delay=0.1, id="refused")
            queue.put_nowait(b"", delay=60.0, id="risky")
            with pytest.raises(JournalError, match="the disk is full"):
                await queue.flush()
            found = conserved(queue)
            assert (found.accepted, found.at_risk, found.committing) == (2, 1, 0)
            assert found.journal_failures >= 3
            await until(lambda: sent)
            disk.error = None
            await queue.put(b"", delay=60.0, id="after")
            await queue.flush()  # what is late is written behind it
            assert conserved(queue).at_risk == 0
            assert sorted(disk.ids) == ["after", "risky"]
            report = await queue.drain(0.0)
    assert sent == ["before"]
    assert report.spooled == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


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
        assert sent == accepted, "what was accepted is sent"
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
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
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


async def test_what_could_not_be_written_is_left_to_the_caller(conserved: Conserved) -> None:
    """With a disk that stays full a drain spools what is on it; the rest is in `remaining`."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        await queue.put(b"", delay=60.0, id="safe")
        disk.error = JournalError("the disk is full")
        queue.put_nowait(b"", delay=60.0, id="lost")
        report = await queue.drain(0.0)
    assert (report.spooled, [message.id for message in report.remaining]) == (1, ["lost"])
    found = conserved(queue)
    assert (found.spooled, found.pending, found.at_risk) == (1, 1, 1)
    assert [message.id for message in queue.messages()] == ["lost"]


async def test_a_worker_takes_nothing_new_before_its_removal_is_written(conserved: Conserved) -> None:
    """While the disk is slow, one worker sends one message, not the next."""
    disk = Disk()
    gate = trio.Event()
    sent: list[str] = []
    token = trio.lowlevel.current_trio_token()
    write = disk.write

    def slow(kept: Sequence[Record], gone: Sequence[int], *, durable: bool) -> None:
        if gone:
            trio.from_thread.run(gate.wait, trio_token=token)
        write(kept, gone, durable=durable)

    disk.write = slow  # type: ignore[method-assign]

    async def send(message: Message) -> None:
        sent.append(message.id)

    async with open_delay_queue(send, capacity=10, workers=1, journal=disk) as queue:
        for name in ("a", "b"):
            await queue.put(b"", delay=0.05, id=name)
        await trio.sleep(0.2)
        assert sent == ["a"]
        found = conserved(queue)
        assert (found.sent, found.pending, sorted(disk.ids)) == (1, 1, ["a", "b"])
        gate.set()
    assert sent == ["a", "b"]
    assert disk.rows == {}


async def test_a_cancellation_waits_for_the_end_of_the_commit(conserved: Conserved) -> None:
    """A put that is cancelled during its commit is accepted, and nobody is left in doubt."""
    disk = Disk()
    gate = trio.Event()
    token = trio.lowlevel.current_trio_token()
    write = disk.write

    def slow(kept: Sequence[Record], gone: Sequence[int], *, durable: bool) -> None:
        trio.from_thread.run(gate.wait, trio_token=token)
        write(kept, gone, durable=durable)

    disk.write = slow  # type: ignore[method-assign]
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=disk) as queue:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: queue.put(b"", delay=60.0, id="a"))
                nursery.start_soon(lambda: queue.put(b"", delay=60.0, id="b"))
                await trio.testing.wait_all_tasks_blocked()
                found = conserved(queue)
                assert (found.accepted, found.committing, found.puts_waiting) == (0, 1, 1)
                scope.cancel()
                gate.set()
        assert [message.id for message in queue.messages()] in (["a"], ["b"])
        assert conserved(queue).accepted == 1
        await queue.drain(0.0)
    assert len(disk.rows) == 1


async def test_a_drain_takes_along_what_is_being_committed(conserved: Conserved) -> None:
    """A put whose commit is under way when a drain begins is accepted, and spooled; no later one is."""
    disk = Gated()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: queue.put(b"", delay=60.0))
            await trio.testing.wait_all_tasks_blocked()
            assert conserved(queue).committing == 1

            @nursery.start_soon
            async def drain() -> None:
                report = await queue.drain(5.0)
                assert report.spooled == 1

            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(QueueClosed):
                await queue.put(b"", delay=1.0)
            disk.gate.set()
    assert conserved(queue).spooled == 1


async def test_leaving_by_an_exception_leaves_all_in_the_journal(conserved: Conserved) -> None:
    """Sends that were cut off, and what waits, count as spooled, and nothing is pending any more."""
    disk = Disk()

    async def send(_: Message) -> None:
        await trio.sleep_forever()

    with pytest.raises(KeyError):
        async with open_delay_queue(send, capacity=10, workers=1, journal=disk) as queue:
            await queue.put(b"", delay=0.0, id="sending")
            await queue.put(b"", delay=60.0, id="waiting")
            queue.put_nowait(b"", delay=60.0, id="new")
            await until(lambda: queue.statistics().sending)
            raise KeyError
    found = conserved(queue)
    assert (found.spooled, found.pending) == (3, 0)
    assert disk.ids == ["sending", "waiting", "new"]


async def test_overdue_messages_are_paced() -> None:
    """With a `recover_rate` what is overdue is spread; its lateness still counts from its execute-at."""
    disk = Disk()
    now = time.time()
    disk.rows = {
        key: Record(key, now - 100.0 + key / 100, 1, f"m{key}", None, b"") for key in range(1, 11)
    } | {11: Record(11, now + 0.05, 1, "later", None, b"")}
    times: dict[str, float] = {}

    async def send(message: Message) -> None:
        times[message.id] = trio.current_time()

    started = trio.current_time()
    async with open_delay_queue(send, capacity=1, workers=5, journal=disk, recover_rate=50.0) as queue:
        pass
    for number in range(10):
        assert times[f"m{number + 1}"] - started == pytest.approx(number / 50, abs=0.1)
        assert times[f"m{number + 1}"] - started >= number / 50
    assert times["later"] < times["m10"]
    assert queue.statistics().lateness.max == pytest.approx(100, abs=0.5)


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
        connection.execute("PRAGMA user_version = 2")
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
        (another_version, "version 2, not 1"),
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
        journal.write(
            [Record(n, 1.0, 1, f"m{n}", None, b"payload-%d" % (n - 1) * 100) for n in range(1, 30)],
            [],
            durable=True,
        )
        journal.close()
    spoil(path)
    before = content_of(tmp_path)
    with pytest.raises(JournalError, match=says) as refused:
        async with open_delay_queue(nothing, capacity=1, workers=1, journal=SqliteJournal(path)):
            pass
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert content_of(tmp_path) == before
