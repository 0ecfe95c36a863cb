"""Cancellation, and what is no `Exception`: nothing is lost, and nothing is swallowed.

`tests/simulation` has a cancellation before every step.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from localdelay import DelayQueue, Message, Statistics, open_delay_queue

Conserved: TypeAlias = Callable[[DelayQueue], Statistics]


class Stop(BaseException):
    """No `Exception`: what a KeyboardInterrupt is to a send."""


async def _sleeps_and_raises(error: BaseException) -> None:
    await trio.sleep(0.5)
    raise error


async def _raises_in_a_nursery(error: BaseException) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sleeps_and_raises, error)
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("the send's own")


@pytest.mark.parametrize("leaving", [False, True])
@pytest.mark.parametrize("how", [_sleeps_and_raises, _raises_in_a_nursery])
@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_comes_out_bare_and_loses_nothing(
    kind: type[BaseException],
    how: Callable[[BaseException], Awaitable[None]],
    leaving: bool,
    conserved: Conserved,
) -> None:
    """It ends the queue, not the bookkeeping: every message is pending, the other sends' ones too."""
    error = kind()
    queue: Any = None
    called: list[bytes] = []

    async def send(message: Message) -> None:
        conserved(queue)
        called.append(message.payload)
        if message.payload == b"stop":
            await how(error)
        await trio.sleep_forever()

    async def main() -> None:
        nonlocal queue
        async with open_delay_queue(send, capacity=10, workers=6) as queue:
            for payload, delay in [(b"a", 0.75), (b"stop", 1.0), (b"b", 1.0), (b"c", 1.0), (b"d", 9.0)]:
                queue.put_nowait(payload, delay=delay)
            if not leaving:
                await trio.sleep_forever()

    with pytest.raises(kind) as caught:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert caught.value is error
    assert sorted(called) == [b"a", b"b", b"c", b"stop"], "an idle worker has sent one of them again"
    assert conserved(queue).waiting == 5
    assert [message.attempt for message in queue.messages()] == [1] * 5


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handling of SIGINT, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["block", "leaving", "drain", "hand back"])
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_comes_out_bare(where: str, conserved: Conserved) -> None:
    """A KeyboardInterrupt in the main task is one when it leaves the block, and nothing is lost."""
    queue: Any = None

    async def send(message: Message) -> None:
        await trio.sleep_forever()

    async def hand_back(message: Message, remaining: float) -> None:
        await trio.sleep_forever()

    async def main() -> None:
        nonlocal queue
        async with open_delay_queue(send, capacity=10, workers=3) as queue:
            queue.put_nowait(b"a", delay=0.5)
            queue.put_nowait(b"b", delay=5.0)
            trio.lowlevel.spawn_system_task(interrupt)
            if where == "block":
                await trio.sleep_forever()
            elif where == "drain":
                await queue.drain()
            elif where == "hand back":
                await queue.drain(3.0, hand_back)

    async def interrupt() -> None:
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert conserved(queue).waiting == 2


@pytest.mark.parametrize("kind", [Stop, KeyboardInterrupt])
async def test_what_a_hand_back_raises_that_is_no_exception_leaves_drain_bare(
    kind: type[BaseException], conserved: Conserved, autojump_clock: MockClock
) -> None:
    """It ends the drain at once, is raised once and bare, and its message is pending."""
    error = kind()
    calls = 0

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()

    async def hand_back(message: Message, remaining: float) -> None:
        nonlocal calls
        calls += 1
        raise error

    async with open_delay_queue(send, capacity=10, workers=3) as queue:
        queue.put_nowait(b"a", delay=9.0)
        with pytest.raises(kind) as caught:
            await queue.drain(3.0, hand_back)
    assert caught.value is error
    assert calls == 1
    assert conserved(queue).waiting == 1
