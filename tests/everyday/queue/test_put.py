"""Putting: what is refused, what waits for room, and what comes back."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio

from localdelay import BatchPolicy, DelayQueue, Message, QueueClosed, QueueFull, RetryPolicy, open_delay_queue
from localdelay.testing import RecordingSender


async def open_wrongly(**arguments: Any) -> None:
    given: dict[str, Any] = {"send": RecordingSender(), "capacity": 10, "workers": 1} | arguments
    async with open_delay_queue(given.pop("send"), **given):
        pytest.fail("the queue opened")


@pytest.mark.parametrize("name", ["capacity", "workers", "capacity_bytes"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("9", TypeError), (True, TypeError)],
)
async def test_opening_refuses_a_count_that_is_none(name: str, value: Any, error: type[Exception]) -> None:
    """A capacity or a number of workers must be a whole number of at least 1."""
    with pytest.raises(error, match=name):
        await open_wrongly(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("send", None, TypeError),
        ("send", b"x", TypeError),
        ("batch", BatchPolicy(max_wait=5.0), TypeError),
        ("timer", "sundial", ValueError),
        ("timer", None, ValueError),
        ("retry", 3, TypeError),
        ("send_timeout", 0, ValueError),
        ("send_timeout", -1.0, ValueError),
        ("send_timeout", math.nan, ValueError),
        ("send_timeout", "1", TypeError),
        ("send_timeout", True, TypeError),
        ("on_dead_letter", "log", TypeError),
    ],
)
async def test_opening_names_the_argument_that_is_wrong(
    name: str, value: Any, error: type[Exception]
) -> None:
    """A wrong argument of `open_delay_queue` is refused before anything runs, by its name."""
    with pytest.raises(error, match=name):
        await open_wrongly(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, TypeError, "delay and at"),
        ({"delay": 1, "at": datetime.now(UTC)}, TypeError, "delay and at"),
        ({"delay": -0.001}, ValueError, "delay"),
        ({"delay": math.nan}, ValueError, "delay"),
        ({"delay": math.inf}, ValueError, "delay"),
        ({"delay": 10**400}, ValueError, "delay"),
        ({"delay": "1"}, TypeError, "delay"),
        ({"delay": True}, TypeError, "delay"),
        ({"at": datetime(2030, 1, 1)}, ValueError, "at must be an aware"),  # noqa: DTZ001
        ({"at": 1893456000.0}, TypeError, "at must be a datetime"),
        ({"delay": 1, "payload": "text"}, TypeError, "payload"),
        ({"delay": 1, "payload": bytearray(b"x")}, TypeError, "payload"),
        ({"delay": 1, "payload": None}, TypeError, "payload"),
        ({"delay": 1, "payload": b"x" * 101}, ValueError, "payload.*capacity_bytes"),
        ({"delay": 1, "headers": {"k": "v" * 100}}, ValueError, "headers.*capacity_bytes"),
        ({"delay": 1, "id": ""}, ValueError, "id"),
        ({"delay": 1, "id": "a\nb"}, ValueError, "id"),
        ({"delay": 1, "id": 7}, TypeError, "id"),
        ({"delay": 1, "id": "taken"}, ValueError, "id 'taken'.*pending"),
        ({"delay": 1, "headers": {"k": 1}}, TypeError, "headers"),
        ({"delay": 1, "headers": {1: "v"}}, TypeError, "headers"),
        ({"delay": 1, "headers": [("k", "v")]}, TypeError, "headers"),
        ({"delay": 1, "headers": {"k": "\udc80"}}, ValueError, "headers"),
    ],
)
async def test_a_wrong_argument_is_refused_at_the_call(
    arguments: dict[str, Any], error: type[Exception], match: str, autojump_clock: Any, conserved: Any
) -> None:
    """Both puts refuse bad input by the argument's name, and count nothing."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1, capacity_bytes=100) as queue:
        queue.put_nowait(b"", delay=1, id="taken")
        given = {"payload": b"x"} | arguments
        payload = given.pop("payload")
        with pytest.raises(error, match=match):
            queue.put_nowait(payload, **given)
        with pytest.raises(error, match=match):
            await queue.put(payload, **given)
        assert conserved(queue).accepted == 1


