"""The journal behind the fallback, and in threaded and asyncio programs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
import trio
import trio.testing

from localdelay import Message, QueueFull, RateLimit, SqliteJournal, Throttled, aio, open_delay_queue, threads
from localdelay.journal.record import Record
from localdelay.portal.portal import Remote
from tests.kit.faces import FACES, Face
from tests.kit.journals import Disk, Gated, nothing, until
from tests.kit.programs import python
from tests.kit.waiting import until as wait_until


async def throttled(*_: object) -> None:
    raise Throttled


async def test_a_message_with_another_number_is_removed_when_it_is_sent() -> None:
    """A hand-back that fails gives it another one; the journal still knows it by its first."""
    disk = Disk()

    async def primary(_: Message, __: float) -> None:
        raise Throttled

    async with open_delay_queue(nothing, capacity=9, workers=1, journal=disk) as queue:
        for slot_of in ("flushed", "at risk"):
            message = queue.put_nowait(b"x", delay=0.3)
            if slot_of == "flushed":
                await queue.flush()
            [slot] = queue.hand_backs.far(message.execute_at - 1)
            entry = queue.hand_backs.take_out(slot)
            assert entry is not None
            assert isinstance(await queue.hand_backs.give(entry, primary), Throttled)
            assert queue.is_pending(message.id)
            await queue.flush()
            assert disk.ids == [message.id]
            assert queue.statistics().at_risk == 0
            await until(lambda: queue.statistics().pending == 0)
            await queue.flush()
            assert disk.rows == {}


def test_what_is_overdue_waits_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the journal held may be due before they have been started: no send of it is refused one."""
    disk = Disk()
    with threads.open_delay_queue(lambda _: None, capacity=9, workers=1, journal=disk) as queue:
        queue.put(b"x", delay=0.2)
        queue.drain(0.0)
    assert len(disk.rows) == 1
    start = Remote.start

    def slowly(remote: Remote) -> Future[None]:
        opens = start(remote)
        opens.result()
        deadline = time.monotonic() + 20
        while not (statistics := remote.ask(remote.queue.statistics)).sending and not statistics.throttled:
            assert time.monotonic() < deadline, "it takes too long"
        return opens

    monkeypatch.setattr(Remote, "start", slowly)
    with threads.open_delay_queue(send_batch=lambda _: None, capacity=9, workers=1, journal=disk) as queue:
        pass
    assert (queue.statistics().sent, queue.statistics().throttled) == (1, 0)


