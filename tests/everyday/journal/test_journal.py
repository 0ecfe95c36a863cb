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


async def test_a_cancellation_waits_for_the_end_of_the_commit(conserved: Conserved) -> None:
    """A put that is cancelled during its commit is accepted, and nobody is left in doubt."""
    disk = Gated()
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=disk) as queue:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: queue.put(b"", delay=60.0, id="a"))
                nursery.start_soon(lambda: queue.put(b"", delay=60.0, id="b"))
                await trio.testing.wait_all_tasks_blocked()
                found = conserved(queue)
                assert (found.accepted, found.committing, found.puts_waiting) == (0, 1, 1)
                scope.cancel()
                disk.gate.set()
        assert [message.id for message in queue.messages()] in (["a"], ["b"])
        assert conserved(queue).accepted == 1
        await queue.drain(0.0)
    assert len(disk.rows) == 1


async def test_a_refused_commit_gives_its_room_to_who_waits_for_it(conserved: Conserved) -> None:
    """The put that fails has had the only room: with its end the one behind it is accepted."""
    disk = Gated(fails=True)
    refused: list[JournalError] = []
    async with open_delay_queue(nothing, capacity=1, workers=1, journal=disk) as queue:

        async def first() -> None:
            with pytest.raises(JournalError, match="once") as raised:
                await queue.put(b"", delay=60.0, id="first")
            refused.append(raised.value)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(lambda: queue.put(b"", delay=60.0, id="second"))
                await trio.testing.wait_all_tasks_blocked()
                assert conserved(queue).puts_waiting == 1
                disk.gate.set()
        assert len(refused) == 1
        assert [message.id for message in queue.messages()] == disk.ids == ["second"]
        await queue.drain(0.0)


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
