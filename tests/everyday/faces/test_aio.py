"""The queue and the fallback in an asyncio program: on the caller's loop, and cancelled as it should be."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from threading import Event
from typing import Any

import pytest

from localdelay import Message, PermanentSendError, QueueClosed, QueueFull, RetryPolicy, aio
from localdelay.testing import RecordingSender
from tests.kit.conserving import conserved
from tests.kit.programs import python
from tests.kit.waiting import on_asyncio

pytestmark = pytest.mark.filterwarnings("error")


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await done():  # noqa: ASYNC110 (time passes in the other thread)
            await asyncio.sleep(0.005)


class Sent:
    """A coroutine function that keeps what it gets."""

    def __init__(self, hold: asyncio.Event | None = None) -> None:
        self.messages: list[Message] = []
        self.cancelled = 0
        self._hold = hold

    async def __call__(self, message: Message) -> None:
        try:
            if self._hold is not None:
                await self._hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.messages.append(message)


@on_asyncio
async def test_all_that_is_called_runs_on_the_callers_loop() -> None:
    """Sends, dead-letter hooks and hand-backs."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def send(message: Message) -> None:
        loops.append(asyncio.get_running_loop())
        raise PermanentSendError("no")

    async def take(message: Message, _: object) -> None:
        loops.append(asyncio.get_running_loop())

    async with aio.open_delay_queue(send, capacity=10, workers=1, on_dead_letter=take) as queue:
        queue.put_nowait(b"soon", delay=0.0)
        queue.put_nowait(b"late", delay=60.0)
        report = await queue.drain(grace=5.0, hand_back=take)
    assert (report.dead, report.handed_back) == (1, 1)
    assert loops == [asyncio.get_running_loop()] * 3


@on_asyncio
async def test_many_tasks_put_and_many_sends_run_at_once() -> None:
    """8,000 messages from 50 tasks, each sent once, by sends that wait for one another's loop."""
    counts: Counter[int] = Counter()

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        counts[int(message.payload)] += 1

    async def produce(first: int) -> None:
        for number in range(first, first + 160):
            await queue.put(b"%d" % number, delay=(number % 10) / 1000)

    async with aio.open_delay_queue(send, capacity=2000, workers=50) as queue:
        await asyncio.gather(*(produce(i * 160) for i in range(50)))
    assert len(counts) == 8_000
    assert set(counts.values()) == {1}
    assert conserved(await queue.statistics()).sent == 8_000


@on_asyncio
async def test_what_is_no_coroutine_function_is_given_up_at_once() -> None:
    """It has sent already, and to call it again would send again. Nobody can tell before, of a lambda."""
    calls: list[Message] = []
    send: Any = lambda message: calls.append(message)  # noqa: E731 (a `def` is refused)
    dead: list[Exception] = []

    async def on_dead_letter(message: Message, error: Exception) -> None:
        dead.append(error)

    async with aio.open_delay_queue(send, capacity=5, workers=1, on_dead_letter=on_dead_letter) as queue:
        queue.put_nowait(b"", delay=0.0)
    assert len(calls) == 1
    assert [type(error).__mro__[1] for error in dead] == [PermanentSendError]
    assert "cannot be awaited" in str(dead[0])


@on_asyncio
async def test_a_put_that_is_cancelled_was_not_accepted() -> None:
    """Whoever waits for room can be cancelled, and nothing of his message stays behind."""
    hold = asyncio.Event()
    sent = Sent(hold)
    async with aio.open_delay_queue(sent, capacity=1, workers=1) as queue:
        queue.put_nowait(b"1", delay=0.0)
        waiting = [asyncio.create_task(queue.put(b"no", delay=0.0, id="no")) for _ in range(1)]

        async def one_waits() -> bool:
            return (await queue.statistics()).puts_waiting == 1

        await until(one_waits)
        with pytest.raises(QueueFull):
            queue.put_nowait(b"no", delay=0.0)
        for task in waiting:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not await queue.is_pending("no")
        assert conserved(await queue.statistics()).puts_waiting == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await queue.put(b"no", delay=0.0)
        hold.set()
    assert [message.payload for message in sent.messages] == [b"1"]


