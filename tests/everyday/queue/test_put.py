"""Putting: what is refused, what waits for room, and what comes back."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
import trio

from localdelay import BatchPolicy, open_delay_queue
from localdelay.testing import RecordingSender


async def open_wrongly(**arguments: Any) -> None:
    given: dict[str, Any] = {"send": RecordingSender(), "capacity": 10, "workers": 1} | arguments
    async with open_delay_queue(given.pop("send"), **given):
        pytest.fail("the queue opened")


COUNTS = ["capacity", "workers", "capacity_bytes"]
RATES: dict[str, list[Any]] = {"send_timeout": [0], "catch_up_rate": [0, -1.0, math.inf]}
WRONG: list[tuple[str, Any, type[Exception]]] = [
    *((name, 0, ValueError) for name in COUNTS),
    *((name, value, TypeError) for name in COUNTS for value in (1.5, True)),
    *((name, value, ValueError) for name, values in RATES.items() for value in values),
    *((name, 5, TypeError) for name in ("limit", "probe", "retry", "on_dead_letter", "send")),
    ("catch_up_rate", "1", TypeError),
    ("send", None, TypeError),
    ("batch", BatchPolicy(max_wait=5.0), TypeError),
    ("timer", "sundial", ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
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
        ({"delay": -0.001}, ValueError, "delay"),
        ({"delay": "1"}, TypeError, "delay"),
        ({"at": datetime(2030, 1, 1)}, ValueError, "at must be an aware"),  # noqa: DTZ001
        ({"at": 1893456000.0}, TypeError, "at must be a datetime"),
        ({"delay": 1, "payload": "text"}, TypeError, "payload"),
        ({"delay": 1, "payload": b"x" * 101}, ValueError, "payload.*capacity_bytes"),
        ({"delay": 1, "headers": {"k": "v" * 100}}, ValueError, "headers.*capacity_bytes"),
        ({"delay": 1, "id": ""}, ValueError, "id"),
        ({"delay": 1, "id": "taken"}, ValueError, "id 'taken'.*pending"),
        ({"delay": 1, "headers": {"k": 1}}, TypeError, "headers"),
    ],
)
async def test_a_wrong_argument_is_refused_at_the_call(
    arguments: dict[str, Any], error: type[Exception], match: str, autojump_clock: Any, conserved: Any
) -> None:
    """Both puts refuse bad input by the argument's name, and count nothing; more is in `test_arguments`."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1, capacity_bytes=100) as queue:
        queue.put_nowait(b"", delay=1, id="taken")
        given = {"payload": b"x"} | arguments
        payload = given.pop("payload")
        with pytest.raises(error, match=match):
            queue.put_nowait(payload, **given)
        with pytest.raises(error, match=match):
            await queue.put(payload, **given)
        assert conserved(queue).accepted == 1


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


async def test_put_with_room_is_one_checkpoint(autojump_clock: Any) -> None:
    """`await put` always lets other tasks run."""
    async with open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        with trio.testing.assert_checkpoints():
            await queue.put(b"", delay=1)


async def test_the_number_behind_a_chosen_id_is_not_an_id(autojump_clock: Any, conserved: Any) -> None:
    """A message with a chosen id can't be cancelled by the id that it would have had otherwise."""
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        prefix, _, number = queue.put_nowait(b"", delay=1).id.rpartition("-")
        queue.put_nowait(b"", delay=1, id="chosen")
        assert not queue.cancel(f"{prefix}-{int(number) + 1}")
        assert conserved(queue).pending == 2


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
        assert [page[-1] for page in queue._schedule._living.index._pages.values()] == [1]
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
