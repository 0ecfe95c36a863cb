"""`at=` means the wall clock: what was put with it moves where that and the monotonic clock move apart."""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import trio

import localdelay.queue.wall
from localdelay import Message, open_delay_queue
from localdelay.entry import Entry
from localdelay.queue.ledger import Ledger
from localdelay.queue.pending import Pending
from localdelay.queue.schedule import Schedule
from localdelay.queue.wall import move_all, moved_apart, moved_entry
from localdelay.testing import RecordingSender
from tests.kit.faces import FACES, Face


@pytest.mark.parametrize(
    ("wall", "now", "by"),
    [
        (1000.0, 0.0, 0.0),
        (1060.0, 60.0, 0.0),
        (1001.0, 0.0, 0.0),
        (1001.1, 0.0, pytest.approx(1.1)),
        (1160.0, 60.0, 100.0),  # suspended for 100 s
        (400.0, 60.0, -660.0),  # set back
    ],
)
def test_the_clocks_have_moved_apart_by_more_than_a_second(wall: float, now: float, by: float) -> None:
    """From 1000 s ahead."""
    assert moved_apart(1000.0, wall, now) == by


def message(number: int, due: float, *, at: float | None, failures: int = 0) -> Entry:
    return due, number, (b"", None, None, 1, failures, due if not failures else 0.0, False, None, at)


def test_only_what_was_put_with_at_and_has_not_failed_moves() -> None:
    """To when the wall clock will show that; what is past is overdue since then, by that clock."""
    move = partial(moved_entry, wall=2000.0, now=50.0, before=1870.0)
    plain = (70.0, 1, b"")
    delayed = message(2, 70.0, at=None)
    failed = message(3, 70.0, at=2100.0, failures=1)
    assert [move(plain), move(delayed), move(failed)] == [plain, delayed, failed]
    assert move(message(4, 230.0, at=2100.0)) == message(4, 150.0, at=2100.0)
    assert move(message(5, 30.0, at=1900.0)) == message(5, -50.0, at=1900.0)
    meant_now = message(6, 40.0, at=5.0)  # what was past when it was put, and has not expired by that
    assert move(meant_now) == meant_now
    moved = move((230.0, 7, (b"", None, "a", 2, 1, 230.0, False, None, 2100.0)))  # failed, and rescheduled
    assert (moved[0], moved[2][5]) == (150.0, 150.0)


@pytest.mark.parametrize("indexed", [False, True])
def test_all_that_waits_keeps_its_place_but_for_what_moves(indexed: bool) -> None:
    """Nothing is lost, doubled or counted otherwise; what was cancelled, or is lent, has no part in it."""
    pending = Pending(Schedule(indexed=indexed), Ledger(10_000, None))
    entries: list[Entry] = [(float(number), number, b"%d" % number) for number in range(3000)]
    entries += [message(number, number - 3000.0, at=1e6 + number) for number in range(3000, 3500)]
    for entry in entries:
        pending.ledger.reserve(1)
        pending.enter(entry, 1)
    assert pending.has_at
    lent = None
    if indexed:
        assert pending.cancel(17)
        lent = pending.lend(3100)
    moved = move_all(pending, partial(moved_entry, wall=1e6, now=0.0, before=1e6 + 3000.0))
    assert moved == (499 if indexed else 500)
    if lent is not None:
        pending.again(lent)
    schedule = pending.schedule
    after = {number: due for due, number, _ in schedule.entries()}
    expected = {number: float(number) for number in range(3500)}
    if indexed:
        del expected[17]
        expected[3100] = 100.0  # it was not there
    assert after == expected
    assert (schedule.waiting, schedule.retrying, schedule.taken) == (len(expected), 0, 0)
    taken: list[Entry] = []
    while due := list(schedule.due(1e9, 100)):
        schedule.take(due)
        taken += due
    assert [entry[0] for entry in taken] == sorted(expected.values())


