"""What paces due sends: a limit that is found or known, and the rate at which what is overdue catches up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio

from localdelay import (
    AdaptiveLimit,
    BatchPolicy,
    Fallback,
    Message,
    PartialSendError,
    ProbePolicy,
    RateLimit,
    RetryPolicy,
    Throttled,
    open_delay_queue,
)
from localdelay.listening import Event, LimitBegan, LimitEnded
from localdelay.testing import RecordingSender


class Bucket:
    """A broker that takes `rate` messages a second and 20 at once, and throttles the rest."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens = 20.0
        self.at = 0.0
        self.taken = 0
        self.refused = 0
        self.events: list[Event] = []

    async def __call__(self, message: Message) -> None:
        now = trio.current_time()
        self.tokens = min(20.0, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            self.refused += 1
            raise Throttled
        self.tokens -= 1
        self.taken += 1

    def on_event(self, event: Event) -> None:
        self.events.append(event)


async def test_the_queue_finds_what_the_broker_takes(autojump_clock: Any, conserved: Any) -> None:
    """From the first throttled send on it keeps close under that, and is off again when traffic is less."""
    broker = Bucket(100.0)
    async with open_delay_queue(broker, capacity=10_000, workers=4, listener=broker) as queue:
        for number in range(2_000):
            queue.put_nowait(b"", delay=number / 200)
        await trio.sleep(0.05)
        assert queue.statistics().limit_rate is None
        await trio.sleep(8)
        s = conserved(queue)
        assert s.limit_rate == pytest.approx(100, rel=0.1)
        assert (s.sending, s.waiting + s.retrying) == (0, s.pending)  # what waits for the limit is in order
        for number in range(2_000):
            queue.put_nowait(b"", delay=20 + number / 20)
    assert broker.taken == 4_000
    assert broker.refused <= 0.04 * 2_000
    assert [type(event) for event in broker.events] == [LimitBegan, LimitEnded]
    assert conserved(queue).limit_rate is None


async def test_a_batch_whose_every_message_is_refused_is_the_limits(
    autojump_clock: Any, conserved: Any
) -> None:
    """An error that names each of them, throttled, is a refusal and no sign that the broker is down."""
    events: list[Event] = []

    class Listener:
        def on_event(self, event: Event) -> None:
            events.append(event)

    async def send_batch(messages: Sequence[Message]) -> None:
        if trio.current_time() < 10:
            raise PartialSendError({message.id: Throttled(retry_after=0.5) for message in messages})

    policy = BatchPolicy(max_messages=2)
    async with open_delay_queue(
        send_batch=send_batch, batch=policy, capacity=100, workers=4, listener=Listener()
    ) as queue:
        for _ in range(40):
            queue.put_nowait(b"", delay=1.0)
        await trio.sleep(5)
        assert conserved(queue).limit_rate is not None
        assert conserved(queue).throttled == conserved(queue).failures > 0
    assert [type(event) for event in events] == [LimitBegan, LimitEnded][: len(events)]
    assert conserved(queue).sent == 40


async def test_without_a_limit_nothing_is_paced(autojump_clock: Any, conserved: Any) -> None:
    """Each message backs off on its own."""
    broker = Bucket(10.0)
    retry = RetryPolicy(wait_initial=1, wait_max=1, wait_jitter=0)
    async with open_delay_queue(broker, capacity=100, workers=4, limit=None, retry=retry) as queue:
        for _ in range(40):
            queue.put_nowait(b"", delay=0)
    assert broker.refused == 20 + 10
    assert conserved(queue).limit_rate is None


async def test_each_queue_makes_its_own_limit(autojump_clock: Any) -> None:
    """Unless it is given one."""
    shared = AdaptiveLimit()
    sender = RecordingSender()
    async with (
        open_delay_queue(sender, capacity=1, workers=1) as one,
        open_delay_queue(sender, capacity=1, workers=1) as other,
        open_delay_queue(sender, capacity=1, workers=1, limit=shared) as third,
    ):
        assert isinstance(one.limit, AdaptiveLimit)
        assert one.limit is not other.limit
        assert third.limit is shared


async def test_due_sends_come_before_what_shares_the_limit(autojump_clock: Any, conserved: Any) -> None:
    """While a send waits for its token, nobody else gets one."""
    limit = RateLimit(1.0, burst=1)
    sender = RecordingSender()
    async with open_delay_queue(sender, capacity=10, workers=2, limit=limit) as queue:
        for _ in range(4):
            queue.put_nowait(b"", delay=0)
        for _ in range(6):
            await trio.sleep(0.5)
            assert not limit.try_acquire()
    assert sender.times == [0, 1, 2, 3]
    conserved(queue)


async def test_what_is_overdue_after_an_outage_catches_up_at_its_rate(
    autojump_clock: Any, conserved: Any
) -> None:
    """So many a second, in due order; what is on time is not counted, and waits for none of it."""
    sender = RecordingSender()

    async def send(message: Message) -> None:
        if trio.current_time() < 10:
            raise ConnectionError
        await sender(message)

    probe = ProbePolicy(failures=1, wait_initial=9.0, wait_max=9.0)
    retry = RetryPolicy(wait_initial=100, wait_jitter=0, wait_max=100)
    async with open_delay_queue(
        send, capacity=2_000, workers=2, probe=probe, retry=retry, catch_up_rate=2.0
    ) as queue:
        for number in range(600):
            queue.put_nowait(b"%d" % number, delay=1 + number / 100)
        for number in range(20):
            queue.put_nowait(b"on time", delay=15 + number)
        await trio.sleep(20)
        # What is overdue is nothing to be handed back, though its place is far.
        far = [queue.hand_backs.look_at(slot) for slot in queue.hand_backs.far(trio.current_time() + 1)]
        assert {message.payload for message in far if message is not None} == {b"on time"}
    on_time = [when for when, message in sender.sent if message.payload == b"on time"]
    assert on_time == [15 + number for number in range(20)]
    late = [(when, int(message.payload)) for when, message in sender.sent if message.payload != b"on time"]
    first = late[0][0]
    assert 10 <= first <= 13
    assert [number for _, number in late[1:599]] == [*range(1, 599)]
    assert [when for when, _ in late[1:599]] == pytest.approx([first + number / 2 for number in range(598)])
    assert conserved(queue).lateness.count == 620


async def test_what_has_expired_takes_no_place_of_what_catches_up(
    autojump_clock: Any, conserved: Any
) -> None:
    """After an outage of 20 s what is worth sending for 5 s goes at its rate, and not behind all the rest."""
    sender = RecordingSender()

    async def send(message: Message) -> None:
        if trio.current_time() < 20:
            raise ConnectionError
        await sender(message)

    probe = ProbePolicy(failures=1, wait_initial=0.1, wait_max=0.1)
    async with open_delay_queue(send, capacity=2_000, workers=2, probe=probe, catch_up_rate=100.0) as queue:
        for number in range(200):
            queue.put_nowait(b"", delay=number / 10, expires=5.0)
    s = conserved(queue)
    assert s.sent >= 48
    assert max(sender.times) <= 21


@pytest.mark.parametrize("batched", [False, True])
async def test_who_hears_of_a_limit_may_cancel(autojump_clock: Any, conserved: Any, *, batched: bool) -> None:
    """A due send is the first of the queue to see it: what is cancelled then is not sent."""
    sent: list[str] = []
    cancelled: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.id)

    async def send_batch(messages: Sequence[Message]) -> None:
        sent.extend(message.id for message in messages)

    async def refuse(message: Message, delay: float) -> None:
        raise Throttled

    class Hears:
        def on_event(self, event: Event) -> None:
            if isinstance(event, LimitBegan):
                cancelled.extend(id for id in ids if queue.cancel(id))

    sends: Any = {"send_batch": send_batch} if batched else {"send": send}
    async with open_delay_queue(**sends, capacity=99, workers=1, listener=Hears()) as queue:
        ids = [queue.put_nowait(b"", delay=1.0).id for _ in range(9)]
        await trio.sleep(0.999)
        ids.append((await Fallback(refuse, queue).publish(b"", delay=50.0)).message.id)
        assert not cancelled
        await trio.sleep(60)
        assert conserved(queue).cancelled == len(cancelled) > 0
    assert sorted(sent + cancelled) == sorted(ids)
