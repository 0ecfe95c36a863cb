"""A handler of the log that raises, as some do where what they write to is gone: it ends nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from localdelay import JournalError, PermanentSendError, RateLimit, Throttled, open_delay_queue
from localdelay.testing import FailingSender, RecordingSender
from tests.kit.journals import Disk, nothing, until


class Raising(logging.Handler):
    """Keeps the lines, and raises."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        raise RuntimeError("emit")


@pytest.fixture
def handler() -> Iterator[Raising]:
    logger, handler, level = logging.getLogger("localdelay"), Raising(), logging.getLogger("localdelay").level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


async def test_a_dead_letter_is_one_all_the_same(
    handler: Raising, autojump_clock: Any, conserved: Any
) -> None:
    """Neither a dead letter nor a failing send depends on the program's logging."""
    sender = FailingSender(lambda: PermanentSendError("no"), times=1)
    async with open_delay_queue(sender, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
    assert conserved(queue).dead == 1
    assert len(handler.lines) >= 1


async def test_a_queue_ends_all_the_same(handler: Raising, autojump_clock: Any, conserved: Any) -> None:
    """What its block raises leaves it, and not what went wrong when it was said what is left."""
    with pytest.raises(KeyError, match="mine"):
        async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
            queue.put_nowait(b"", delay=1)
            raise KeyError("mine")
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=100)
        assert len((await queue.drain(5)).remaining) == 1
    assert conserved(queue).pending == 1
    assert len(handler.lines) == 3


async def test_a_journal_that_fails_ends_no_loop(handler: Raising, conserved: Any) -> None:
    """That it can't be written, and can be again, is said where an error would end the whole run."""
    disk = Disk()
    async with open_delay_queue(nothing, capacity=10, workers=1, journal=disk) as queue:
        disk.error = JournalError("the disk is full")
        with pytest.raises(JournalError, match="full"):
            await queue.put(b"", delay=0.0)
        disk.error = None
        await queue.put(b"", delay=0.0)
        await until(lambda: queue.statistics().sent == 1)
    assert conserved(queue).journal_failures == 1
    assert handler.lines == [
        "the journal can't be written, and puts are refused: the disk is full",
        "the journal can be written again",
    ]


def test_what_strangers_give_is_used_all_the_same(handler: Raising) -> None:
    """A wait that is none is None, and a cost that fails is 1."""
    assert Throttled("429", retry_after=handler).retry_after is None  # type: ignore[arg-type]

    def cost(*_: object) -> float:
        raise ValueError("no")

    limit = RateLimit(1.0, cost=cost)
    limit.use_clock(lambda: 0.0)
    assert limit.price(None, False) == 1.0  # type: ignore[arg-type]
    assert len(handler.lines) == 2