@pytest.mark.parametrize("cancellable", [True, False])
async def test_an_id_that_was_made_here_cannot_be_pending_twice(
    cancellable: bool, autojump_clock: Any, conserved: Any
) -> None:
    """The id of a pending message is refused, waiting or being sent, and free again once it was sent."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=1, cancellable=cancellable) as queue:
        first = queue.put_nowait(b"", delay=1)
        with pytest.raises(ValueError, match="pending"):
            queue.put_nowait(b"", delay=1, id=first.id)
        await trio.sleep(1.5)
        assert conserved(queue).sending == 1
        with pytest.raises(ValueError, match="pending"):
            queue.put_nowait(b"", delay=1, id=first.id)
        await trio.sleep(1)
        again = queue.put_nowait(b"", delay=1, id=first.id)
        assert again.id == first.id
    assert sender.ids == [first.id, first.id]


async def test_what_put_returns_is_what_is_sent(autojump_clock: Any) -> None:
    """Payload, execute-at, id, headers and attempt of the returned message are the sent one's."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        plain = queue.put_nowait(b"plain", delay=1)
        rich = await queue.put(b"rich", delay=2, id="chosen", headers={"k": "v"})
    assert [message for _, message in sender.sent] == [plain, rich]
    assert (plain.execute_at, rich.execute_at) == (1.0, 2.0)
    assert (plain.payload, dict(plain.headers), plain.attempt) == (b"plain", {}, 1)
    assert (rich.id, rich.payload, dict(rich.headers), rich.attempt) == ("chosen", b"rich", {"k": "v"}, 1)
    with pytest.raises(TypeError):
        rich.headers["k"] = "changed"  # type: ignore[index]


async def test_headers_are_copied(autojump_clock: Any) -> None:
    """What the caller does to its headers after the put changes nothing."""
    sender = RecordingSender()
    headers = {"k": "v"}
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=1, headers=headers)
        headers["k"] = "changed"
    assert sender.sent[0][1].headers == {"k": "v"}


async def test_ids_are_unique_across_queues(autojump_clock: Any) -> None:
    """Two queues of one process never give out the same id."""
    sender = RecordingSender()
    async with (
        open_delay_queue(sender, capacity=100, workers=1) as one,
        open_delay_queue(sender, capacity=100, workers=1) as two,
    ):
        for _ in range(100):
            one.put_nowait(b"", delay=1)
            two.put_nowait(b"", delay=1)
    assert len(set(sender.ids)) == 200


async def test_at_an_aware_datetime(autojump_clock: Any) -> None:
    """`at` is turned into Trio's time at the call; one in the past is due now."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        soon = queue.put_nowait(b"", at=datetime.now(UTC) + timedelta(seconds=60))
        past = queue.put_nowait(b"", at=datetime.now(UTC) - timedelta(days=1))
        assert past.execute_at == trio.current_time()
        assert 59 < soon.execute_at - trio.current_time() <= 60
    assert sender.ids == [past.id, soon.id]


async def test_put_nowait_raises_when_full(autojump_clock: Any, conserved: Any) -> None:
    """Capacity counts what waits, what is being sent and what waits for a retry; a sent message frees it."""
    sender = RecordingSender(duration=5)
    async with open_delay_queue(sender, capacity=2, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
        queue.put_nowait(b"", delay=1)
        with pytest.raises(QueueFull):
            queue.put_nowait(b"", delay=0)
        await trio.sleep(2)
        assert conserved(queue).sending == 1
        with pytest.raises(QueueFull):
            queue.put_nowait(b"", delay=0)
        await trio.sleep(4.5)
        queue.put_nowait(b"", delay=0)
        assert conserved(queue).pending == 2


async def test_capacity_counts_retries(autojump_clock: Any, conserved: Any) -> None:
    """A message that waits for its retry holds its room."""
    calls = 0

    async def fail_once(message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError

    retry = RetryPolicy(wait_initial=10, wait_jitter=0)
    async with open_delay_queue(fail_once, capacity=1, workers=1, retry=retry) as queue:
        queue.put_nowait(b"", delay=0)
        await trio.sleep(5)
        assert conserved(queue).retrying == 1
        with pytest.raises(QueueFull):
            queue.put_nowait(b"", delay=0)
        await trio.sleep(6)
        queue.put_nowait(b"", delay=0)


async def test_capacity_bytes_counts_payload_and_headers(autojump_clock: Any, conserved: Any) -> None:
    """A message that would go over the byte limit is refused, one that just fits is not."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1, capacity_bytes=10) as queue:
        queue.put_nowait(b"12345", delay=1, headers={"k": "v"})
        assert conserved(queue).pending_bytes == 7
        with pytest.raises(QueueFull, match="7 bytes"):
            queue.put_nowait(b"1234", delay=1)
        queue.put_nowait(b"123", delay=1)
        assert conserved(queue).pending_bytes == 10
    assert queue.statistics().pending_bytes == 0


