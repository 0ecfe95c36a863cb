"""A broker that is down: one message at a time tries it, and the rest waits until one is sent."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from localdelay import BatchPolicy, Message, PermanentSendError, open_delay_queue
from localdelay.listening import Event, SendingOpened, SendingShut
from tests.kit.probing import EXACT, STEADY

pytestmark = pytest.mark.usefixtures("no_jitter")


class Broker:
    """Is down until an instant, and keeps what it was called with."""

    def __init__(self, up_at: float, error: type[Exception] = ConnectionError) -> None:
        self.up_at = up_at
        self.error = error
        self.calls: list[tuple[float, bytes, int]] = []
        """(when, payload, attempt)"""
        self.sent: list[tuple[float, bytes]] = []
        self.events: list[tuple[float, Event]] = []

    async def __call__(self, message: Message) -> None:
        now = trio.current_time()
        self.calls.append((now, message.payload, message.attempt))
        if now < self.up_at:
            raise self.error
        self.sent.append((now, message.payload))

    async def batch(self, messages: Sequence[Message]) -> None:
        self.calls.append((trio.current_time(), b"".join(m.payload for m in messages), messages[0].attempt))
        if trio.current_time() < self.up_at:
            raise self.error
        self.sent += [(trio.current_time(), message.payload) for message in messages]

    def on_event(self, event: Event) -> None:
        self.events.append((trio.current_time(), event))


def put_all(queue: Any, payloads: str, delay: float = 1.0) -> None:
    for number, letter in enumerate(payloads):
        queue.put_nowait(letter.encode(), delay=delay + number / 1000)


async def test_one_at_a_time_is_tried_after_growing_waits(
    autojump_clock: Any, conserved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The next due one each time, as its first attempt still; then all goes, in due order."""
    broker = Broker(up_at=10.0)
    async with open_delay_queue(
        broker, capacity=10, workers=4, retry=STEADY, probe=EXACT, listener=broker
    ) as queue:
        put_all(queue, "abcdefgh")
        await trio.sleep(9)
        s = conserved(queue)
        assert (s.pending, s.sent, s.sending, s.oldest_overdue) == (8, 0, 0, 8.0)
    calls = [(round(when, 3), payload.decode()) for when, payload, _ in broker.calls]
    # `c` shuts it, and is still the next one; each probe that fails goes behind what is overdue by then.
    assert calls[:6] == [(1.0, "a"), (1.001, "b"), (1.002, "c"), (2.002, "c"), (4.002, "d"), (8.002, "e")]
    assert calls[6:12] == [(12.002, letter) for letter in "fghcde"]
    assert [payload for _, payload in calls[12:]] == ["a", "b"]
    attempts = {payload: attempt for _, payload, attempt in broker.calls}
    assert attempts == {b"a": 2, b"b": 2} | {bytes([letter]): 1 for letter in b"cdefgh"}
    assert [(round(when, 3), type(event)) for when, event in broker.events] == [
        (1.002, SendingShut),
        (12.002, SendingOpened),
    ]
    assert broker.events[1][1] == SendingOpened(pytest.approx(11.0))
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len([line for line in warnings if "the broker seems to be down" in line]) == 1
    s = conserved(queue)
    assert (s.sent, s.lateness.count, s.failures) == (8, 8, 6)


async def test_a_batch_sender_tries_one_message_at_a_time(autojump_clock: Any, conserved: Any) -> None:
    """Three batches fail, one message tries it, and then batches are full again."""
    broker = Broker(up_at=4.0)
    batch = BatchPolicy(max_messages=2)
    async with open_delay_queue(
        send_batch=broker.batch, batch=batch, capacity=20, workers=1, retry=STEADY, probe=EXACT
    ) as queue:
        for letter in "abcdefghij":
            queue.put_nowait(letter.encode(), delay=1)
        await trio.sleep(50)
    calls = [(when, payloads.decode()) for when, payloads, _ in broker.calls]
    assert calls[:5] == [(1, "ab"), (1, "cd"), (1, "ef"), (2, "e"), (4, "f")]
    assert calls[5:] == [(4, "gh"), (4, "ij"), (4, "e"), (101, "ab"), (101, "cd")]
    conserved(queue)