class Count(Disk):
    """How many messages were sent at most whose end is not written: a crash would repeat them."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._sent = self.most = 0

    def send(self, _: Message) -> None:
        with self._lock:
            self._sent += 1
            self.most = max(self.most, self._sent)

    def removed(self, count: int) -> None:
        with self._lock:
            self._sent -= count


@pytest.mark.parametrize("face", FACES[1:3], ids=lambda face: face.name)
def test_a_crash_repeats_one_message_a_worker(face: Face) -> None:
    """However fast the sends are: none is handed a message before the end of its last one is written."""
    disk = Count()

    async def scene(face: Face) -> None:
        async with face.open(disk.send, capacity=1000, workers=7, journal=disk) as queue:
            for _ in range(1000):
                queue.put_nowait(b"", delay=0.0)
        assert (await face.now(queue.statistics())).sent == 1000

    face.play(scene, waits_for_threads=True)
    assert disk.most <= 7
    assert disk.rows == {}


def test_room_in_a_threaded_queue_with_a_journal() -> None:
    """A put that is being committed has its room; the next one waits, or is refused, whatever it asks for."""
    disk = Gated()
    with threads.open_delay_queue(lambda _: None, capacity=1, workers=1, journal=disk) as queue:
        first = threading.Thread(target=lambda: queue.put(b"", delay=60.0, id="first"))
        first.start()
        deadline = threading.Event()
        while not queue.statistics().committing:
            deadline.wait(0.001)
        for refused in (
            lambda: queue.put_nowait(b"", delay=1.0),
            lambda: queue.put(b"", delay=1.0, timeout=0),
            lambda: queue.put(b"", delay=1.0, timeout=0.01),
        ):
            with pytest.raises(QueueFull):
                refused()
        assert queue.statistics().accepted == 0
        disk.gate.set()
        first.join()
        assert [message.id for message in queue.messages()] == ["first"]
        assert queue.cancel("first")
        assert queue.put(b"", delay=60.0, timeout=0).id in disk.ids
        queue.drain(0.0)


def test_asyncio_waits_for_the_commit() -> None:
    """As in threads, and a task that is cancelled meanwhile has not put."""
    disk = Gated()
    disk.gate.set()

    async def main() -> None:
        async with aio.open_delay_queue(nothing, capacity=100, workers=2, journal=disk) as queue:
            messages = await asyncio.gather(*(queue.put(b"x", delay=60.0) for _ in range(50)))
            assert {message.id for message in messages} == set(disk.ids)
            fallback = aio.Fallback(throttled, queue)
            receipt = await fallback.publish(b"x", delay=60.0)
            assert receipt.message.id in disk.ids
            assert receipt.at_risk == 0
            queue.put_nowait(b"", delay=60.0, id="a")
            await queue.flush()
            assert "a" in disk.ids
            disk.gate.clear()
            task = asyncio.create_task(queue.put(b"", delay=60.0, id="cancelled"))
            while not (await queue.statistics()).committing:  # noqa: ASYNC110 (nobody tells)
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.sleep(0.01)
            disk.gate.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not await queue.is_pending("cancelled")
            report = await queue.drain(0.0)
            assert (report.spooled, report.remaining) == (52, [])

    asyncio.run(main())
    assert len(disk.rows) == 52


def test_an_exit_loses_nothing_that_is_in_the_journal(tmp_path: Path) -> None:
    """It warns of what is pending, does not call it lost, and the next process has it."""
    path = tmp_path / "journal"
    program = (
        "import sys\n"
        "from localdelay import SqliteJournal, threads\n"
        "queue = threads.open_delay_queue(print, capacity=9, workers=1, journal=SqliteJournal(sys.argv[1]))\n"
        "queue.__enter__().put(b'x', delay=60.0, id='a')\n"
    )
    done = python("-c", program, str(path), check=True)
    assert "1 message (1 B) pending" in done.stderr
    assert "lost" not in done.stderr
    assert [record.id for record in SqliteJournal(path).read()] == ["a"]


def test_what_a_pause_keeps_back_gives_its_token_back() -> None:
    """It was let go by the limit, and the pause came while the journal was told of its send."""
    disk, limit, sent = Gated(), RateLimit(0.001, burst=2), list[Message]()
    disk.gate.set()
    with threads.open_delay_queue(sent.append, capacity=2, workers=1, limit=limit, journal=disk) as queue:
        queue.pause()
        queue.put(b"", delay=0.0)
        disk.gate.clear()
        disk.begun.clear()
        queue.resume()
        assert disk.begun.wait(20)
        queue.pause()
        disk.gate.set()
        wait_until(lambda: queue.statistics().waiting == 1)
        assert limit.available == pytest.approx(2.0, abs=0.1)
        queue.resume()
        wait_until(lambda: len(sent) == 1)
        assert limit.available == pytest.approx(1.0, abs=0.1)


async def test_what_ends_the_queue_half_way_through_the_recovery_loses_nothing() -> None:
    """An opening that is cancelled leaves the journal as it was, and free."""
    disk = Disk()
    for key in range(1, 10_001):
        disk.rows[key] = Record(key, 4e9, 1, f"m{key}", None, b"")
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_delay_queue(nothing, capacity=9, workers=1, journal=disk):
            raise AssertionError("it was opened")
    assert len(disk.rows) == 10_000
    assert disk.closed == 1


class Slow(Disk):
    """A journal that takes its time to be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.opening, self.gate = threading.Event(), threading.Event()

    def open(self) -> list[Record]:
        self.opening.set()
        assert self.gate.wait(20)
        return super().open()


def test_an_asyncio_loop_goes_on_while_a_journal_is_opened() -> None:
    """One with millions takes seconds, in which a service has other things to do."""
    disk = Slow()

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.01, disk.gate.set)
        async with aio.open_delay_queue(nothing, capacity=2, workers=1, journal=disk) as queue:
            await queue.put(b"", delay=0.0)

    asyncio.run(main())
    assert (disk.rows, disk.closed) == ({}, 1)


def test_an_opening_that_is_cancelled_leaves_no_queue() -> None:
    """Who is cancelled meanwhile waits for it, and for its end."""
    disk = Slow()

    async def opened() -> None:
        async with aio.open_delay_queue(nothing, capacity=2, workers=1, journal=disk):
            pytest.fail("the block was entered")

    async def main() -> None:
        opening = asyncio.create_task(opened())
        await asyncio.to_thread(disk.opening.wait, 20)
        opening.cancel()
        asyncio.get_running_loop().call_later(0.01, disk.gate.set)
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(main())
    assert disk.closed == 1


def test_ctrl_c_while_a_journal_is_opened_leaves_no_queue() -> None:
    """It ends as soon as it is open, and nobody else need end it."""
    disk = Slow()

    def interrupt() -> None:
        assert disk.opening.wait(20)
        threading.Event().wait(0.05)  # until the other thread waits
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(0.05)
        disk.gate.set()

    other = threading.Thread(target=interrupt)
    other.start()
    with (
        pytest.raises(KeyboardInterrupt),
        threads.open_delay_queue(nothing, capacity=2, workers=1, journal=disk),
    ):
        pytest.fail("the block was entered")
    other.join()
    assert disk.closed == 1