async def test_put_waits_for_room_in_the_order_of_the_calls(autojump_clock: Any, conserved: Any) -> None:
    """Waiting puts get room one by one, first come first served, at the instant when a send has ended."""
    sender = RecordingSender()
    accepted: list[float] = []

    async def put(queue: DelayQueue, payload: bytes) -> None:
        await queue.put(payload, delay=1)
        accepted.append(trio.current_time())

    async with open_delay_queue(sender, capacity=1, workers=1) as queue, trio.open_nursery() as nursery:
        queue.put_nowait(b"first", delay=10)
        for payload in (b"a", b"b", b"c"):
            nursery.start_soon(put, queue, payload)
            await trio.testing.wait_all_tasks_blocked()
        assert conserved(queue).puts_waiting == 3
        with pytest.raises(QueueFull):
            queue.put_nowait(b"pushy", delay=0)
    assert accepted == [10.0, 10.0, 10.0]
    assert sender.payloads == [b"first", b"a", b"b", b"c"]


async def test_execute_at_is_stamped_at_the_call(autojump_clock: Any) -> None:
    """A put that waited for room longer than its delay is due at once when it gets it."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=1, workers=1) as queue:
        queue.put_nowait(b"first", delay=10)
        message = await queue.put(b"second", delay=3)
        assert message.execute_at == 3.0
        assert trio.current_time() == 10.0
    assert sender.times == [10.0, 10.0]
    assert queue.statistics().lateness.max == 7.0


async def test_a_cancelled_put_is_not_accepted(autojump_clock: Any, conserved: Any) -> None:
    """A put that is cancelled while it waits leaves nothing behind, and its id is free again."""
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=1, workers=1) as queue:
        queue.put_nowait(b"first", delay=10)
        with trio.move_on_after(1):
            await queue.put(b"given up", delay=1, id="x")
        assert conserved(queue).accepted == 1
        assert queue.statistics().puts_waiting == 0
        await trio.sleep(10)
        await queue.put(b"again", delay=1, id="x")
    assert sender.payloads == [b"first", b"again"]


async def test_a_cancelled_put_lets_a_smaller_one_behind_it_pass(autojump_clock: Any, conserved: Any) -> None:
    """Room in bytes that the first waiter could not use goes to the next when the first gives up."""
    sender = RecordingSender()
    async with (
        open_delay_queue(sender, capacity=10, workers=1, capacity_bytes=10) as queue,
        trio.open_nursery() as nursery,
    ):
        queue.put_nowait(b"12345", delay=100)

        async def large() -> None:
            with trio.move_on_after(1):
                await queue.put(b"1234567890", delay=1)

        async def small() -> None:
            await queue.put(b"1", delay=1)
            assert trio.current_time() == 1.0

        nursery.start_soon(large)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(small)
        await trio.testing.wait_all_tasks_blocked()
        assert conserved(queue).puts_waiting == 2
    assert sender.payloads == [b"1", b"12345"]


async def test_put_in_a_cancelled_scope_accepts_nothing(autojump_clock: Any, conserved: Any) -> None:
    """`put` is a checkpoint, and one that is cancelled has not put anything."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        with trio.CancelScope() as scope:
            scope.cancel()
            await queue.put(b"", delay=1)
        assert scope.cancelled_caught
        assert conserved(queue).accepted == 0


