"""What a message holds while it is pending, its room, its id and its token, is given back when it ends.

Each of these faults was once put into the core on purpose, and no other test saw it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import (
    AdaptiveLimit,
    DelayQueue,
    Fallback,
    JournalError,
    Message,
    PartialSendError,
    RateLimit,
    Statistics,
    Throttled,
    open_delay_queue,
)
from localdelay.breaker import THROTTLED
from localdelay.entry import Entry
from localdelay.keeping import Keeper, Wait
from localdelay.queue.ledger import Ledger
from localdelay.queue.pending import Pending
from localdelay.queue.schedule import Schedule
from localdelay.testing import RecordingSender
from tests.kit.journals import Disk, Gated, nothing, until

Conserved = Callable[[DelayQueue], Statistics]


async def test_a_refused_put_gives_its_room_to_who_waits_for_it(conserved: Conserved) -> None:
    """Its commit fails, and the put behind it is let in at that instant, not when something is sent."""
    disk = Gated(fails=True)
    outcomes: dict[bytes, object] = {}

    async with open_delay_queue(nothing, capacity=1, workers=1, journal=disk) as queue:

        async def put(payload: bytes) -> None:
            try:
                outcomes[payload] = await queue.put(payload, delay=0.05)
            except JournalError as error:
                outcomes[payload] = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, b"first")
            await until(disk.begun.is_set)
            nursery.start_soon(put, b"second")
            await until(lambda: queue.statistics().puts_waiting == 1)
            disk.gate.set()
        assert isinstance(outcomes[b"first"], JournalError)
        assert isinstance(outcomes[b"second"], Message)
        assert conserved(queue).accepted == 1
    assert queue.statistics().sent == 1


def test_an_id_that_came_back_twice_is_that_of_the_second_until_its_end() -> None:
    """The end of the first, whose removal was not written before a crash, frees nothing of the other."""
    pending = Pending(Schedule(indexed=True), Ledger(10, None))
    body = (b"", None, "an id", 1, 0, 1.0, False, None, None)
    pending.enter_kept([(1.0, 1, body), (1.0, 2, body)])
    assert pending.cancel(1)
    assert pending.number("an id") == 2
    assert pending.cancel(2)
    assert pending.number("an id") is None


@pytest.mark.parametrize("ours", [0, 1])
async def test_what_has_lapsed_gives_its_tokens_back(ours: int, autojump_clock: Any) -> None:
    """A message that is somebody else's by now is not sent: the limit lets another go in its place."""

    class Lapsing(Keeper):
        lapses = True

        def owns(self, entries: Sequence[Entry], now: float) -> list[Entry]:
            return list(entries[:ours])

    limit = RateLimit(0.001, burst=5)
    batches: list[int] = []

    async def send_batch(messages: Sequence[Message]) -> None:
        batches.append(len(messages))

    async with open_delay_queue(send_batch=send_batch, capacity=10, workers=1, limit=limit) as queue:
        queue._pending.keeper = Lapsing(lambda: (0, 0))
        for _ in range(3):
            queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
        assert (batches, int(limit.available)) == ([1] * ours, 5 - ours)


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_limit_gets_back_nothing_that_it_was_not_asked_for(
    keyed: bool, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins while the keeper is told of a send, which a pause then stops: it had nothing of that."""
    given_back: list[float] = []
    monkeypatch.setattr(AdaptiveLimit, "give_back", lambda _, count: given_back.append(count))
    begun: list[AdaptiveLimit] = []

    class Slow(Keeper):
        writes = True

        def begins(self, entries: Sequence[Entry]) -> Wait:
            return begin

    async def begin() -> None:
        limit = queue.core.limit if queue.core.keys is None else queue.core.keys.limits.of("a")
        assert isinstance(limit, AdaptiveLimit)
        limit.record(THROTTLED, 0.0, None, 0.5, lately=100.0)
        begun.append(limit)
        queue.pause()

    key = (lambda _: "a") if keyed else None
    async with open_delay_queue(RecordingSender(), capacity=9, workers=1, key=key) as queue:
        queue._pending.keeper = Slow(lambda: (0, 0))
        # As after an outage: what is overdue is spaced out first, and that asks no limit.
        queue._workers.valve.holds, queue._workers.valve.pace.rate = not keyed, 100.0
        queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
        assert (queue.statistics().sent, given_back) == (0, [])
        assert [limit.limits for limit in begun] == [True]
        queue._pending.keeper = Keeper(lambda: (0, 0))


@pytest.mark.parametrize("kept", [False, True])
async def test_two_puts_that_wait_for_room_have_two_ids(kept: bool, conserved: Conserved) -> None:
    """An id is taken from the call on, not from when there is room; and free when the put is given up."""
    async with open_delay_queue(
        RecordingSender(), capacity=1, workers=1, journal=Disk() if kept else None
    ) as queue:
        first = await queue.put(b"", delay=3600)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: queue.put(b"one", delay=3600, id="chosen"))
                await until(lambda: queue.statistics().puts_waiting)
                with pytest.raises(ValueError, match="'chosen' is the id of a message that is pending"):
                    await queue.put(b"two", delay=3600, id="chosen")
                assert queue.is_pending("chosen")
                scope.cancel()
        assert not queue.is_pending("chosen")
        assert queue.cancel(first.id)
        await queue.put(b"three", delay=3600, id="chosen")
        assert queue.cancel("chosen")
        assert conserved(queue).pending == 0


@pytest.mark.parametrize("fails", [False, True])
async def test_ids_are_free_after_a_batch(
    fails: bool, autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """Those of all that it has sent, whether or not others of it have failed."""

    async def send_batch(messages: Sequence[Message]) -> None:
        if fails and len(messages) > 1:
            raise PartialSendError({messages[0].id: OSError("no")})

    async with open_delay_queue(None, send_batch=send_batch, capacity=9, workers=1) as queue:
        for _ in range(3):
            for name in ("a", "b", "c"):
                await queue.put(b"", delay=1.0, id=name, headers={"x": "y"})
            await trio.sleep(60)
            assert not any(queue.is_pending(name) for name in ("a", "b", "c"))
        assert conserved(queue).sent == 9


async def test_an_id_is_free_after_a_send_with_headers(
    autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """Also where each message goes alone."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        for _ in range(3):
            await queue.put(b"", delay=1.0, id="mine", headers={"x": "y"})
            assert queue.is_pending("mine")
            await trio.sleep(2)
            assert not queue.is_pending("mine")
        assert conserved(queue).sent == 3


async def test_a_hand_back_that_finds_nothing_gives_its_token_back(
    autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """The limit has lost one token for each message that went back, and none for looking for another."""
    limit = RateLimit(0.001, burst=20)
    is_down = True

    async def primary(message: Message, delay: float) -> None:
        if is_down:
            raise Throttled("429")

    async with open_delay_queue(RecordingSender(), capacity=9, workers=1) as queue:
        fallback = Fallback(primary, queue, limit=limit, breaker=None, hand_back=True, hand_back_after=10.0)
        for _ in range(3):
            await fallback.publish(b"", delay=300.0)
        is_down = False
        before = limit.available
        await trio.sleep(100)
        assert conserved(queue).handed_back == 3
        assert limit.available == pytest.approx(before - 3 + 0.1)


async def test_what_waits_for_the_limit_is_not_sent_in_a_pause(
    autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """Workers have taken it already: it goes back, and so do its tokens, and it is sent after the pause."""
    limit = RateLimit(2.0, burst=1)
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=30, workers=20, limit=limit) as queue:
        for _ in range(30):
            queue.put_nowait(b"", delay=0.0)
        await trio.sleep(2.1)
        queue.pause()
        sent = conserved(queue).sent
        await trio.sleep(20)
        assert conserved(queue).sent == sent
        assert limit.available == 1.0
        queue.resume()
    assert len(sender.sent) == 30


DELAYS: list[float] = [3.0, 1, 0.0, 2.5, 1.0]


@pytest.mark.parametrize("cancellable", [True, False])
async def test_the_short_way_in_does_what_the_long_one_does(
    cancellable: bool, autojump_clock: trio.testing.MockClock, conserved: Conserved
) -> None:
    """The same books, order, room and wake-ups, message by message, whichever way `put_nowait` takes."""
    said: list[list[Any]] = []
    for short in (True, False):
        sender = RecordingSender()
        told: list[Any] = []
        start = trio.current_time()
        async with open_delay_queue(
            sender, capacity=4, workers=2, capacity_bytes=18, cancellable=cancellable
        ) as queue:
            queue.admission.has_short_way = short
            for number, delay in enumerate(DELAYS * 3):
                await trio.sleep(0.13 if number % 5 else 1.73)  # no put in the same instant as a send
                try:
                    message = queue.put_nowait(b"x" * (3 if number < 8 else 6), delay=delay)
                    told.append((message.payload, round(message.execute_at - start, 6), message.attempt))
                except Exception as error:  # noqa: BLE001 (compared)
                    told.append(str(error))
                s = conserved(queue)
                told.append(
                    (
                        s.accepted,
                        s.pending,
                        s.pending_bytes,
                        s.waiting,
                        s.sending,
                        round(s.next_due_in or 0, 6),
                    )
                )
        told += [(message.payload, round(began - start, 6)) for began, message in sender.sent]
        said.append(told)
    assert said[0] == said[1]
    assert any(isinstance(line, str) for line in said[0]), "nothing was refused"