@pytest.mark.parametrize("wait", [0.0, 0.0005, 0.001, 0.002])
@on_asyncio
async def test_cancelled_at_any_moment_nothing_is_half_done(wait: float) -> None:
    """Room comes and cancellations come: what was accepted is sent, and a cancelled put was not."""
    sent = Sent()
    async with aio.open_delay_queue(sent, capacity=2, workers=2) as queue:
        accepted: list[str] = []

        async def put(number: int) -> None:
            message = await queue.put(b"%d" % number, delay=0.001, id=f"m{number}")
            accepted.append(message.id)

        for first in range(0, 200, 10):
            tasks = [asyncio.create_task(put(number)) for number in range(first, first + 10)]
            await asyncio.sleep(wait)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    statistics = conserved(await queue.statistics())
    ids = {message.id for message in sent.messages}
    assert set(accepted) <= ids
    # One that was already being sent when its cancellation came can't be taken back.
    assert statistics.sent == len(ids) <= len(accepted) + statistics.accepted - len(accepted)
    assert statistics.pending == 0


@on_asyncio
async def test_a_send_that_takes_too_long_is_cancelled_on_its_loop() -> None:
    """`send_timeout` ends the task there, and the message is tried again."""
    hold = asyncio.Event()
    sent = Sent(hold)
    async with aio.open_delay_queue(
        sent, capacity=5, workers=1, send_timeout=0.05, retry=RetryPolicy(wait_initial=0.01, wait_jitter=0)
    ) as queue:
        queue.put_nowait(b"", delay=0.0)

        async def cancelled() -> bool:
            return sent.cancelled >= 2

        await until(cancelled)
        hold.set()
    assert len(sent.messages) == 1
    assert sent.messages[0].attempt >= 3


@on_asyncio
async def test_leaving_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """A task that is cancelled while it waits for the end ends at once, with a warning."""
    queues: list[aio.DelayQueue] = []

    async def main() -> None:
        async with aio.open_delay_queue(Sent(), capacity=10, workers=1) as queue:
            queues.append(queue)
            queue.put_nowait(b"12345", delay=60.0)

    task = asyncio.create_task(main())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert conserved(await queues[0].statistics()).pending == 1
    assert (
        "the queue was left with 1 message (5 B) pending, lost with this process: `journal=PATH` keeps them"
        in caplog.messages
    )


@on_asyncio
async def test_a_cancelled_publish_is_neither_held_nor_counted_as_refused() -> None:
    """The primary, on the caller's loop, may have taken it; the caller knows that it was cut off."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def hangs(message: Message, delay: float) -> None:
        loops.append(asyncio.get_running_loop())
        await asyncio.Event().wait()

    async with aio.open_delay_queue(Sent(), capacity=20, workers=1) as queue:
        fallback = aio.Fallback(hangs, queue)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await fallback.publish(b"", delay=60.0)
        statistics = fallback.statistics()
        assert (statistics.calls, statistics.primary, statistics.local, statistics.refused) == (1, 0, 0, 0)
        assert (await queue.statistics()).accepted == 0
    assert loops == [asyncio.get_running_loop()]


@on_asyncio
async def test_a_wrong_drain_on_exit_is_refused() -> None:
    """By name, where it is opened."""
    with pytest.raises(ValueError, match="drain_on_exit"):
        async with aio.open_delay_queue(Sent(), capacity=1, workers=1, drain_on_exit=0):
            pass


def test_the_package_has_it_without_importing_asyncio_first() -> None:
    """`import localdelay` is enough for `localdelay.aio`, and loads no asyncio before that is asked for."""
    code = (
        "import sys, localdelay; assert 'asyncio' not in sys.modules; "
        "print(localdelay.aio.open_delay_queue.__name__)"
    )
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("open_delay_queue\n", "")


@on_asyncio
async def test_a_forked_child_has_no_queue_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor an answer from what it has copied of it."""
    async with aio.open_delay_queue(Sent(), capacity=1, workers=1) as queue:
        with monkeypatch.context() as child:
            child.setattr(queue.remote.intake, "is_forked", True)
            with pytest.raises(QueueClosed, match="forked"):
                await queue.statistics()
        assert (await queue.statistics()).pending == 0