async def test_put_with_room_is_one_checkpoint(autojump_clock: Any) -> None:
    """`await put` always lets other tasks run."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        with trio.testing.assert_checkpoints():
            await queue.put(b"", delay=1)


async def test_puts_are_refused_after_the_block(autojump_clock: Any, conserved: Any) -> None:
    """Once the block is left the queue is closed, and stays readable."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
    with pytest.raises(QueueClosed):
        queue.put_nowait(b"", delay=1)
    with pytest.raises(QueueClosed):
        await queue.put(b"", delay=1)
    s = conserved(queue)
    assert (s.accepted, s.sent, s.closed) == (1, 1, True)


async def test_cancel_is_exact(autojump_clock: Any, conserved: Any) -> None:
    """A cancelled message is never sent; a second cancel, an unknown id and a sent one are False."""
    sender = RecordingSender(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        kept = queue.put_nowait(b"kept", delay=1)
        gone = queue.put_nowait(b"gone", delay=1)
        named = queue.put_nowait(b"named", delay=1, id="named")
        assert queue.cancel(gone.id)
        assert not queue.cancel(gone.id)
        assert queue.cancel("named")
        assert not queue.cancel("never heard of")
        assert conserved(queue).cancelled == 2
        await trio.sleep(1.5)
        assert not queue.cancel(kept.id)  # being sent
        await trio.sleep(1)
        assert not queue.cancel(kept.id)  # finished
        assert named.id == "named"
    assert sender.payloads == [b"kept"]


async def test_the_number_behind_a_chosen_id_is_not_an_id(autojump_clock: Any, conserved: Any) -> None:
    """A message with a chosen id can't be cancelled by the id that it would have had otherwise."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        prefix, _, number = queue.put_nowait(b"", delay=1).id.rpartition("-")
        queue.put_nowait(b"", delay=1, id="chosen")
        assert not queue.cancel(f"{prefix}-{int(number) + 1}")
        assert conserved(queue).pending == 2


async def test_cancel_makes_room(autojump_clock: Any, conserved: Any) -> None:
    """A cancelled message gives its room to a put that waits, at once."""
    async with (
        open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue,
        trio.open_nursery() as nursery,
    ):
        first = queue.put_nowait(b"", delay=100)
        nursery.start_soon(lambda: queue.put(b"", delay=1))
        await trio.testing.wait_all_tasks_blocked()
        queue.cancel(first.id)
        assert conserved(queue).accepted == 2


async def test_cancel_needs_a_cancellable_queue(autojump_clock: Any) -> None:
    """With `cancellable=False`, `cancel` says so instead of answering False."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1, cancellable=False) as queue:
        with pytest.raises(RuntimeError, match="cancellable"):
            queue.cancel("x")


@pytest.mark.parametrize(("id", "error"), [("", ValueError), (7, TypeError), (None, TypeError)])
async def test_cancel_refuses_what_is_no_id(id: Any, error: type[Exception], autojump_clock: Any) -> None:
    """A wrong argument of `cancel` is named."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        with pytest.raises(error, match="id"):
            queue.cancel(id)


async def test_cancelled_payloads_are_freed_at_once(autojump_clock: Any, conserved: Any) -> None:
    """Behind one living message, no more is left of thousands of cancelled ones than a few numbers."""
    async with open_delay_queue(RecordingSender(), capacity=101, workers=1) as queue:
        first = queue.put_nowait(b"", delay=3599)
        for _ in range(100):
            ids = [queue.put_nowait(b"x" * 10, delay=3600).id for _ in range(100)]
            for id in ids:
                assert queue.cancel(id)
        s = conserved(queue)
        assert (s.cancelled, s.pending_bytes) == (10_000, 0)
        assert len(list(queue._schedule._slots())) < 100
        assert [page[-1] for page in queue._schedule._index._pages.values()] == [1]
        queue.cancel(first.id)


async def test_a_put_from_another_thread_is_refused_and_changes_nothing(conserved: Any) -> None:
    """All methods belong to the Trio thread; a call from elsewhere is an error, and counts nothing."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:

        def put() -> None:
            with pytest.raises(RuntimeError):
                queue.put_nowait(b"", delay=0.0)

        await trio.to_thread.run_sync(put)
        assert conserved(queue).accepted == 0
        queue.put_nowait(b"", delay=0.0)