async def test_a_batch_that_gathers_waits_too(autojump_clock: Any, conserved: Any) -> None:
    """What had been taken for a batch that is not full goes back when sends fail meanwhile."""
    broker = Broker(up_at=5.0)
    batch = BatchPolicy(max_messages=2, max_wait=3.0)
    async with open_delay_queue(
        send_batch=broker.batch, batch=batch, capacity=20, workers=4, retry=STEADY, probe=EXACT
    ) as queue:
        for letter in "abcdefg":
            queue.put_nowait(letter.encode(), delay=1)
        await trio.sleep(1.5)
        assert conserved(queue).sending == 0
    calls = [(when, payloads.decode()) for when, payloads, _ in broker.calls]
    assert calls[3:7] == [(2, "e"), (4, "f"), (8, "g"), (8, "ef")]


async def test_an_outage_costs_few_calls_and_is_soon_made_good(autojump_clock: Any, conserved: Any) -> None:
    """A minute of it at 200 a second and 20 workers: the goals are 60 calls, and 4 s for 12,000 overdue."""
    calls: Counter[bool] = Counter()
    begin, end = 10.0, 70.0

    async def send(message: Message) -> None:
        is_down = begin <= trio.current_time() < end
        calls[is_down] += 1
        await trio.sleep(0.005)
        if is_down:
            raise ConnectionError

    caught_up = None
    async with open_delay_queue(send, capacity=30_000, workers=20) as queue:
        for number in range(80 * 200):
            queue.put_nowait(b"", delay=number / 200)
        await trio.sleep_until(end)
        assert conserved(queue).oldest_overdue == pytest.approx(60, abs=0.1)
        while caught_up is None:
            await trio.sleep(0.05)
            if queue.statistics().oldest_overdue < 0.1:
                caught_up = trio.current_time() - end
    assert calls[True] <= 70
    assert caught_up <= 4.6
    assert conserved(queue).sent == 80 * 200


async def test_a_probe_that_is_given_up_is_followed_at_once(autojump_clock: Any, conserved: Any) -> None:
    """By the next one, whatever its dead-letter hook takes."""
    broker = Broker(up_at=1.5)
    hooks: list[float] = []

    async def hook(message: Message, error: Exception) -> None:
        hooks.append(trio.current_time())
        await trio.sleep(10)

    async def send(message: Message) -> None:
        await broker(message)
        if message.payload == b"c":
            raise PermanentSendError

    async with open_delay_queue(
        send, capacity=10, workers=4, retry=STEADY, probe=EXACT, on_dead_letter=hook
    ) as queue:
        put_all(queue, "abcd")
        await trio.sleep(5)
        assert hooks == [2.002]
        assert [(round(when, 3), payload) for when, payload, _ in broker.calls[-1:]] == [(2.002, b"d")]
        conserved(queue)


async def test_an_outage_is_one_where_two_messages_have_one_id(autojump_clock: Any) -> None:
    """As a journal may bring them back: that one id names both must not look as if one of them was sent."""
    broker = Broker(up_at=10.0)
    async with open_delay_queue(
        send_batch=broker.batch, capacity=10, workers=1, retry=STEADY, probe=EXACT, listener=broker
    ) as queue:
        queue._pending.enter_kept(
            [
                (due, number, (b"", None, name, 1, 0, due, False, None, None))
                for number, (due, name) in enumerate([(1.0, "a"), (1.0, "a"), (2.0, "b"), (2.0, "b")], -9)
            ]
        )
        queue.put_nowait(b"", delay=3.0)
    assert [type(event) for _, event in broker.events] == [SendingShut, SendingOpened]
    assert len(broker.sent) == 5
