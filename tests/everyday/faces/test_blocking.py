"""A send made of a blocking function: real threads, a clock that moves only by hand, and no sleeping."""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from localdelay import DelayQueue, Message, RetryPolicy, blocking, open_delay_queue

HOPS = 20
"""Trips to another thread and back: far more than a thread needs to begin."""
STUCK = 10.0
"""Real seconds after which a test that would hang fails instead; a test that passes waits for none."""


class Hanging:
    """A blocking send whose first `hang` calls hang until they are released."""

    def __init__(self, hang: int = 1) -> None:
        self._hang = hang
        self._lock = threading.Lock()
        self.release = threading.Event()
        self.began: list[Message] = []
        self.ended: list[Message] = []
        self.running = 0
        self.peak = 0

    def __call__(self, message: Message) -> None:
        with self._lock:
            self.running += 1
            self.peak = max(self.peak, self.running)
            self.began.append(message)
            hangs = len(self.began) <= self._hang
        if hangs:
            self.release.wait(STUCK)
        with self._lock:
            self.ended.append(message)
            self.running -= 1

    async def until_began(self, count: int) -> None:
        while len(self.began) < count:
            await trio.to_thread.run_sync(int)

    async def until_ended(self, count: int) -> None:
        while len(self.ended) < count:
            await trio.to_thread.run_sync(int)


@pytest.fixture
def hanging() -> Iterator[Callable[..., Hanging]]:
    """Makes `Hanging` functions, and lets their threads go when the test is over."""
    made: list[Hanging] = []

    def make(hang: int = 1) -> Hanging:
        made.append(Hanging(hang))
        return made[-1]

    yield make
    for function in made:
        function.release.set()


async def hop() -> None:
    """Give every thread that could begin the time to do so."""
    for _ in range(HOPS):
        await trio.to_thread.run_sync(int)


async def finished(queue: DelayQueue, count: int) -> None:
    while queue.statistics().sent < count:
        await trio.to_thread.run_sync(int)


async def test_the_function_runs_in_another_thread(mock_clock: Any, conserved: Any) -> None:
    """The Trio thread goes on while the function blocks, and the send ends when it returns."""
    called: list[tuple[bytes, int]] = []
    both = threading.Barrier(2, timeout=STUCK)

    def send(message: Message) -> str:
        both.wait()
        called.append((message.payload, threading.get_ident()))
        return "a result that nobody needs"

    async with open_delay_queue(blocking(send), capacity=5, workers=1) as queue:
        queue.put_nowait(b"a", delay=0)
        await trio.testing.wait_all_tasks_blocked()
        assert conserved(queue).sending == 1
        assert called == []
        await trio.to_thread.run_sync(both.wait)  # would never return if the send held the Trio thread
        await finished(queue, 1)
        assert conserved(queue).sent == 1
    assert [payload for payload, _ in called] == [b"a"]
    assert called[0][1] != threading.get_ident()


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, TimeoutError, SystemExit])
async def test_an_odd_exception_harms_its_message_only(
    error: type[BaseException], mock_clock: Any, conserved: Any
) -> None:
    """Exceptions that mean something to coroutines, loops and threads are failed sends like any other."""
    calls: list[int] = []

    def send(message: Message) -> None:
        calls.append(message.attempt)
        if len(calls) == 1:
            raise error

    policy = RetryPolicy(wait_initial=0, wait_jitter=0)
    async with open_delay_queue(blocking(send), capacity=5, workers=1, retry=policy) as queue:
        queue.put_nowait(b"a", delay=0)
    assert calls == [1, 2]
    assert conserved(queue).sent == 1


@pytest.mark.parametrize("grace", [0.0, 25.0])
async def test_a_hanging_function_does_not_hold_up_a_drain(
    grace: float, hanging: Any, autojump_clock: Any, conserved: Any
) -> None:
    """`drain(grace=)` returns at the end of the grace; what hangs is in `remaining`, and pending."""
    function = hanging()
    async with open_delay_queue(blocking(function), capacity=5, workers=2, send_timeout=None) as queue:
        stuck = queue.put_nowait(b"stuck", delay=0)
        await trio.testing.wait_all_tasks_blocked()
        report = await queue.drain(grace=grace)
        assert trio.current_time() == grace
        assert report.sent == 0
        assert [message.id for message in report.remaining] == [stuck.id]
        assert [message.id for message in queue.messages()] == [stuck.id]
        assert conserved(queue).pending == 1
    assert function.ended == []
    function.release.set()
    await function.until_ended(1)
    assert (conserved(queue).sent, queue.statistics().pending) == (0, 1)


