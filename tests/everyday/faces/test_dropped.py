"""A started queue whose last reference goes, wherever the garbage collector comes upon it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import trio

from localdelay import Message, aio, threads
from tests.kit.waiting import on_asyncio, until

DROPPED = "a queue was dropped without close(), and ends: keep it for as long as it is to send"
LEFT = "the queue was left with 1 message (1 B) pending, lost with this process: `journal=PATH` keeps them"


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """It comes where a test calls it."""
    gc.disable()
    yield
    gc.enable()


class Service:
    """Has a queue, and a reference to itself."""

    def __init__(self, queue: Any) -> None:
        self.itself, self.queue = self, queue


def dropped(send: Callable[..., object]) -> Any:
    """The remote of a queue that only the collector can reach; a message is due, and another one is not."""
    service = Service(threads.start_delay_queue(send, capacity=9, workers=1))
    service.queue.put(b"2", delay=300.0)
    service.queue.put(b"1", delay=0.0)
    return service.queue.remote


def collect(message: Message) -> None:
    gc.collect()


async def collect_on_the_loop(message: Message) -> None:
    collect(message)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("send", [collect_on_the_loop, collect])
def test_it_is_collected_in_a_thread_of_its_own(send: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Where it would wait for itself: it ends, and the log says why, and what is lost."""
    dropped(send).ended.result(10)
    until(lambda: len(caplog.messages) == 2)
    assert DROPPED in caplog.messages
    assert any("pending, lost with this process" in line for line in caplog.messages)


@pytest.mark.parametrize("place", ["anywhere", "logging"])
def test_it_is_collected_under_a_lock_that_its_end_needs(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """That of a handler of the log, say: nobody waits there for the end, which has a line to say."""
    remote = dropped(lambda _: None)
    until(lambda: remote.pending() == (1, 1))

    def log() -> None:
        with nullcontext() if place == "anywhere" else caplog.handler.lock:  # type: ignore[union-attr]
            gc.collect()

    thread = threading.Thread(target=log, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    remote.ended.result(10)
    assert sorted(caplog.messages) == [DROPPED, LEFT]


def test_a_drop_of_what_has_ended_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It costs nothing."""
    queue = threads.start_delay_queue(lambda _: None, capacity=9, workers=1)
    queue.remote.leave(at_once=True)
    queue.remote.ended.result(10)
    del queue
    gc.collect()
    assert caplog.messages == []


def test_close_on_its_own_loop_says_so_and_leaves_it_to_be_closed() -> None:
    """As in a finalizer, which the collector calls anywhere: it would wait for itself."""
    errors: list[str] = []
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.payload)
        with pytest.raises(RuntimeError) as raised:
            queue.close()
        errors.append(str(raised.value))

    queue = threads.start_delay_queue(send, capacity=9, workers=1)
    queue.put(b"1", delay=0.0)
    until(lambda: errors)
    queue.put(b"2", delay=0.0)
    queue.close()
    assert sent == [b"1", b"2"]
    assert errors == ["this was called on the queue's own loop, which it would wait for"] * 2


@on_asyncio
async def test_on_asyncio_it_is_ended_on_its_callers_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever it is collected."""
    caplog.set_level(logging.WARNING, "localdelay")

    async def send(message: Message) -> None:
        gc.collect()

    service = Service(await aio.start_delay_queue(send, capacity=9, workers=1))
    remote = service.queue.remote
    await service.queue.put(b"2", delay=300.0)
    await service.queue.put(b"1", delay=0.0)
    del service
    async with asyncio.timeout(10):
        while not remote.ended.done():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)
    assert sorted(caplog.messages) == [DROPPED, LEFT]
