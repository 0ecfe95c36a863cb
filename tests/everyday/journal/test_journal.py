"""The journal: what is accepted survives the process, and what is finished does not come back."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from localdelay import (
    DelayQueue,
    JournalError,
    Message,
    QueueFull,
    SqliteJournal,
    Statistics,
    open_delay_queue,
)
from localdelay.journal.record import Record
from tests.kit.journal_copies import EPOCH
from tests.kit.journals import Disk, Gated, nothing, until
from tests.simulation.clock import run

Conserved = Callable[[DelayQueue], Statistics]


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


def test_what_the_journal_holds_comes_back(path: Path, conserved: Conserved) -> None:
    """With its id, headers and attempt, and the delay that is left; counted as accepted and recovered."""
    put: list[Message] = []
    arrived: list[tuple[float, Message]] = []

    async def send(message: Message) -> None:
        arrived.append((trio.current_time(), message))

    async def first_life() -> None:
        async with open_delay_queue(nothing, capacity=10, workers=1, journal=SqliteJournal(path)) as queue:
            put.extend(
                [await queue.put(b"x", delay=delay, headers={"n": "1"}) for delay in (0.5, 100.0, 0.25)]
            )
            await queue.drain(0.0)

    async def second_life() -> None:
        async with open_delay_queue(send, capacity=1, workers=1, journal=SqliteJournal(path)) as queue:
            found = conserved(queue)
            assert (found.accepted, found.recovered, found.at_risk) == (3, 3, 0)
            with pytest.raises(QueueFull):
                queue.put_nowait(b"", delay=0.0)
            messages = queue.messages()
            assert [message.id for message in messages] == [put[2].id, put[0].id, put[1].id]
            assert [message.execute_at for message in messages] == [0.125, 0.375, 99.875]
            with pytest.raises(ValueError, match="pending already"):
                await queue.put(b"", delay=1.0, id=put[1].id)
            assert queue.cancel(put[1].id)

    run(first_life, lambda: EPOCH + trio.current_time())
    run(second_life, lambda: EPOCH + 0.125 + trio.current_time())
    assert [(when, message.id) for when, message in arrived] == [(0.125, put[2].id), (0.375, put[0].id)]
    assert arrived[0][1].headers == {"n": "1"}
    assert SqliteJournal(path).read() == []


async def test_a_message_that_is_finished_first_is_never_written(conserved: Conserved) -> None:
    """What is cancelled before its commit begins needs no place on disk."""
    disk = Gated()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        # The disk is busy with another: it could take a message in the instant between its put and its end.
        queue.put_nowait(b"", delay=60.0, id="other")
        assert await trio.to_thread.run_sync(disk.begun.wait, 20)
        for number in range(5):
            queue.put_nowait(b"", delay=60.0, id=f"m{number}")
            assert queue.cancel(f"m{number}")
        disk.gate.set()
        await queue.flush()
        assert [kept for kept, _, _ in disk.writes if kept] == [["other"]]
        assert all(gone == [] for _, gone, _ in disk.writes)
        await queue.drain(0.0)
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


async def test_a_worker_takes_nothing_new_before_its_removal_is_written(conserved: Conserved) -> None:
    """While the disk is slow, one worker sends one message, not the next."""
    disk = Gated()
    disk.gate.set()
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)
        if message.id == "a":
            disk.gate.clear()
            disk.begun.clear()

    async with open_delay_queue(send, capacity=10, workers=1, journal=disk) as queue:
        queue.pause()
        for name in ("a", "b"):
            await queue.put(b"", delay=0.0, id=name)
        queue.resume()
        await until(lambda: sent and disk.begun.is_set())
        await trio.testing.wait_all_tasks_blocked()
        assert sent == ["a"]
        found = conserved(queue)
        assert (found.sent, found.pending, sorted(disk.ids)) == (1, 1, ["a", "b"])
        disk.gate.set()
    assert sent == ["a", "b"]
    assert disk.rows == {}


def test_overdue_messages_are_paced() -> None:
    """With a `catch_up_rate` what is overdue is spread; its lateness still counts from its execute-at."""
    disk = Disk()
    disk.rows = {
        key: Record(key, EPOCH - 100.0 + key / 128, 1, f"m{key}", None, b"") for key in range(1, 11)
    } | {11: Record(11, EPOCH + 1 / 16, 1, "later", None, b"")}
    times: dict[str, float] = {}

    async def send(message: Message) -> None:
        times[message.id] = trio.current_time()

    async def main() -> None:
        async with open_delay_queue(send, capacity=1, workers=5, journal=disk, catch_up_rate=64.0) as queue:
            pass
        assert queue.statistics().lateness.max == 100.0625

    run(main, lambda: EPOCH + trio.current_time())
    assert times == {f"m{number + 1}": number / 64 for number in range(10)} | {"later": 1 / 16}
