"""What makes the faces easy: a queue without a block, a decorator, a word about itself, public names."""

from __future__ import annotations

import asyncio
import functools
import textwrap
from importlib.metadata import version
from typing import Any

import pytest
import trio

import localdelay
from localdelay import Throttled, aio, events, threads
from localdelay.testing import MovableClock, RecordingSender, ThrottledPrimary

pytestmark = pytest.mark.filterwarnings("error")


def test_a_queue_of_threads_without_a_block() -> None:
    """It runs until it is closed, and closing waits until all is sent; a second time changes nothing."""
    clock, send = MovableClock(), RecordingSender()
    queue = threads.start_delay_queue(send, capacity=1_000, workers=1, clock=clock)
    queue.put(b"x", delay=60)
    assert repr(queue) == "<localdelay.threads.DelayQueue: 1 of 1,000 pending>"
    queue.close()
    queue.close()
    assert send.times == [60.0]
    assert queue.statistics().closed


def test_a_queue_of_asyncio_without_a_block() -> None:
    """The same on asyncio."""

    async def scene() -> None:
        clock = MovableClock()
        send = RecordingSender(clock=clock)
        queue = await aio.start_delay_queue(send, capacity=1_000, workers=1, clock=clock)
        await queue.put(b"x", delay=60)
        assert repr(queue) == "<localdelay.aio.DelayQueue: 1 of 1,000 pending>"
        await queue.close()
        await queue.close()
        assert send.payloads == [b"x"]

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_a_block_closes_its_queue_itself() -> None:
    """`close` is for what was started without one; what is refused at the start leaves nothing behind."""
    with threads.open_delay_queue(print, capacity=1, workers=1) as blocking, pytest.raises(RuntimeError):
        blocking.close()

    async def scene() -> None:
        async with aio.open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
            with pytest.raises(RuntimeError):
                await queue.close()

    asyncio.run(scene())
    with pytest.raises(ValueError, match="capacity"):
        threads.start_delay_queue(print, capacity=0, workers=1)


async def test_a_queue_of_trio_shows_itself(autojump_clock: trio.testing.MockClock) -> None:
    """What is pending and the capacity, as they are now."""
    async with localdelay.open_delay_queue(RecordingSender(), capacity=24_000, workers=1) as queue:
        queue.put_nowait(b"x", delay=5)
        assert repr(queue) == "<localdelay.DelayQueue: 1 of 24,000 pending>"
    assert repr(queue) == "<localdelay.DelayQueue: 0 of 24,000 pending>"


def test_the_decorator_of_the_docstring() -> None:
    """A plain function keeps its callers; what its client refuses is sent when due, to the same topic."""
    told = threads.__doc__ or ""
    recipe = textwrap.dedent(told.partition("callers:\n\n")[2].partition("\n\nOn asyncio")[0])
    published: list[tuple[Any, ...]] = []

    class Client:
        def publish(self, topic: str, body: bytes, delay: float = 0.0) -> None:
            if delay and body == b"refused":
                raise Throttled
            published.append((topic, body, delay))

    names: dict[str, Any] = {"functools": functools, "threads": threads, "client": Client()}
    exec(recipe, names)
    names["publish_delayed"]("orders", b"taken", 0.2)
    names["publish_delayed"]("orders", b"refused", delay=0.01)
    names["queue"].close()
    assert published == [("orders", b"taken", 0.2), ("orders", b"refused", 0.0)]


def test_what_a_listener_is_told_has_public_names() -> None:
    """A listener is typed and matches events by what `localdelay` exports."""
    seen: list[events.Event] = []

    class Listener(localdelay.Listener):
        def on_event(self, event: events.Event) -> None:
            seen.append(event)

    with threads.open_delay_queue(print, capacity=10, workers=1, clock=MovableClock()) as queue:
        fallback = threads.Fallback(ThrottledPrimary(0).blocking, queue, listener=Listener())
        fallback.publish(b"x", delay=60)
        queue.cancel(queue.messages()[0].id)
    assert any(isinstance(event, events.Degraded) for event in seen)


def test_the_version_is_that_of_the_package() -> None:
    """`localdelay.__version__`, and no other name is made up."""
    assert localdelay.__version__ == version("localdelay")
    with pytest.raises(AttributeError):
        _ = localdelay.no_such_name
