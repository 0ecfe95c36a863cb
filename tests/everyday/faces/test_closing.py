"""The end of a queue that was started: called from inside, by two at once, interrupted."""

from __future__ import annotations

import asyncio
from threading import Event, Thread
from typing import Any
from unittest.mock import AsyncMock

import pytest

from localdelay import Message, PermanentSendError, Throttled, aio, threads
from tests.kit.conserving import conserved
from tests.kit.faces import InThreads, OnAsyncio, OnUvloop
from tests.kit.waiting import on_asyncio

NEVER = 300.0
INSIDE = "close was called from inside a send or a hand-back, for which it would wait"

each_world = pytest.mark.parametrize(
    "face", [InThreads(), OnAsyncio(), OnUvloop()], ids=lambda face: face.name
)


@each_world
def test_close_inside_what_it_would_wait_for_says_so(face: Any) -> None:
    """A send, a hook, a hand-back: the queue goes on, loses nothing, and is closed by another one."""
    told: list[str] = []
    sent: list[bytes] = []
    back: list[bytes] = []

    async def scene(_: Any) -> None:
        async def close(message: Message) -> None:
            with pytest.raises(RuntimeError) as raised:
                await face.now(queue.close())
            told.append(str(raised.value))

        async def send(message: Message) -> None:
            sent.append(message.payload)
            await close(message)
            if message.payload == b"never":
                raise PermanentSendError

        async def bury(message: Message, error: Exception) -> None:
            await close(message)

        async def hand_back(message: Message, delay: float) -> None:
            back.append(message.payload)
            await close(message)

        queue = await face.started(face.calls(send), capacity=9, workers=2, on_dead_letter=face.calls(bury))
        for payload, delay in ((b"1", 0.0), (b"never", 0.0), (b"2", 0.05), (b"late", NEVER)):
            await face.now(queue.put(payload, delay=delay))
        await face.now(queue.drain(10.0, face.calls(hand_back)))
        await face.now(queue.close())
        s = conserved(await face.now(queue.statistics()))  # not the report: some may go before the drain
        assert (s.sent, s.dead, s.handed_back, s.pending) == (2, 1, 1, 0)

    face.play(scene)
    assert sorted(sent) == [b"1", b"2", b"never"]
    assert back == [b"late"]
    assert told == [INSIDE] * 5


@each_world
def test_close_inside_a_primary_says_so_where_that_takes_a_message_back(face: Any) -> None:
    """Not where it is called by who publishes: nobody waits for him."""
    told: list[str] = []

    async def scene(_: Any) -> None:
        async def publish(message: Message, delay: float) -> None:
            if not told:
                told.append("refused")
                raise Throttled
            with pytest.raises(RuntimeError) as raised:
                await face.now(queue.close())
            told.append(str(raised.value))

        async def send(message: Message) -> None:
            pass

        queue = await face.started(face.calls(send), capacity=9, workers=1)
        kind = threads.Fallback if face.name == "threads" else aio.Fallback
        fallback: Any = kind(face.calls(publish), queue, limit=None, hand_back=True)
        await face.now(fallback.publish(b"", delay=NEVER))
        await face.until(lambda: fallback.statistics().handed_back == 1)
        await face.now(queue.close())

    face.play(scene)
    assert told == ["refused", INSIDE]


@each_world
def test_a_second_close_waits_for_the_end_too(face: Any) -> None:
    """Whoever returns from it finds all sent."""
    pending: list[int] = []

    async def scene(_: Any) -> None:
        gate = face.gate()
        queue = await face.started(face.takes(lambda _: None, gate), capacity=9, workers=1)
        await face.now(queue.put(b"", delay=0.0))

        async def close() -> None:
            await face.now(queue.close())
            pending.append(queue.remote.pending()[0])

        async with face.beside() as start:
            calls = [start(face.calls(close)) for _ in range(3)]
            await face.sleep(0.1)
            assert not any(call.done() for call in calls)
            gate.set()
        for call in calls:
            call.result()
        await close()

    face.play(scene)
    assert pending == [0] * 4


class Interrupted(BaseException):
    """Like Ctrl-C, or what a handler of signals raises."""


@each_world
@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_while_it_starts_leaves_no_queue(
    face: Any, *, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not its thread has begun, for whose begin it waits: nobody would have that queue."""
    started: list[Thread] = []
    start = Thread.start

    def interrupted(self: Thread) -> None:
        if self.name != "localdelay":
            start(self)
            return
        started.append(self)
        if begun:
            start(self)
        raise Interrupted

    monkeypatch.setattr(Thread, "start", interrupted)

    async def scene(_: Any) -> None:
        with pytest.raises(Interrupted):
            await face.started(face.takes(lambda _: None), capacity=1, workers=1)

    face.play(scene)
    [thread] = started
    assert not thread.is_alive()


@on_asyncio
async def test_a_cancellation_while_an_error_leaves_the_block_is_not_swallowed() -> None:
    """The queue ends all the same, and who has cancelled the task sees it cancelled."""
    own = ValueError("mine")
    busy = Event()
    remotes: list[Any] = []

    async def main() -> None:
        async with aio.open_delay_queue(AsyncMock(), capacity=1, workers=1) as queue:
            remotes.append(queue.remote)
            queue.remote.begin(lambda: busy.wait(20))  # its thread, which can't end meanwhile
            raise own

    task = asyncio.create_task(main())
    await asyncio.sleep(0.05)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
    busy.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert remotes[0].ended.done()
    context: BaseException | None = raised.value
    while context is not None and context is not own:
        context = context.__context__
    assert context is own
