"""Sends, hand-backs and puts that are cut off and raise something of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
import pytest
import trio
from trio.testing import MockClock

from localdelay import DelayQueue, Message, RetryPolicy, Statistics, open_delay_queue
from localdelay.queue import lanes as piles
from localdelay.queue import queue as queues_module

Conserved: TypeAlias = Callable[[DelayQueue], Statistics]


@attrs.frozen
class _Mix:
    """A send whose nursery ends in a group: its children's exceptions, when it is cancelled."""

    errors: tuple[type[BaseException] | None, ...]

    async def __call__(self, message: Message) -> None:
        async with trio.open_nursery() as nursery:
            for error in self.errors:
                nursery.start_soon(self._child, error)

    async def _child(self, error: type[BaseException] | None) -> None:
        try:
            await trio.sleep_forever()
        finally:
            if error is not None:
                raise error


_MIXES = [
    (ValueError,),
    (None, ValueError),
    (None, None),
    (ValueError, OSError),
    (ValueError, None, KeyError),
]


@pytest.mark.parametrize("errors", _MIXES)
async def test_a_group_under_send_timeout_is_a_failed_send(
    errors: tuple[type[BaseException] | None, ...], conserved: Conserved, autojump_clock: MockClock
) -> None:
    """Whatever the send's nursery makes of the cancellation, the message is tried again and buried once."""
    buried: list[tuple[float, int]] = []

    async def bury(message: Message, error: Exception) -> None:
        assert isinstance(error, Exception)
        buried.append((trio.current_time() - message.execute_at, message.attempt))

    async with open_delay_queue(
        _Mix(errors),
        capacity=10,
        workers=2,
        send_timeout=1.0,
        retry=RetryPolicy(attempts=2, wait_initial=0.5, wait_jitter=0),
        on_dead_letter=bury,
    ) as queue:
        queue.put_nowait(b"a", delay=1.0)
    assert buried == [(2.5, 2)]
    assert conserved(queue).dead == 1
    assert trio.current_time() == 3.5


@pytest.mark.parametrize("at_the_timeout", [False, True])
@pytest.mark.parametrize("errors", _MIXES)
async def test_a_group_under_an_outer_cancellation_is_a_cancellation(
    errors: tuple[type[BaseException] | None, ...],
    at_the_timeout: bool,
    conserved: Conserved,
    autojump_clock: MockClock,
) -> None:
    """The errors of a send that was cut off harm nobody, even if `send_timeout` strikes at that instant."""
    with trio.CancelScope() as scope:
        async with open_delay_queue(_Mix(errors), capacity=10, workers=2, send_timeout=1.0) as queue:
            queue.put_nowait(b"a", delay=1.0)
            queue.put_nowait(b"b", delay=1.5)
            await trio.sleep(2.0 if at_the_timeout else 1.75)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert conserved(queue).pending == 2


@pytest.mark.parametrize("errors", _MIXES)
async def test_a_group_at_the_end_of_the_grace_is_a_cancellation(
    errors: tuple[type[BaseException] | None, ...], conserved: Conserved, autojump_clock: MockClock
) -> None:
    """A send and a hand-back that are cut off leave their messages pending, and drain returns on time."""
    mix = _Mix(errors)

    async def hand_back(message: Message, remaining: float) -> None:
        await mix(message)

    async with open_delay_queue(mix, capacity=10, workers=2, send_timeout=60.0) as queue:
        queue.put_nowait(b"a", delay=1.0)
        queue.put_nowait(b"b", delay=9.0)
        report = await queue.drain(3.0, hand_back)
        assert trio.current_time() == 3.0
    assert [message.payload for message in report.remaining] == [b"a", b"b"]
    assert conserved(queue).pending == 2


@pytest.mark.parametrize("look", ["messages", "statistics"])
def test_ctrl_c_cannot_strike_while_the_schedule_is_walked(
    look: str, conserved: Conserved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes out of the block later, and every message is still there."""
    queues: list[DelayQueue] = []
    monkeypatch.setattr(piles, "BLOCK", 4)
    monkeypatch.setattr(queues_module, "INBOX", 4)
    unpacked = piles._unpacked
    left = iter(range(5, -1, -1))

    def interrupted(packed: tuple[Any, ...]) -> list[piles.Slot]:
        if next(left, None) == 0:
            signal.raise_signal(signal.SIGINT)
        return unpacked(packed)

    async def send(message: Message) -> None:
        pass

    async def main() -> None:
        async with open_delay_queue(send, capacity=1000, workers=1) as queue:
            queues.append(queue)
            messages = [queue.put_nowait(b"x", delay=9.0) for _ in range(100)]
            if look == "statistics":  # which drops the cancelled ones at the head
                for message in messages[:60]:
                    queue.cancel(message.id)
            monkeypatch.setattr(piles, "_unpacked", interrupted)
            getattr(queue, look)()
            monkeypatch.setattr(piles, "_unpacked", unpacked)
            assert next(left, None) is None, "nothing was interrupted"
            await trio.sleep_forever()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main, clock=MockClock(autojump_threshold=0))
    finally:
        signal.signal(signal.SIGINT, before)
    assert conserved(queues[0]).pending == (100 if look == "messages" else 40)
