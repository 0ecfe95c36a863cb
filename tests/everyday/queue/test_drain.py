"""Draining: what comes due is sent, the rest handed back, and nothing is unaccounted for."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from localdelay import Message, RetryPolicy, Throttled, open_delay_queue
from localdelay.testing import RecordingSender


class HandBack:
    """A hand-back that takes `duration` seconds and keeps what it was given."""

    def __init__(self, duration: float = 0.0) -> None:
        self.duration = duration
        self.given: list[tuple[float, bytes, float]] = []
        self.at_once = 0
        self.most_at_once = 0

    async def __call__(self, message: Message, remaining: float) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        began = trio.current_time()
        try:
            await trio.sleep(self.duration)
        finally:
            self.at_once -= 1
        self.given.append((began, message.payload, remaining))


async def test_due_within_the_grace_is_sent_and_the_rest_handed_back(
    autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each at its own time: hand-backs begin at once, sends when they are due."""
    sender = RecordingSender()
    hand_back = HandBack(duration=1)
    async with open_delay_queue(sender, capacity=10, workers=2) as queue:
        for delay in (1, 5, 20, 30, 120, 130):
            queue.put_nowait(str(delay).encode(), delay=delay)
        await trio.sleep(2)
        report = await queue.drain(grace=25, hand_back=hand_back)
        assert trio.current_time() == 20  # as soon as nothing more can be done
        conserved(queue)
    assert list(zip(sender.times, sender.payloads, strict=True)) == [(1, b"1"), (5, b"5"), (20, b"20")]
    assert sorted(hand_back.given) == [(2, b"120", 118), (2, b"130", 128), (2, b"30", 28)]
    assert (report.sent, report.handed_back, report.spooled, report.dead, report.cancelled) == (2, 3, 0, 0, 0)
    assert report.remaining == []
    assert trio.current_time() == 20
    assert not caplog.records
    assert conserved(queue).sent == 3


async def test_hand_backs_are_many_in_flight(autojump_clock: Any) -> None:
    """A thousand hand-backs of a second each take ten seconds, a hundred at a time."""
    hand_back = HandBack(duration=1)
    async with open_delay_queue(RecordingSender(), capacity=1000, workers=1) as queue:
        for _ in range(1000):
            queue.put_nowait(b"", delay=120)
        report = await queue.drain(grace=25, hand_back=hand_back)
    assert (report.handed_back, hand_back.most_at_once, trio.current_time()) == (1000, 100, 10)


async def test_a_hand_back_that_is_no_coroutine_function_is_called_once(
    autojump_clock: Any, conserved: Any
) -> None:
    """It may well have published: its message remains, and is not published over and over."""
    calls: list[str] = []
    async with open_delay_queue(RecordingSender(), capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=60, id="x")
        report = await queue.drain(grace=10, hand_back=lambda message, left: calls.append(message.id))  # type: ignore[arg-type,return-value,func-returns-value]
    assert calls == ["x"]
    assert [m.id for m in report.remaining] == ["x"]


async def test_failing_hand_backs_hold_up_no_others(autojump_clock: Any, conserved: Any) -> None:
    """What waits to be handed back again takes no place among those in flight, and can be cancelled."""
    given: list[bytes] = []

    async def hand_back(message: Message, remaining: float) -> None:
        if message.payload == b"bad":
            raise OSError
        given.append(message.payload)

    retry = RetryPolicy(wait_initial=4, wait_max=4, wait_jitter=0)
    async with open_delay_queue(RecordingSender(), capacity=1000, workers=1, retry=retry) as queue:
        bad = [queue.put_nowait(b"bad", delay=100) for _ in range(150)]
        for _ in range(500):
            queue.put_nowait(b"good", delay=200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.drain, 10, hand_back)
            await trio.sleep(1)
            assert len(given) == 500
            s = conserved(queue)
            assert (s.retrying, s.handed_back, s.failures) == (150, 500, 150)
            assert queue.cancel(bad[0].id)
        assert trio.current_time() == 8  # a third try, at 12, would be too late
        s = conserved(queue)
        assert (s.pending, s.failures, s.next_due_in) == (149, 150 + 149 * 2, None)


async def test_a_cancel_can_end_a_drain(autojump_clock: Any, conserved: Any) -> None:
    """When the last message is cancelled, whoever waits for it to be sent waits no more."""

    async def cancel_later(id: str) -> None:
        await trio.sleep(1)
        assert queue.cancel(id)

    async with trio.open_nursery() as nursery:
        async with open_delay_queue(RecordingSender(), capacity=10, workers=3) as queue:
            nursery.start_soon(cancel_later, queue.put_nowait(b"", delay=1000).id)
    assert trio.current_time() == 1
    assert conserved(queue).cancelled == 1


async def test_a_drain_from_inside_a_send_is_refused(autojump_clock: Any, conserved: Any) -> None:
    """It would wait for itself; in a nursery of the send, too."""
    errors: list[str] = []

    async def send(message: Message) -> None:
        async def child() -> None:
            with pytest.raises(RuntimeError) as caught:
                await queue.drain()
            errors.append(str(caught.value))

        await child()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    async with open_delay_queue(send, capacity=10, workers=1) as queue:
        queue.put_nowait(b"", delay=1)
        await trio.sleep(2)
        queue.put_nowait(b"", delay=1)
    assert len(errors) == 4
    assert "inside a send" in errors[0]
    assert conserved(queue).sent == 2


async def test_a_retry_that_will_not_fit_into_the_grace_is_handed_back_at_once(
    conserved: Any, autojump_clock: Any
) -> None:
    """It does not wait for the workers, who have another message to send later on."""
    handed_back: list[tuple[float, bytes, float]] = []

    async def send(message: Message) -> None:
        if message.payload == b"fails":
            raise Throttled(retry_after=5.0)

    async def hand_back(message: Message, remaining: float) -> None:
        handed_back.append((trio.current_time(), message.payload, remaining))

    async with open_delay_queue(send, capacity=9, workers=2, limit=None) as queue:
        queue.put_nowait(b"fails", delay=1.0)
        queue.put_nowait(b"fine", delay=2.0)
        report = await queue.drain(3.0, hand_back)
    assert handed_back == [(1.0, b"fails", 0.0)]
    assert (report.sent, report.handed_back, trio.current_time()) == (1, 1, 2.0)
    assert conserved(queue).pending == 0
