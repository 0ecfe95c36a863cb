"""A queue in this process that sends to a real broker, while something happens to the broker."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import attrs
import trio

import localdelay
from localdelay import Message, PermanentSendError, RetryPolicy
from localdelay.brokers import Broker
from tests.kit.conserving import conserve
from tests.kit.faults.counting import payload_of

_RETRY = RetryPolicy(wait_initial=0.05, wait_max=0.5, wait_jitter=0.05)
_RATE, _LONGEST = 500.0, 1.5
"""Messages a second, and the longest delay."""
_LOOK_EVERY = 0.1
_CAPACITY = 50_000
_END_TIMEOUT = 300.0


@attrs.define
class Books:
    """What is known of the messages without asking the queue."""

    accepted: dict[str, str] = attrs.field(factory=dict)
    dead: set[str] = attrs.field(factory=set)
    ambiguous: int = 0
    """Sends that failed so that nobody knows whether the broker took the message."""
    failed: int = 0
    wrong: list[str] = attrs.field(factory=list)


async def under_way(
    broker: Broker, happens: Callable[[], Awaitable[object]], *, journal: Path | None, draws: Random
) -> Books:
    """Put from before until after it `happens`; return when all is sent. Its books are checked meanwhile."""
    books = Books()

    async def send(message: Message) -> None:
        try:
            await broker.send(message)
        except Exception as error:
            books.failed += 1
            # Redis that says nothing is classed as throttled too; then nobody knows.
            refused = isinstance(error, PermanentSendError) or "OOM" in str(error)
            books.ambiguous += not refused
            raise

    async def bury(message: Message, error: Exception) -> None:
        key = message.payload.split(b" ", 1)[0].decode()
        if key in books.dead:
            books.wrong.append(f"{key} was buried twice")
        books.dead.add(key)

    extra: dict[str, Any] = {}
    if journal is not None:
        extra["journal"] = localdelay.SqliteJournal(journal)
    with trio.fail_after(_END_TIMEOUT):
        async with localdelay.open_delay_queue(
            send, capacity=_CAPACITY, workers=20, retry=_RETRY, on_dead_letter=bury, **extra
        ) as queue:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_look, queue, books)
                async with trio.open_nursery() as putting:
                    putting.start_soon(_put, queue, books, draws)
                    await happens()
                    putting.cancel_scope.cancel()
                nursery.cancel_scope.cancel()
    _check(queue, books)
    statistics = queue.statistics()
    if statistics.pending or statistics.dead != len(books.dead):
        books.wrong.append(f"{statistics.pending} pending in the end, {statistics.dead} dead")
    return books


async def _put(queue: localdelay.DelayQueue, books: Books, draws: Random) -> None:
    interval, at, serial = 1 / _RATE, trio.current_time(), 0
    while True:
        at += interval
        await trio.sleep_until(at)
        serial += 1
        delay = draws.uniform(0.0, _LONGEST)
        key = f"m{serial}"
        message = await queue.put(payload_of(key, time.time() + delay), delay=delay)
        books.accepted[key] = message.id


async def _look(queue: localdelay.DelayQueue, books: Books) -> None:
    while True:
        _check(queue, books)
        await trio.sleep(_LOOK_EVERY)


def _check(queue: localdelay.DelayQueue, books: Books) -> None:
    try:
        conserve(queue)
    except AssertionError as error:
        books.wrong.append(f"not conserved: {error}")
