"""Blocking calls in threads: who is free, and who has left whom, in the instant in which two threads meet."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from threading import Event, Thread
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
import trio

from localdelay import BreakerPolicy, BreakerState, Cancelled, Route
from localdelay import threads as face
from localdelay.errors import Throttled
from localdelay.portal import blocking, pool
from localdelay.portal.blocking import MOST, Leaving, NotCalled
from localdelay.portal.pool import Threads
from localdelay.settling import Settling


@pytest.fixture
def threads() -> Any:
    """One thread, open."""
    one = Threads(1)
    one.calls(lambda: None)  # it is needed
    one.open()
    yield one
    one.close()


async def test_who_hears_of_the_end_of_a_call_finds_its_thread_free(
    threads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a batch that is sent on at once would be refused by a thread that has nothing to do any more."""
    held: list[bool] = []

    class Told(Settling):
        def settle(self, *args: Any) -> None:
            held.append(any(seat.item is not None for seat in threads._seats))
            super().settle(*args)

    monkeypatch.setattr(pool, "Settling", Told)
    call = threads.calls(lambda: None, waits=False)
    with trio.fail_after(5):
        await call()
        await call()
    assert held == [False, False]


async def test_where_every_thread_is_held_a_call_that_must_not_wait_is_refused(threads: Any) -> None:
    """And is taken again when one is free."""
    begun, let_go = Event(), Event()

    def hold() -> None:
        begun.set()
        let_go.wait(5)

    holding, call = threads.calls(hold), threads.calls(lambda: None, waits=False)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(holding)
            await trio.to_thread.run_sync(begun.wait)
            with pytest.raises(Throttled, match="every thread is held"):
                await call()
            let_go.set()
        await call()


class _Late(SimpleQueue):  # type: ignore[type-arg]
    """Of a caller whose patience ends in the very instant in which the call ends."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().get()
        self.put(super().get(timeout=5))
        raise Empty


def test_a_call_that_ends_as_its_caller_leaves_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """He gets what it came to; and it is not counted as left, or nothing might be called any more one day."""
    monkeypatch.setattr(blocking, "SimpleQueue", _Late)
    leaving = Leaving("publish_delayed", 1.0)
    assert [leaving.call(int, "7") for _ in range(MOST + 1)] == [7] * (MOST + 1)
    with pytest.raises(ValueError, match="seven"):
        leaving.call(int, "seven")


def test_what_was_left_counts_until_it_returns() -> None:
    """So many at most; then a call says what to do, and calls nothing."""
    let_go = Event()
    leaving = Leaving("publish_delayed", 0.001)

    def left() -> None:
        with pytest.raises(TimeoutError, match=r"took longer than 0\.001 s"):
            leaving.call(let_go.wait, 10)

    callers = [Thread(target=left) for _ in range(MOST)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    with pytest.raises(NotCalled, match=f"{MOST} calls of publish_delayed .* time-out of its own"):
        leaving.call(pytest.fail, "it must not be called")
    let_go.set()
    while leaving._left:  # each takes itself off as it returns
        time.sleep(0.001)


def test_a_call_for_which_no_thread_begins_was_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and nothing stays of it: it is neither under way nor left."""
    leaving = Leaving("publish_delayed", 1.0)

    def begins_no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short_of_threads:
        short_of_threads.setattr(trio.lowlevel, "start_thread_soon", begins_no_thread)
        with pytest.raises(NotCalled, match="no thread begins in which to call publish_delayed: can't start"):
            leaving.call(int, "7")
    assert not leaving._under_way | leaving._left
    assert leaving.call(int, "7") == 7


def test_what_was_certainly_not_called_is_held_and_counts_as_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can doubt that the primary has it not; and one that hangs so often is to be left alone."""

    def not_called(*_: object) -> object:
        raise NotCalled("so many hang")

    monkeypatch.setattr(Leaving, "call", not_called)
    breaker = BreakerPolicy(consecutive=1)
    with face.open_delay_queue(lambda _: None, capacity=9, workers=1) as queue:
        fallback = face.Fallback(pytest.fail, queue, breaker=breaker, cancel_delayed=pytest.fail)
        receipt = fallback.publish(b"", delay=300.0)
        assert (receipt.route, type(receipt.reason)) == (Route.LOCAL, NotCalled)
        assert fallback.statistics().breaker is BreakerState.OPEN
        assert fallback.cancel(receipt) is Cancelled.LOCAL  # and the primary is not asked


def test_a_resize_after_the_end_starts_no_thread() -> None:
    """Nobody would end it."""
    queue = face.start_delay_queue(lambda _: None, capacity=9, workers=2)
    queue.close()
    before = set(enumerate_threads())
    queue.resize(workers=5)
    assert queue.statistics().workers == 5
    assert not set(enumerate_threads()) - before