@on_asyncio
async def test_an_id_of_this_process_does_not_hold_the_loop() -> None:
    """Only the queue's thread knows whether it is pending: while that is busy, put_nowait does not wait."""
    async with aio.open_delay_queue(RecordingSender(), capacity=9, workers=1) as queue:
        ours = queue.put_nowait(b"", delay=300.0)
        await queue.statistics()
        done = Event()
        queue.remote.begin(lambda: done.wait(20))  # its thread is busy
        began = time.perf_counter()
        with pytest.raises(QueueFull, match=r"too busy to say within 0.02 s whether id .* is pending: await"):
            queue.put_nowait(b"", delay=0.0, id=ours.id)
        assert time.perf_counter() - began < 1.0
        waiting = asyncio.create_task(queue.put(b"", delay=0.0, id=ours.id))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        done.set()
        with pytest.raises(ValueError, match=ours.id):
            await waiting
        assert await queue.cancel(ours.id)
        assert queue.put_nowait(b"", delay=0.0, id=ours.id).id == ours.id


@on_asyncio
async def test_a_task_that_a_send_has_left_behind_may_wait_for_room() -> None:
    """It keeps no send from ending; one that a send waits for does, and is told so."""
    gate = asyncio.Event()
    left: list[asyncio.Task[Message]] = []
    told: list[BaseException | None] = []

    async def send(message: Message) -> None:
        if message.payload == b"first":
            with pytest.raises(ExceptionGroup) as raised:
                async with asyncio.TaskGroup() as group:
                    group.create_task(queue.put(b"no", delay=0.0))
            told.append(raised.value.exceptions[0])
            left.append(asyncio.create_task(later()))

    async def later() -> Message:
        await gate.wait()
        return await queue.put(b"later", delay=0.0)

    async with aio.open_delay_queue(send, capacity=1, workers=1, send_timeout=None) as queue:
        queue.put_nowait(b"first", delay=0.0)
        while not (await queue.statistics()).sent:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)
        queue.put_nowait(b"second", delay=0.2)
        gate.set()
        assert (await left[0]).payload == b"later"
    assert isinstance(told[0], QueueFull)
    assert "inside a send of this very queue" in str(told[0])


def test_a_send_that_outlives_its_loop_says_nothing() -> None:
    """A task that will not be cancelled is taken apart behind its loop, and has nothing to do there."""
    code = """
import asyncio
from localdelay import aio

async def send(message):
    while True:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass

async def main():
    async with aio.open_delay_queue(send, capacity=1, workers=1) as queue:
        await queue.put(b"", delay=0.0)
        await asyncio.sleep(0.1)
        await queue.drain(0.0)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
asyncio.set_event_loop(None)
loop.set_exception_handler(lambda *_: None)
loop.close()
"""
    done = python("-c", code)
    assert "Event loop is closed" not in done.stderr


@on_asyncio
@pytest.mark.parametrize("id", [None, "a"])
async def test_a_put_that_is_cancelled_when_it_has_its_room_leaves_nothing(id: str | None) -> None:
    """Also where room was there at once, and it only lets others have their turn."""
    async with aio.open_delay_queue(Sent(), capacity=1, workers=1) as queue:
        putting = asyncio.ensure_future(queue.put(b"", delay=60.0, id=id))
        await asyncio.sleep(0)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        assert await queue.messages() == []
        assert (await queue.statistics()).cancelled == 1