async def test_a_hanging_function_does_not_hold_up_the_way_out(
    hanging: Any, mock_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that is left by a cancellation does not wait for the thread, and its message stays pending."""
    function = hanging()
    with trio.CancelScope() as scope:
        async with open_delay_queue(blocking(function), capacity=5, workers=1) as queue:
            queue.put_nowait(b"stuck", delay=0)
            await function.until_began(1)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert function.ended == []
    assert [message.payload for message in queue.messages()] == [b"stuck"]
    assert conserved(queue).pending == 1
    assert "1 message (5 B) pending" in caplog.text


async def test_a_hanging_function_is_ended_by_send_timeout(
    hanging: Any, mock_clock: Any, conserved: Any
) -> None:
    """A call that takes longer than `send_timeout` has failed, and its message is sent again under its id."""
    function = hanging()
    policy = RetryPolicy(wait_initial=0, wait_jitter=0)
    async with open_delay_queue(
        blocking(function), capacity=5, workers=1, send_timeout=5.0, retry=policy
    ) as queue:
        message = queue.put_nowait(b"a", delay=0)
        await function.until_began(1)
        mock_clock.jump(4.999)
        await hop()
        assert conserved(queue).failures == 0
        mock_clock.jump(0.001)
        await finished(queue, 1)
        assert conserved(queue).failures == 1
    assert [(m.id, m.attempt) for m in function.began] == [(message.id, 1), (message.id, 2)]
    assert [m.attempt for m in function.ended] == [2]


async def test_others_are_sent_while_one_hangs(hanging: Any, mock_clock: Any, conserved: Any) -> None:
    """A function that hangs costs one worker and one thread, and harms its own message only."""
    function = hanging()
    async with open_delay_queue(blocking(function), capacity=50, workers=2, send_timeout=None) as queue:
        queue.put_nowait(b"stuck", delay=0)
        await function.until_began(1)
        for i in range(20):
            queue.put_nowait(b"%d" % i, delay=0)
        await finished(queue, 20)
        assert [message.payload for message in queue.messages()] == [b"stuck"]
        assert conserved(queue).sending == 1
        function.release.set()
    assert conserved(queue).sent == 21
    assert [m.payload for m in function.ended] == [*(b"%d" % i for i in range(20)), b"stuck"]


async def test_no_more_than_so_many_threads_run_at_once(
    hanging: Any, mock_clock: Any, conserved: Any
) -> None:
    """`threads` bounds the calls, whatever the number of workers; the other sends wait for a thread."""
    function = hanging(hang=10**9)
    async with open_delay_queue(
        blocking(function, threads=3), capacity=50, workers=10, send_timeout=None
    ) as queue:
        for i in range(30):
            queue.put_nowait(b"%d" % i, delay=0)
        await function.until_began(3)
        await hop()
        assert conserved(queue).sending == 10
        assert function.running == 3
        function.release.set()
    assert function.peak == 3
    assert len(function.ended) == conserved(queue).sent == 30


async def test_an_abandoned_call_keeps_its_thread(hanging: Any, mock_clock: Any, conserved: Any) -> None:
    """Calls that hang never add up to more than `threads`: the next waits until one has returned."""
    function = hanging()
    policy = RetryPolicy(wait_initial=0, wait_jitter=0)
    async with open_delay_queue(
        blocking(function, threads=1), capacity=5, workers=1, send_timeout=5.0, retry=policy
    ) as queue:
        queue.put_nowait(b"a", delay=0)
        await function.until_began(1)
        mock_clock.jump(5)
        await hop()
        assert conserved(queue).failures == 1
        assert len(function.began) == 1
        function.release.set()
        await finished(queue, 1)
    assert [message.attempt for message in function.began] == [1, 2]
    assert function.peak == 1


async def test_the_threads_are_not_those_of_everybody(mock_clock: Any, conserved: Any) -> None:
    """Trio's shared limiter may be used up: the function has a limiter of its own."""
    shared = trio.to_thread.current_default_thread_limiter()
    borrowers = [object() for _ in range(int(shared.total_tokens))]
    for borrower in borrowers:
        shared.acquire_on_behalf_of_nowait(borrower)
    try:
        with trio.fail_after(1):
            await blocking(lambda message: None, threads=1)(Message("m", b"", 0.0))
    finally:
        for borrower in borrowers:
            shared.release_on_behalf_of(borrower)


async def test_each_blocking_send_has_threads_of_its_own(hanging: Any, mock_clock: Any) -> None:
    """One function that hangs does not take the threads of another."""
    function = hanging()
    stuck, free = blocking(function, threads=1), blocking(lambda message: None, threads=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stuck, Message("a", b"", 0.0))
        await function.until_began(1)
        await free(Message("b", b"", 0.0))
        assert function.ended == []
        function.release.set()


async def an_async_function(message: Message) -> None:
    """A send as it is, and nothing for `blocking`."""


class AsyncCallable:
    async def __call__(self, message: Message) -> None:
        """Likewise."""


class Sender:
    async def method(self, message: Message) -> None:
        """Likewise."""


@pytest.mark.parametrize(
    "function",
    [an_async_function, functools.partial(an_async_function), Sender().method, AsyncCallable()],
    ids=["function", "partial", "method", "object"],
)
def test_an_async_function_is_refused(function: Callable[[Message], Awaitable[None]]) -> None:
    """What is async already would never run in a thread: it is refused when it is given."""
    with pytest.raises(TypeError, match=r"^fn must be an ordinary function"):
        blocking(function)


def test_what_cannot_be_called_is_refused() -> None:
    """`fn` must be callable, and `threads` a whole number of at least 1."""
    for function in (None, b"x", 5, "send"):
        with pytest.raises(TypeError, match=r"^fn must be a function"):
            blocking(function)  # type: ignore[arg-type]
    for error, counts in ((ValueError, [0, -1]), (TypeError, [1.5, True, None])):
        for threads in counts:
            with pytest.raises(error, match=r"^threads must"):
                blocking(print, threads=threads)  # type: ignore[arg-type]