@pytest.mark.parametrize(("wall", "new_time"), [(900.0, 200.0), (1050.0, 50.0)])
def test_what_was_looked_at_before_it_moved_comes_back_to_its_new_time(wall: float, new_time: float) -> None:
    """A hand-back takes it out by the time that it had, and the primary does not take it."""
    pending = Pending(Schedule(indexed=True), Ledger(9, None))
    pending.ledger.reserve(0)
    pending.enter(message(1, 100.0, at=1100.0), 0)
    [(due, number)] = pending.schedule.far(50.0)
    move_all(pending, partial(moved_entry, wall=wall, now=0.0, before=1000.0))
    entry = pending.lend(number, due)
    assert entry is not None
    assert pending.schedule.next_due() == math.inf  # nothing is left in its place
    pending.again(entry)
    assert pending.schedule.next_due() == entry[0] == new_time


@pytest.mark.parametrize("cancellable", [False, True])
@pytest.mark.parametrize("face", FACES[:3], ids=lambda face: face.name)
def test_a_machine_that_was_suspended(
    face: Face, cancellable: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """What was put for a time of day is sent then, though the monotonic clock stood still; a delay is one."""
    ahead = 0.0
    monkeypatch.setattr(localdelay.queue.wall, "wall_clock", lambda: time.time() + ahead)
    sent: list[Message] = []

    async def scene(face: Face) -> None:
        nonlocal ahead
        async with face.open(sent.append, cancellable=cancellable) as queue:
            await face.now(queue.put(b"at", at=datetime.now(UTC) + timedelta(seconds=100), delay=None))
            await face.now(queue.put(b"delay", delay=100.0))
            await face.sleep(0.7)
            assert sent == []
            ahead = 100.0
            await face.until(lambda: sent)
            await face.now(queue.drain(0.0))

    caplog.set_level(logging.INFO)
    face.play(scene, waits_for_threads=True)
    assert [message.payload for message in sent] == [b"at"]
    told = [r.getMessage() for r in caplog.records if "the wall clock has moved by" in r.getMessage()]
    assert told == [
        "the wall clock has moved by 100 s, and 1 messages that were put with at= have moved with it"
    ]


async def test_what_a_machine_slept_through_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the wall clock, as `at` means it; what is worth sending for longer is sent, as late as it is."""
    ahead = 0.0
    monkeypatch.setattr(localdelay.queue.wall, "wall_clock", lambda: time.time() + ahead)
    monkeypatch.setattr(localdelay.queue.wall, "LOOK_EVERY", 0.01)
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=2, workers=1) as queue:
        at = datetime.now(UTC) + timedelta(seconds=100)
        queue.put_nowait(b"expired", at=at, expires=60.0)
        queue.put_nowait(b"worth it", at=at, expires=3600.0)
        await trio.sleep(0.05)
        ahead = 200.0
    assert sender.payloads == [b"worth it"]
    s = queue.statistics()
    assert (s.expired, s.sent) == (1, 1)
    assert s.lateness.max == pytest.approx(100.0, abs=10.0)


async def test_what_was_not_in_the_order_moves_when_it_comes(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """A put that waits for its room while the machine sleeps, and a message that is being handed back."""
    ahead, gap = 0.0, time.time() - trio.current_time()
    monkeypatch.setattr(localdelay.queue.wall, "wall_clock", lambda: gap + trio.current_time() + ahead)
    monkeypatch.setattr(localdelay.queue.wall, "is_trios_own", lambda clock: True)
    sender = RecordingSender()
    async with trio.open_nursery() as nursery, open_delay_queue(sender, capacity=2, workers=1) as queue:
        at = datetime.now(UTC) + timedelta(seconds=1000)
        first = await queue.put(b"", delay=3000.0)
        lent = await queue.put(b"lent", at=at)
        nursery.start_soon(partial(queue.put, b"waits", at=at))
        await trio.sleep(10.0)
        entry = queue._pending.lend(queue._pending.number(lent.id) or 0)
        assert entry is not None
        ahead = 2000.0
        await trio.sleep(10.0)
        assert queue.cancel(first.id)
        queue._pending.again(entry)
        assert sender.payloads == []
        await trio.sleep(1.0)
        assert sorted(sender.payloads) == [b"lent", b"waits"]
        assert [round(message.execute_at - lent.execute_at) for _, message in sender.sent] == [-2000, -2000]
