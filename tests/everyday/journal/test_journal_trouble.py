"""The journal where something else goes wrong, too: a backlog, an end, a fork."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import trio
import trio.testing

import localdelay.journal.commits
from localdelay import (
    AdaptiveLimit,
    DelayQueue,
    JournalError,
    Message,
    QueueFull,
    RetryPolicy,
    Statistics,
    open_delay_queue,
)
from localdelay.breaker import THROTTLED
from tests.kit.journals import Disk, Gated, nothing, until

Conserved = Callable[[DelayQueue], Statistics]


async def test_a_backlog_does_not_hold_up_what_is_sent(conserved: Conserved) -> None:
    """While thousands can't be written, removals are, each without another try of all of them."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10_000, workers=1, journal=disk) as queue:
        for _ in range(100):
            queue.put_nowait(b"x", delay=0.2)
        await queue.flush()
        disk.error = JournalError("the disk is full")
        for _ in range(3000):
            queue.put_nowait(b"x", delay=100.0)
        await until(lambda: queue.statistics().sent == 100)
        assert conserved(queue).at_risk == 3000
        writes = disk.writes[:]
        disk.error = None
        await queue.flush()
        assert conserved(queue).at_risk == 0
        assert len(disk.rows) == 3000
        await queue.drain(0.0)
    assert len([kept for kept, _, _ in writes if kept]) < 20
    assert conserved(queue).spooled == 3000


async def test_a_queue_that_is_full_of_puts_that_wait_for_the_journal_says_so(conserved: Conserved) -> None:
    """They have their room already, though none of them is pending yet."""
    disk = Gated()
    async with open_delay_queue(nothing, capacity=2, workers=1, journal=disk) as queue:
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(lambda: queue.put(b"12345", delay=60.0))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(QueueFull) as caught:
                queue.put_nowait(b"", delay=60.0)
            disk.gate.set()
        assert str(caught.value) == (
            "0 of 2 messages and 0 bytes are pending, 2 of 10 bytes are being taken in, 0 puts wait for room"
        )
        with pytest.raises(
            QueueFull, match=r"^2 of 2 messages and 10 bytes are pending, 0 puts wait for room$"
        ):
            queue.put_nowait(b"", delay=60.0)
        await queue.drain(0.0)
    assert conserved(queue).spooled == 2


