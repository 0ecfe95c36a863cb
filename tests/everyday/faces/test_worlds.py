"""What is opened in the wrong world is refused there, by the name of the right door."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import localdelay
from localdelay import aio, redis_plan, threads
from localdelay.arguments import check_async
from localdelay.testing import RecordingSender

URL = "redis://127.0.0.1:1/orders"


async def enter(opened: Any) -> None:
    async with opened:
        pytest.fail("it opened")


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("localdelay.open_delay_queue", lambda: localdelay.open_delay_queue(print, capacity=1, workers=1)),
        (
            "open_redis_delay_queue",
            lambda: redis_plan.open_redis_delay_queue(RecordingSender(), url=URL, workers=1),
        ),
    ],
)
def test_a_queue_of_trios_on_an_asyncio_loop(name: str, opens: Callable[[], Any]) -> None:
    """It names `localdelay.aio`, before anything else is wrong; and where there is no loop, the threads."""
    with pytest.raises(RuntimeError) as refused:
        asyncio.run(enter(opens()))
    told = f"{name} is for a loop of Trio's, and this is asyncio's: use localdelay.aio.open_delay_queue"
    assert str(refused.value) == told
    with pytest.raises(
        RuntimeError, match=r"none runs here: .* lifespan.* or use localdelay.threads.open_delay_queue$"
    ):
        enter(opens()).send(None)


def test_a_queue_of_asyncios_on_trio() -> None:
    """It names the door for Trio, with and without a block."""
    name = "localdelay.aio.open_delay_queue"
    told = f"^{name} is for a loop of asyncio's, and this is Trio's: use localdelay.open_delay_queue$"
    with pytest.raises(RuntimeError, match=told):
        trio.run(enter, aio.open_delay_queue(RecordingSender(), capacity=1, workers=1))
    with pytest.raises(RuntimeError, match=told):
        trio.run(lambda: aio.start_delay_queue(RecordingSender(), capacity=1, workers=1))
    with pytest.raises(
        RuntimeError, match=r"none runs here: .* lifespan.* or use localdelay.threads.open_delay_queue$"
    ):
        enter(aio.open_delay_queue(RecordingSender(), capacity=1, workers=1)).send(None)


def test_a_fallback_over_another_worlds_queue() -> None:
    """It names the queue that it was given and the fallback that is for that."""
    with threads.open_delay_queue(lambda _: None, capacity=1, workers=1) as queue:
        with pytest.raises(TypeError) as refused:
            aio.Fallback(RecordingSender(), queue)  # type: ignore[arg-type]
    told = "queue must be a localdelay.aio.DelayQueue, not localdelay.threads.DelayQueue: for that there is "
    assert str(refused.value) == told + "localdelay.threads.Fallback"
    with pytest.raises(TypeError, match=r"must be a localdelay.threads.DelayQueue, not builtins.int$"):
        threads.Fallback(print, 5)  # type: ignore[arg-type]


class Client:
    def send(self, message: object) -> None:
        pytest.fail("it was called")

    async def send_and_wait(self, message: object) -> None: ...

    def soon(self, message: object) -> Awaitable[None]:
        return self.send_and_wait(message)

    __call__ = send


@functools.wraps(Client.send_and_wait)
def wrapped(*args: Any) -> Any:
    return Client.send_and_wait(*args)


PLAIN: list[Any] = [Client.send, Client().send, Client(), functools.partial(Client().send, 1), [].append]
AWAITED: list[Any] = [
    Client.send_and_wait,
    Client().send_and_wait,
    functools.partial(Client().send_and_wait),
    Client().soon,
    RecordingSender(),
    wrapped,
    lambda message: Client().soon(message),
]


@pytest.mark.parametrize("plain", PLAIN, ids=range(len(PLAIN)))
def test_a_plain_function_is_refused_when_the_queue_is_opened(plain: Any) -> None:
    """As a send, a hook, a hand-back, a primary: it would be called, have sent, and count as failed."""

    async def on_trio(opened: Any) -> None:
        async with localdelay.open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
            with pytest.raises(TypeError, match=r"^hand_back must be an async function, not an ordinary one"):
                await queue.drain(1.0, plain)
            with pytest.raises(TypeError, match=r"^publish_delayed must be an async function"):
                localdelay.Fallback(plain, queue)
        await enter(opened)

    given = {"send": RecordingSender(), "capacity": 1, "workers": 1}
    for name, options in (
        ("send", {**given, "send": plain}),
        ("send_batch", {**given, "send": None, "send_batch": plain}),
        ("on_dead_letter", {**given, "on_dead_letter": plain}),
    ):
        told = f"^{name} must be an async function, not an ordinary one: write `async def`; .*threads"
        with pytest.raises(TypeError, match=told):
            trio.run(on_trio, localdelay.open_delay_queue(**options))
        with pytest.raises(TypeError, match=told):
            asyncio.run(enter(aio.open_delay_queue(**options)))


@pytest.mark.parametrize("given", AWAITED, ids=range(len(AWAITED)))
def test_what_may_well_be_awaited_is_taken(given: Any) -> None:
    """Async functions and methods, also in a `partial` or a wrapper, and what says that it returns such."""
    check_async("send", given)


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.put_nowait(b"", delay=1.0),
        lambda queue: queue.put_nowait(b"", delay=1.0, id="a"),
        lambda queue: queue.cancel("a"),
        lambda queue: queue.reschedule("a", delay=1.0),
        lambda queue: queue.is_pending("a"),
        lambda queue: queue.messages(),
        lambda queue: queue.statistics(),
        lambda queue: queue.pause(),
        lambda queue: queue.resume(),
        lambda queue: queue.resize(workers=2),
    ],
)
async def test_a_queue_of_trios_in_another_thread(call: Callable[[Any], Any]) -> None:
    """It would change under the loop's hands, and what to use is said. Once it has ended it may be read."""
    async with localdelay.open_delay_queue(RecordingSender(), capacity=1, workers=1) as queue:
        with pytest.raises(RuntimeError, match=r"trio\.from_thread.* or open it by localdelay\.threads"):
            await trio.to_thread.run_sync(call, queue)
        assert not queue.statistics().paused
    assert await trio.to_thread.run_sync(queue.messages) == []