@pytest.mark.parametrize("expires", [None, 0.5])
async def test_a_limit_gets_no_more_back_than_it_gave(
    expires: float | None, autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """One that begins while an attempt is written down had nothing of what is not sent then after all."""
    disk, limit = Gated(), AdaptiveLimit()
    disk.gate.set()
    async with open_delay_queue(nothing, capacity=9, workers=5, journal=disk, limit=limit) as queue:
        queue.pause()
        for _ in range(5):
            await queue.put(b"", delay=0.0, expires=expires)
        disk.gate.clear()
        disk.begun.clear()
        queue.resume()
        await until(disk.begun.is_set)
        limit.record(THROTTLED, 0.0, None, 0.0, lately=1e-3)
        if expires is None:
            queue.pause()
        else:
            autojump_clock.jump(1.0)
        disk.gate.set()
        await until(lambda: queue.statistics().sending == 0)
        assert limit.available < 0.5
        await queue.drain(0.0)
    conserved(queue)


async def test_a_journal_that_hangs_holds_up_an_end_for_some_seconds(
    autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """A drain by 5 s beyond its grace, and the block by 10 s more."""
    disk = Gated()
    async with open_delay_queue(nothing, capacity=2, workers=1, journal=disk) as queue:
        queue.put_nowait(b"", delay=60.0)
        report = await queue.drain(0.0)
        assert trio.current_time() == 5.0
        assert (report.spooled, len(report.remaining)) == (0, 1)
    assert trio.current_time() == 15.0
    disk.gate.set()
    assert conserved(queue).pending == 1


async def test_a_flush_waits_for_what_is_late(conserved: Conserved, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written before is there when it returns, and not when its next try is due."""
    monkeypatch.setattr(localdelay.journal.commits, "RETRY_EVERY", 1e6)
    disk = Disk()
    disk.error = JournalError("the disk is full")
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        queue.put_nowait(b"", delay=100.0, id="a")
        # The first try, and one of what is late: the next of these is far away.
        await until(lambda: queue.statistics().journal_failures == 2)
        disk.error = None
        await queue.flush()
        assert (disk.ids, conserved(queue).at_risk) == (["a"], 0)
        await queue.drain(0.0)


async def test_what_was_late_is_durable_also_in_its_newer_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that fails before it could be written is new to the disk, and not merely changed."""
    monkeypatch.setattr(localdelay.journal.commits, "RETRY_EVERY", 1e6)

    async def refuse(_: Message) -> None:
        raise OSError("refused")

    disk = Disk()
    disk.error = JournalError("the disk is full")
    retry = RetryPolicy(wait_initial=100.0, wait_max=100.0)
    async with open_delay_queue(refuse, capacity=10, workers=1, journal=disk, retry=retry) as queue:
        queue.pause()
        queue.put_nowait(b"x", delay=0.0, id="a")
        await until(lambda: queue.statistics().journal_failures == 2)
        disk.error = None
        disk.writes.clear()
        queue.resume()
        await until(lambda: disk.rows and not queue.statistics().at_risk)
        assert disk.writes == [(["a"], [], True)]
        assert [record.attempt for record in disk.rows.values()] == [2]
        await queue.drain(0.0)


async def test_nothing_waits_for_a_journal_that_is_closed() -> None:
    """After the end `flush` raises where something is missing in the journal, and else returns."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as sound:
        await sound.put(b"x", delay=0.0)
    await sound.flush()
    disk.error = JournalError("the disk is full")
    with pytest.raises(KeyError):
        async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
            queue.put_nowait(b"x", delay=100.0)
            raise KeyError
    with trio.fail_after(5), pytest.raises(JournalError, match="closed"):
        await queue.flush()


async def test_a_journal_without_an_end_is_refused() -> None:
    """What can't be closed is none."""

    class NoJournal:
        largest = 1

        def open(self) -> list[object]:
            return []

        def write(self, *_: object, **__: object) -> None:
            pass

    with pytest.raises(TypeError, match="journal must be"):
        async with open_delay_queue(nothing, capacity=1, workers=1, journal=NoJournal()):  # type: ignore[arg-type]
            pass


class Idle(SimpleQueue[None]):
    """The news of a journal's thread: `is_idle` is set once it has written all and waits for more."""

    is_idle = threading.Event()
    done: Callable[[], bool]

    def get(self, *args: Any, **options: Any) -> None:
        if Idle.done():
            Idle.is_idle.set()
        super().get(*args, **options)


async def test_a_flush_waits_until_the_loop_knows(
    conserved: Conserved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a drain finds written behind a flush is in no `remaining`, though the loop hears of it late."""
    disk = Disk()
    disk.error = JournalError("the disk is full")
    main = trio.lowlevel.current_task()

    class Hold(trio.abc.Instrument):
        """The first part is written and heard of; before the flush goes on, the thread writes the rest."""

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if task is main and disk.rows and not Idle.is_idle.is_set():
                assert Idle.is_idle.wait(20)

    monkeypatch.setattr(Idle, "is_idle", threading.Event())
    monkeypatch.setattr(Idle, "done", staticmethod(lambda: len(disk.rows) == 3000), raising=False)
    monkeypatch.setattr(localdelay.journal.commits, "SimpleQueue", Idle)
    async with open_delay_queue(nothing, capacity=10_000, workers=1, journal=disk) as queue:
        for _ in range(3000):  # three parts of what is late
            queue.put_nowait(b"x", delay=100.0)
        with pytest.raises(JournalError):
            await queue.flush()
        hold = Hold()
        trio.lowlevel.add_instrument(hold)
        disk.error = None
        report = await queue.drain(0.0)
        trio.lowlevel.remove_instrument(hold)
    assert (report.spooled, len(report.remaining), len(disk.rows)) == (3000, 0, 3000)
    assert conserved(queue).at_risk == 0
